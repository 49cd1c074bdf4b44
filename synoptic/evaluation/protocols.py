"""The evaluations that users name, and how each is built from the parts of a data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal

from synoptic.data.sources import Source, open_source, parts_of
from synoptic.evaluation.dense import Segmentation
from synoptic.evaluation.recognition import KNN, ZeroShot
from synoptic.evaluation.scenes import is_scenes, seen_pairs
from synoptic.types import EncodesText, Evaluator

logger = logging.getLogger(__name__)

TEMPLATES = ("a photo of {}.", "a picture of {}.", "a close-up photo of {}.", "a photo of {}, small.", "{}")
SCENE_TEMPLATES = ("{}", "a picture of {}", "a photo of {}", "there is {}")  # as their captions speak


def zeroshot(source: Source) -> ZeroShot:
    """Zero-shot classification of pictures in class folders, whose names are the prompts.

    Scenes of one object are asked about the pairs of colour and shape that their training pictures show.
    """
    if is_scenes(source):
        labels, names = seen_pairs(source)
        return ZeroShot(source, labels, prompts(names, SCENE_TEMPLATES))
    if source.labels is None:
        raise ValueError(f"{source.root} has no labels: put its pictures into folders named after their classes")
    names = tuple(name.replace("_", " ") for name in source.classes)
    return ZeroShot(source, source.labels, prompts(names, TEMPLATES))


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Sentences for each class: `{}` stands for its name with "a" or "an" before it."""
    named = [f"{'an' if name[:1].lower() in tuple('aeiou') else 'a'} {name}" for name in names]
    return [[template.replace("{}", name) for template in templates] for name in named]


# Each is built from the training part and the part to judge by.
EVALUATIONS: dict[str, Callable[[Source, Source], Evaluator[EncodesText]]] = {
    "knn": KNN,
    "zeroshot": lambda train, judged: zeroshot(judged),
    "segmentation": Segmentation,
}


def build_evaluator(name: str, data: str, split: Literal["test", "validation"] = "test") -> Evaluator[EncodesText]:
    """An evaluation of a data set.

    Args:
        name: one of EVALUATIONS.
        data: a folder with `train/` and `test/` inside, or any other DIR.
        split: the part to judge by. Where there is no test part, the validation part serves, which is cut off from
            the training pictures where need be.
    Raises:
        ValueError: for an unknown name, and for data that lack what the evaluation needs.
    """
    if name not in EVALUATIONS:
        raise ValueError(f"on={name}: no such evaluation; there are {', '.join(EVALUATIONS)}")
    if split == "test" and "test" not in parts_of(data):
        logger.info("%s has no test part: judging by its validation part", data)
        split = "validation"
    return EVALUATIONS[name](open_source(data, "train"), open_source(data, split))
