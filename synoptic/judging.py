"""One evaluation: a model, a data set, and the scores that are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from synoptic.data.listing import expand
from synoptic.data.prompts import Templates
from synoptic.evaluation.protocols import Wording, build_evaluators, judged_part, named
from synoptic.files import check_file, write_text
from synoptic.predict import VisionModel, load
from synoptic.weights import zoo


def evaluate(
    model: str | Path | VisionModel,
    on: Iterable[str] | str,
    data: str,
    out: Path | str | None = None,
    adaptor: str | None = None,
    images: str | None = None,
    labels: str | Path | None = None,
    templates: Templates | None = None,
) -> dict[str, float]:
    """Scores of a model on the test part of a data set, or for want of one on what `judged_part` says (with a warning).

    Args:
        model: a MODEL or one that is loaded.
        on: names of evaluations (knn, linear, logistic, retrieval, zeroshot, segmentation, attention), or one text with
            commas between them.
        data: a data set with labels, words or masks, as the evaluations need.
        out: JSON file for the scores, which also names the part that was judged and the adaptor.
        adaptor: the teacher in whose space a student is judged, needed for `zeroshot` where several know words; None
            takes the model's own space.
        images: the folder that the names in a captions file are relative to.
        labels, templates: how `zeroshot` asks, see `protocols.Wording`.
    Raises:
        ValueError: for an unknown evaluation or adaptor, and for data that lack what an evaluation needs.
    """
    file = expand(out) if out is not None else None
    if file is not None:
        check_file(file)
    wanted = named(on)
    wording = _wording(wanted, labels, templates)
    vision = model if isinstance(model, VisionModel) else load(model)
    if adaptor is not None and adaptor not in vision.adaptors:
        has = f"choose from {', '.join(vision.adaptors)}" if vision.adaptors else f"{vision.name} has none"
        raise ValueError(f"adaptor={adaptor}: no such adaptor; {has}")
    share = None if isinstance(model, VisionModel) else zoo.validation_share(model, data)
    part = judged_part(data, share, wanted)
    # All are built first: mistakes show at once.
    evaluators = build_evaluators(wanted, data, part, adaptor=adaptor, validation=share, images=images, wording=wording)
    answers = [evaluator.run(vision) for evaluator in evaluators]
    scores = {name: score for answer in answers for name, score in answer}
    if file is not None:
        facts = {"model": vision.name, "data": data, "part": part, "adaptor": adaptor}
        write_text(file, json.dumps(facts | scores, indent=2) + "\n")
    return scores


def _wording(on: Sequence[str], labels: str | Path | None, templates: Templates | None) -> Wording:
    """How zero-shot evaluation asks, where that is wanted at all."""
    given = [key for key, value in (("labels", labels), ("templates", templates)) if value is not None]
    if given and "zeroshot" not in on:
        raise ValueError(f"{given[0]}= decides nothing without on=zeroshot; leave it out")
    return Wording(labels, templates)
