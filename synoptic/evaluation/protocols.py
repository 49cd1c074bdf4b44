"""The evaluations that users name, and how each is built from the parts of a data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from synoptic.data.sources import Source, open_source, parts_of
from synoptic.data.words import sentence, with_article
from synoptic.evaluation.attention import AttentionOverlap
from synoptic.evaluation.dense import Segmentation
from synoptic.evaluation.features import Space
from synoptic.evaluation.linear import Linear
from synoptic.evaluation.logistic import Logistic
from synoptic.evaluation.recognition import KNN, Recogniser, Together, ZeroShot
from synoptic.evaluation.retrieval import Retrieval
from synoptic.evaluation.scenes import is_scenes, seen_pairs
from synoptic.types import EncodesText, Evaluator

logger = logging.getLogger(__name__)

Part = Literal["test", "validation"]

SET_APART = 0.1  # of the training pictures, for validation, as runs do unless told otherwise
NEIGHBOURS = (10, 20, 100, 200)  # for which k-NN scores are published (DINO, DINOv2)
TEMPLATES = ("a photo of {}.", "a picture of {}.", "a close-up photo of {}.", "a photo of {}, small.", "{}")
SCENE_TEMPLATES = ("{}", "a picture of {}", "a photo of {}", "there is {}")  # as their captions speak


def zeroshot(source: Source, adaptor: str | None = None) -> ZeroShot:
    """Zero-shot classification of pictures in class folders, whose names are the prompts.

    Scenes of one object are asked about the pairs of colour and shape that their training pictures show.

    Args:
        source: the pictures.
        adaptor: see ZeroShot.
    Raises:
        ValueError: for pictures without labels.
    """
    if is_scenes(source):
        labels, names = seen_pairs(source)
        return ZeroShot(source, labels, prompts(names, SCENE_TEMPLATES), adaptor)
    if source.labels is None:
        raise ValueError(f"{source.root} has no labels: put its pictures into folders named after their classes")
    names = tuple(name.replace("_", " ") for name in source.classes)
    return ZeroShot(source, source.labels, prompts(names, TEMPLATES), adaptor)


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Sentences for each class: `{}` stands for its name with "a" or "an" before it."""
    return [[sentence(template, with_article(name)) for template in templates] for name in names]


# Each is built from the training part, the part to judge by, and the adaptor in whose space a student is judged.
EVALUATIONS: dict[str, Callable[[Source, Source, str | None], Evaluator[EncodesText]]] = {
    "knn": lambda train, judged, adaptor: KNN(train, judged, spaces=(Space(adaptor),), besides=NEIGHBOURS),
    "linear": Linear,
    "logistic": Logistic,
    "retrieval": lambda train, judged, adaptor: Retrieval(judged, adaptor),
    "zeroshot": lambda train, judged, adaptor: zeroshot(judged, adaptor),
    "segmentation": Segmentation,
    "attention": lambda train, judged, adaptor: AttentionOverlap(judged, adaptor),
}


def judged_part(data: str, validation: float | None = None) -> Part:
    """The part of a data set to judge models by: its test part, or for want of one its validation part.

    What is judged by in place of a test part, and whether models may have been trained on it, is told as a warning.

    Args:
        data: a folder with `train/` and `test/` inside, or any other DIR.
        validation: the share of its training pictures that the model's run set apart, where that is known.
    """
    parts = parts_of(data)
    if "test" in parts:
        return "test"
    if "validation" in parts:
        by = "its validation part"
    elif validation is not None:
        by = f"the {validation:.3g} of its pictures that the model's run set apart for validation"
    else:
        by = f"{SET_APART:.3g} of its pictures, on which the model may have been trained"
    logger.warning("%s has no test part: judging by %s", data, by)
    return "validation"


def build_evaluator(
    name: str,
    data: str,
    part: Part | None = None,
    *,
    adaptor: str | None = None,
    validation: float | None = None,
) -> Evaluator[EncodesText]:
    """An evaluation of a data set; see `build_evaluators`."""
    (evaluator,) = build_evaluators([name], data, part, adaptor=adaptor, validation=validation)
    return evaluator


def build_evaluators(
    names: Iterable[str] | str,
    data: str,
    part: Part | None = None,
    *,
    adaptor: str | None = None,
    validation: float | None = None,
    images: str | None = None,
) -> list[Evaluator[EncodesText]]:
    """Evaluations of a data set; those that read a vector of each picture are joined to one, which looks at each once.

    Args:
        names: of EVALUATIONS; a text may name several, with commas between them.
        data: a folder with `train/` and `test/` inside, or any other DIR.
        part: the part to judge by; None takes `judged_part`.
        adaptor: the student's teacher in whose space it is judged; None takes the model's own, and for words the only
            space that has them.
        validation: share of the training pictures set apart where the data have no validation part; that of the
            model's run keeps the pictures that it was trained on out of the judged ones.
        images: the folder that the names in a captions file are relative to.
    Raises:
        ValueError: for an unknown name, and for data that lack what an evaluation needs.
    """
    wanted = list(dict.fromkeys(names.split(",") if isinstance(names, str) else names))
    if not wanted:
        raise ValueError(f"on=: names no evaluation; give some of {', '.join(EVALUATIONS)}")
    for name in wanted:
        if name not in EVALUATIONS:
            raise ValueError(f"on={name}: no such evaluation; there are {', '.join(EVALUATIONS)}")
    part = part or judged_part(data, validation)
    share = SET_APART if validation is None else validation
    train, judged = (open_source(data, each, validation=share, images=images) for each in ("train", part))
    evaluators = [EVALUATIONS[name](train, judged, adaptor) for name in wanted]
    recognisers = [each for each in evaluators if isinstance(each, Recogniser)]
    if len(recognisers) < 2:
        return evaluators
    place = evaluators.index(recognisers[0])
    others = [each for each in evaluators if not isinstance(each, Recogniser)]
    return [*others[:place], Together(recognisers), *others[place:]]
