"""The verb `classify`: pictures to the labels that fit them, by words alone or by a linear classifier."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from synoptic.apps.reading import Reading
from synoptic.data.listing import expand
from synoptic.data.prompts import SETS, Labels, Templates, class_names, class_prompts
from synoptic.files import check_file, write_atomically
from synoptic.predict import VisionModel, load
from synoptic.zeroshot import ZeroShotHead

Answers = Sequence[Mapping[str, Any]]  # {"label", "score"} each, the highest score first
Progress = Callable[[int, int], None]
Ranking = Callable[[Tensor, int | None], Sequence[Answers]]  # (B, C, H, W) pictures, how many labels -> their answers


def classify(
    images: str,
    model: str | VisionModel,
    labels: Sequence[str] | None = None,
    templates: Sequence[str] = ("a {}",),
    adaptor: str | None = None,
    out: Path | None = None,
    k: int | None = None,
    progress: Progress | None = None,
    preparing: Progress | None = None,
) -> tuple[dict[str, Answers], int]:
    """How well labels fit each picture.

    Args:
        images: a file, folder (any depth), glob or `.txt` list.
        model: a MODEL that knows words or has a linear classifier, or one that is loaded.
        labels: the classes in words, or the name of one class file; None for a linear classifier whose classes are
            numbered.
        templates: sentences in which `{}` stands for a label, or one of "7" and "80", or the name of one file of them.
        adaptor: a student's teacher whose words are used; needed where several know words.
        out: JSON file, picture -> its labels and scores, or CSV file of picture, label, score.
        k: labels of each picture that are told and written, the likeliest; None tells one and writes all.
        progress: told how many of how many pictures are done.
        preparing: told how many of how many prompts are done, before the first picture.
    Returns:
        path -> [{"label", "score"}, ...] with the highest score first; and how many pictures could not be read, which
        are named in the log and left out.
    Raises:
        ValueError: no pictures, no such model, `out` has another ending, see `VisionModel.zero_shot_head`, or none of
            the pictures can be read.
    """
    classes = None if labels is None else typed_labels(labels)
    sentences = typed_templates(templates)
    if classes is not None and not (isinstance(model, VisionModel) and model.classes):
        class_prompts(classes, sentences)  # mistakes in what was typed show before a model is loaded
    reading = Reading(images, progress)
    if out is not None:
        check_file(out)
        if out.suffix.lower() not in _WRITERS:
            raise ValueError(f"out={out}: give a name that ends in {' or '.join(_WRITERS)}")
    vision = model if isinstance(model, VisionModel) else load(model)
    rank: Ranking
    if vision.classes and adaptor is None:
        class_names(classes, vision.classes)  # likewise
        rank = partial(_by_own_classes, vision, classes)
    else:
        rank = partial(_by_words, vision, vision.zero_shot_head(classes, sentences, adaptor, preparing))
    if out is None:
        return dict(_ranked(reading, vision, rank, k or 1)), reading.left_out
    told: dict[str, Answers] = {}

    def ranked() -> Iterator[tuple[str, Answers]]:
        for path, answers in _ranked(reading, vision, rank, k):
            told[path] = answers[: k or 1]
            yield path, answers

    write_atomically(out, lambda file: _WRITERS[out.suffix.lower()](file, ranked()))
    return told, reading.left_out


def typed_labels(labels: Sequence[str]) -> Labels:
    """What `labels=` means: classes, or a class file where a single word is the name of one."""
    if len(labels) == 1 and _is_file(labels[0]):
        return expand(labels[0])
    return labels


def typed_templates(templates: Sequence[str]) -> Templates:
    """What `templates=` means: sentences, a set of them, or a file where a single word has no place for a label."""
    if len(templates) == 1 and (templates[0] in SETS or _is_file(templates[0])):
        return templates[0]
    return templates


def _is_file(word: str) -> bool:
    return Path(word).suffix in (".csv", ".txt") or expand(word).is_file()


def _ranked(reading: Reading, vision: VisionModel, rank: Ranking, k: int | None) -> Iterator[tuple[str, Answers]]:
    for batch in reading.batches(vision):
        yield from zip(map(str, batch.inputs), rank(batch.images, k), strict=True)


def _by_words(vision: VisionModel, head: ZeroShotHead, images: Tensor, k: int | None) -> Sequence[Answers]:
    return head.ranked(torch.from_numpy(vision.embed(images, head.adaptor)), k)


def _by_own_classes(vision: VisionModel, labels: Labels | None, images: Tensor, k: int | None) -> Sequence[Answers]:
    return vision.own_classes(images, labels, k)


def _write_json(file: IO[bytes], ranked: Iterable[tuple[str, Answers]]) -> None:
    """An object with a line a picture, written as they come: many pictures times many labels fill a memory."""
    before = "{\n"
    for path, answers in ranked:
        pair = f"{json.dumps(path, ensure_ascii=False)}: {json.dumps(answers, ensure_ascii=False)}"
        file.write(f"{before}{pair}".encode(errors="backslashreplace"))  # a file's name may be any bytes
        before = ",\n"
    file.write(b"\n}\n")


def _write_csv(file: IO[bytes], ranked: Iterable[tuple[str, Answers]]) -> None:
    """A line for each label of each picture, the likeliest first."""
    file.write(_csv([["picture", "label", "score"]]))
    for path, answers in ranked:
        file.write(_csv([path, answer["label"], answer["score"]] for answer in answers))


_WRITERS = {".json": _write_json, ".csv": _write_csv}


def _csv(rows: Iterable[Sequence[Any]]) -> bytes:
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(rows)
    return lines.getvalue().encode(errors="backslashreplace")
