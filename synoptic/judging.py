"""One evaluation: a model, a data set, and the scores that are asked for."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from synoptic.data.listing import expand
from synoptic.data.prompts import Templates
from synoptic.evaluation.agreement import check_names
from synoptic.evaluation.protocols import (
    CURVES,
    OF_FILES,
    WORDED,
    Asked,
    Progress,
    Wording,
    build_evaluators,
    judged_part,
    named,
)
from synoptic.files import check_file, write_text
from synoptic.methods.teachers import named_teachers, open_teachers
from synoptic.predict import VisionModel, load
from synoptic.weights import zoo
from synoptic.weights.options import TeacherFile


def evaluate(
    model: str | Path | VisionModel,
    on: Iterable[str] | str,
    data: str,
    out: Path | str | None = None,
    adaptor: str | None = None,
    images: str | None = None,
    labels: str | Path | None = None,
    templates: Templates | None = None,
    teachers: Mapping[str, str | Path | VisionModel] | str | None = None,
    sizes: Sequence[int] | None = None,
    teacher: Mapping[str, TeacherFile] = MappingProxyType({}),
    progress: Progress | None = None,
    names_per_prompt: int | None = None,
) -> dict[str, float]:
    """Scores of a model on the test part of a data set, or for want of one on what `judged_part` says (with a warning).

    Args:
        model: a MODEL or one that is loaded.
        on: names of evaluations (those of `protocols.EVALUATIONS`), or one text with commas between them.
        data: a data set with labels, words or masks, as the evaluations need.
        out: JSON file for the scores, which also names the part that was judged and the adaptor.
        adaptor: the teacher in whose space a student is judged, needed for `zeroshot` where several know words; None
            takes the model's own space.
        images: the folder that the names in a captions file are relative to.
        labels, templates: how `zeroshot` and `zeroshot_segmentation` ask, see `protocols.Wording`.
        teachers: for `agreement`, `name:MODEL,...` or name -> MODEL, the names those of the student's adaptors.
        sizes: for `agreement` and `artefacts`, sides in pixels at which the model is asked; None takes from half to
            four times its own size, see `sizes.rising_sizes`.
        teacher: what the files of those in `teachers` do not say themselves, by their names.
        progress: told by `detection` how many of how many pictures are done.
        names_per_prompt: for `detection`, most names that share a prompt; None takes as many as the model reads.
    Raises:
        ValueError: for an unknown evaluation or adaptor, for data that lack what an evaluation needs, and for what is
            given and decides nothing.
    """
    file = expand(out) if out is not None else None
    if file is not None:
        check_file(file)
    wanted = named(on)
    _refuse_idle(wanted, WORDED, labels=labels, templates=templates)
    _refuse_idle(wanted, {"agreement"}, teachers=teachers)
    _refuse_idle(wanted, CURVES, sizes=sizes)
    _refuse_idle(wanted, OF_FILES, names_per_prompt=names_per_prompt)
    if adaptor is not None and wanted == ["agreement"]:
        raise ValueError("adaptor= decides nothing for on=agreement, which looks at those of teachers=; leave it out")
    by_name = named_teachers(teachers) if isinstance(teachers, str) else dict(teachers or {})
    vision = model if isinstance(model, VisionModel) else load(model)
    if vision.is_detector and not set(wanted) <= OF_FILES.keys():
        raise ValueError(f"{vision.name} is a detector, and is judged by what it finds: take on=detection")
    if adaptor is not None and adaptor not in vision.adaptors:
        has = f"choose from {', '.join(vision.adaptors)}" if vision.adaptors else f"{vision.name} has none"
        raise ValueError(f"adaptor={adaptor}: no such adaptor; {has}")
    if "agreement" in wanted:
        check_names(by_name, vision.adaptors)  # before large teachers are loaded
    loaded = open_teachers(by_name, teacher)
    share = None if isinstance(model, VisionModel) else zoo.validation_share(model, data)
    part = None if set(wanted) <= OF_FILES.keys() else judged_part(data, share, wanted)
    # All are built first: mistakes show at once.
    asked = Asked(adaptor, Wording(labels, templates), loaded, sizes, progress, names_per_prompt)
    evaluators = build_evaluators(wanted, data, part, asked, validation=share, images=images)
    answers = [evaluator.run(vision) for evaluator in evaluators]
    scores = {name: score for answer in answers for name, score in answer}
    if file is not None:
        write_scores(file, vision.name, data, scores, part=part, adaptor=adaptor)
    return scores


def write_scores(file: Path, model: str, data: str, scores: Mapping[str, float], **facts: Any) -> None:
    """Writes scores with what they are of."""
    write_text(file, json.dumps({"model": model, "data": data, **facts, **scores}, indent=2) + "\n")


def _refuse_idle(on: Sequence[str], readers: Collection[str], **keys: Any) -> None:
    """Refuses keys that are given though nothing that is asked for reads them."""
    given = next((key for key, value in keys.items() if value is not None), None)
    if given is not None and not set(readers) & set(on):
        raise ValueError(f"{given}= decides nothing without on={' or on='.join(sorted(readers))}; leave it out")
