"""From pictures of any kind and size, and words, to detections: reading, cutting into parts, thresholds, names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synoptic.config import nearest
from synoptic.data.inputs import Picture, Pictures, listed, read_each
from synoptic.data.transforms import fitted
from synoptic.detection.detections import Detections
from synoptic.detection.detector import Asked, Boxes, Detector, best_of, covered, joined_boxes
from synoptic.detection.prompts import Sentence, Vocabulary, spaced
from synoptic.types import Preprocess

Texts = str | Sequence[str] | Sequence[Sequence[str]]

# The authors' demo takes the highest token of a phrase, and 0.35; a class has the mean of its tokens, which is lower.
THRESHOLD, TEXT_THRESHOLD = 0.3, 0.25
OF_PARTS = 0.5  # share of their union above which boxes of parts of a picture are the same object
COVERED = 0.5  # share of a box that its part cuts off, above which one that lies inside of its own part is the whole
_EDGE = 0.01  # of a part's side: as near to it a box is taken to be cut off


@dataclass(frozen=True, kw_only=True)
class DetectOptions:
    """How a picture is looked at.

    Attributes:
        threshold: lowest score, one for all classes.
        thresholds: of single classes, by name.
        limit: most objects of a picture.
        nms: share of their union that two boxes of one class have in common at most, lest the less sure one go; None
            keeps all, but of a picture in parts 0.5.
        phrases: takes the text as a sentence and tells which of its words each object fits, in place of classes.
        text_threshold: lowest probability of words beside the surest, with `phrases`.
        tile: side in pixels of parts that a larger picture is cut into, each looked at by itself, beside the whole;
            None looks at the whole alone.
        overlap: share of a part that the next one shows, too.
        names_per_prompt: most names that share a prompt, and so compete; None takes as many as the model reads.
    """

    threshold: float = THRESHOLD
    thresholds: Mapping[str, float] = field(default_factory=dict)
    limit: int = 300
    nms: float | None = None
    phrases: bool = False
    text_threshold: float = TEXT_THRESHOLD
    tile: int | None = None
    overlap: float = 0.2
    names_per_prompt: int | None = None

    def __post_init__(self) -> None:
        for name, count in (("limit", self.limit), ("names_per_prompt", self.names_per_prompt)):
            if count is not None and count < 1:
                raise ValueError(f"{name}={count} should be 1 or more")
        shares = {"threshold": self.threshold, "nms": self.nms, "text_threshold": self.text_threshold}
        for name, value in {**shares, **{f"thresholds.{name}": each for name, each in self.thresholds.items()}}.items():
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value} should be from 0 to 1")
        if self.phrases and self.thresholds:
            raise ValueError("thresholds: phrases have no classes; give one threshold")
        if self.phrases and self.names_per_prompt is not None:
            raise ValueError("names_per_prompt: phrases stand in one prompt; leave it out")
        if self.tile is not None and self.tile < 32:
            raise ValueError(f"tile={self.tile} should be 32 pixels or more")
        if not 0 <= self.overlap <= 0.9:
            raise ValueError(f"overlap={self.overlap} should be from 0 to 0.9")


_SEVERAL = re.compile(r"\w\s*[.?]\s+\w")  # a stop between words


def each_text(text: Texts, phrases: bool) -> list[str | Sequence[str]]:
    """One text or list of names for all pictures, or one for each.

    Raises:
        ValueError: it is a list of texts each of which names several classes, where names are expected.
    """
    if isinstance(text, str) or not isinstance(text, Sequence):
        return [text]
    given: Any = list(text)
    if phrases or not all(isinstance(each, str) for each in given):
        return given
    for name in given:
        if _SEVERAL.search(name):
            mend = (
                "for each picture its own names, give [['a cat', 'a dog'], ['a car']]; of one name leave out the stop"
            )
            raise ValueError(f"text: {name!r} in a list of names is several; {mend}")
    return [given]


class Finder:
    """Finds objects in pictures of any kind.

    Args:
        detector: what is asked.
        preprocess: what its pictures go through.
        options: how.
    """

    def __init__(self, detector: Detector, preprocess: Preprocess, options: DetectOptions):
        self._detector, self._preprocess, self._options = detector, preprocess, options

    def names(self, text: str | Sequence[str]) -> tuple[str, ...]:
        """The classes that a text names, in order; none of a sentence."""
        (wanted,) = self._wanted([text])
        return wanted.said.names if isinstance(wanted.said, Vocabulary) else ()

    def find(
        self,
        inputs: Pictures,
        texts: Sequence[str | Sequence[str]],
        batch_size: int = 1,
        on_error: Callable[[str, str], None] | None = None,
    ) -> Iterator[Detections]:
        """Detections of one picture after the other.

        Args:
            inputs: see `VisionModel.features`.
            texts: one for all pictures, or one for each.
            batch_size: pictures that are looked at together.
            on_error: told (path, reason) of every unreadable file, which is then left out; without it, that is an
                error.
        Raises:
            ValueError: for texts that name nothing, and for another number of them than of pictures.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} should be 1 or more")
        wanted, paths = self._wanted(texts), listed(inputs)
        if len(wanted) not in (1, len(paths)):
            told = f"{len(wanted)} texts were given for {len(paths)} pictures"
            raise ValueError(f"text: {told}; give one for all, or one for each")
        pictures = read_each(paths, self._preprocess.bands, on_error)
        while batch := list(islice(pictures, batch_size)):
            own = [wanted[place if len(wanted) > 1 else 0] for place, _, _ in batch]
            yield from self._of_batch([(item, image) for _, item, image in batch], own)

    def _wanted(self, texts: Sequence[str | Sequence[str]]) -> list[_Wanted]:
        """What is looked for by each text.

        Raises:
            ValueError: a text names nothing, or a threshold is of a name that is in none of them.
        """
        options = self._options
        if options.phrases:
            return [self._sentence(text) for text in texts]
        every = [self._detector.vocabulary(text, options.names_per_prompt) for text in texts]
        names = list(dict.fromkeys(name for classes in every for name in classes.names))
        known = set(map(spaced, names))
        for name in options.thresholds:
            if spaced(name) not in known:
                raise ValueError(f"thresholds.{name}: is none of the names{nearest(name, names)}")
        return [_Wanted(classes, self._asked(classes.names)) for classes in every]

    def _sentence(self, text: str | Sequence[str]) -> _Wanted:
        if not isinstance(text, str):
            raise ValueError(f"text={text!r}: phrases are found in a sentence; give one text")
        return _Wanted(self._detector.sentence(text), self._asked([""]))

    def _asked(self, names: Sequence[str]) -> Asked:
        options = self._options
        own = {spaced(name): threshold for name, threshold in options.thresholds.items()}
        lowest = torch.tensor([own.get(spaced(name), options.threshold) for name in names])
        return Asked(lowest, options.limit, options.nms)

    def _of_batch(self, batch: Sequence[tuple[Picture, Tensor]], wanted: Sequence[_Wanted]) -> list[Detections]:
        """Parts of all pictures go through the network as many at a time as there are pictures."""
        boxes = [_parts(image, self._options) for _, image in batch]
        wanted = [each.in_parts() if len(own) > 1 else each for each, own in zip(wanted, boxes, strict=True)]
        parts = [(place, box) for place, each in enumerate(boxes) for box in each]
        found: list[list[_Part]] = [[] for _ in batch]
        for start in range(0, len(parts), len(batch)):
            some = parts[start : start + len(batch)]
            shown = [_cut(batch[place][1], box) for place, box in some]
            preprocess = self._preprocess
            sides = preprocess.size, preprocess.longest or preprocess.size, preprocess.interpolation
            pyramids = self._detector.see([fitted(image, *sides) for image in shown])
            answers = self._answers(pyramids, [wanted[place] for place, _ in some])
            for (place, box), answer in zip(some, answers, strict=True):
                found[place].append(_Part(box, *answer))
        return [
            _detections(item, image, each, parts)
            for (item, image), each, parts in zip(batch, wanted, found, strict=True)
        ]

    def _answers(self, pyramids: Any, wanted: Sequence[_Wanted]) -> list[tuple[Boxes, Spans]]:
        asked = [each.asked for each in wanted]
        if self._options.phrases:
            said: Any = [each.said for each in wanted]
            return self._detector.phrases(pyramids, said, asked, self._options.text_threshold)
        classes: Any = [each.said for each in wanted]
        return [(boxes, []) for boxes in self._detector.classes(pyramids, classes, asked)]


Box = tuple[int, int, int, int]  # left, top, right, bottom
Spans = list[tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class _Wanted:
    said: Vocabulary | Sentence
    asked: Asked

    def in_parts(self) -> _Wanted:
        """Of a picture that is looked at in parts, which find an object several times."""
        return replace(self, asked=replace(self.asked, nms=OF_PARTS)) if self.asked.nms is None else self


@dataclass(frozen=True)
class _Part:
    """What was found in a part of a picture, labels of sentences being places in its spans."""

    box: Box
    boxes: Boxes
    spans: Spans


def _parts(image: Tensor, options: DetectOptions) -> list[Box]:
    """The whole picture, and of one that is larger than a tile its tiles."""
    height, width = image.shape[1:]
    whole = (0, 0, width, height)
    side = options.tile
    if side is None or max(height, width) <= side:
        return [whole]
    downs, acrosses = (_starts(length, side, options.overlap) for length in (height, width))
    tiles = [(left, top, min(left + side, width), min(top + side, height)) for top in downs for left in acrosses]
    return [whole, *tiles]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Where tiles along a side begin: as few as overlap so far, evenly."""
    if length <= side:
        return [0]
    count = math.ceil((length - side) / max(side * (1 - overlap), 1)) + 1
    return [round(place * (length - side) / (count - 1)) for place in range(count)]


def _cut(image: Tensor, box: Box) -> Tensor:
    left, top, right, bottom = box
    return image[:, top:bottom, left:right]


def _detections(item: Picture, image: Tensor, wanted: _Wanted, parts: Sequence[_Part]) -> Detections:
    """What was found in all parts of a picture, in its own pixels."""
    spans = list(dict.fromkeys(span for part in parts for span in part.spans))
    placed = [_placed(part, spans) for part in parts]
    cut = [_cut_off(part, (image.shape[2], image.shape[1])) for part in parts]
    inner = joined_boxes([boxes[~off] for boxes, off in zip(placed, cut, strict=True)])
    outer = joined_boxes([boxes[off] for boxes, off in zip(placed, cut, strict=True)])
    whole = best_of([inner, outer[~covered(outer, inner, COVERED)]], wanted.asked)
    path = str(item) if isinstance(item, str | Path) else ""
    labels = whole.labels.cpu().numpy()
    arrays = whole.corners.float().cpu().numpy(), whole.scores.float().cpu().numpy(), labels
    size = (image.shape[1], image.shape[2])
    if isinstance(wanted.said, Vocabulary):
        return Detections(*arrays, wanted.said.names, size, path)
    text = wanted.said.text
    found = tuple(spans[label] for label in labels.tolist())
    names = [" ".join(text[begin:end] for begin, end in each) for each in found]
    different = tuple(dict.fromkeys(names))
    labels = np.array([different.index(name) for name in names], dtype=np.int64)
    return Detections(*arrays[:2], labels, different, size, path, found)


def _cut_off(part: _Part, size: tuple[int, int]) -> Tensor:
    """(n,) whether boxes touch an edge of their part inside of a picture of such width and height, beyond which the
    rest of an object may lie."""
    left, top, right, bottom = part.box
    corners = part.boxes.corners
    inside = corners.new_tensor([left > 0, top > 0, right < size[0], bottom < size[1]]) > 0
    near = torch.cat((corners[:, :2] < _EDGE, corners[:, 2:] > 1 - _EDGE), 1)
    return (near & inside).any(1)


def _placed(part: _Part, spans: Spans) -> Boxes:
    """Boxes of a part in pixels of the picture, with the labels of all parts."""
    left, top, right, bottom = part.box
    sides = part.boxes.corners.new_tensor((right - left, bottom - top) * 2)
    corners = part.boxes.corners * sides + part.boxes.corners.new_tensor((left, top) * 2)
    labels = part.boxes.labels
    if part.spans:
        labels = torch.tensor([spans.index(each) for each in part.spans], device=labels.device)[labels]
    return Boxes(corners, part.boxes.scores, labels)
