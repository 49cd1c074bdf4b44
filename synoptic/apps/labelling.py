"""The verb `classify`: pictures to the labels that fit them, by words alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from synoptic.apps.reading import Reading
from synoptic.files import check_file, write_text
from synoptic.predict import VisionModel, load

Labelled = dict[str, list[dict[str, Any]]]


def classify(
    images: str,
    model: str | VisionModel,
    labels: Sequence[str],
    templates: Sequence[str] = ("a {}",),
    adaptor: str | None = None,
    out: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Labelled, int]:
    """How well each label fits each picture.

    Args:
        images: a file, folder (any depth), glob or `.txt` list.
        model: a MODEL that knows words, or one that is loaded.
        labels: the classes in words.
        templates: sentences in which `{}` stands for a label.
        adaptor: a student's teacher whose words are used; needed where several know words.
        out: JSON file for the answer.
        progress: told how many of how many pictures are done.
    Returns:
        path -> [{"label", "score"}, ...] with the highest score first; and how many pictures could not be read, which
        are named in the log and left out.
    Raises:
        ValueError: no pictures, no such model, no labels, a template without `{}`, or none of the pictures can be read.
    """
    _check(labels, templates)
    reading = Reading(images, progress)
    if out is not None:
        check_file(out)
    vision = model if isinstance(model, VisionModel) else load(model)
    found: Labelled = {}
    for batch in reading.batches(vision):
        ranked: Any = vision.classify(batch.images, labels, templates, adaptor)  # a list a picture of the stack
        found.update(zip(map(str, batch.inputs), ranked, strict=True))
    if out is not None:
        write_text(out, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return found, reading.left_out


def _check(labels: Sequence[str], templates: Sequence[str]) -> None:
    """Tells mistakes in the words of the command line."""
    if not all(labels) or not labels:
        raise ValueError(f'labels={",".join(labels)}: give classes in words, comma-separated, as in labels="cat,dog"')
    if not all("{}" in template for template in templates) or not templates:
        given = ",".join(templates)
        raise ValueError(f'templates={given}: {{}} should stand for the label in each, as in templates="a {{}}"')
