"""Asking for parts of a picture: points and boxes in, masks out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synoptic.data.inputs import Picture, read_batches
from synoptic.data.transforms import inside
from synoptic.models.sam import Sam, upscaled
from synoptic.types import Preprocess, Segments, present

Numbers = Sequence[Any] | np.ndarray | Tensor

AT_ONCE = 8  # prompts that are decoded together: half a gigabyte of a released SAM, however many there are
_POINTS = "points as [(x, y), ...], or as one such list an object"
_BOXES = "boxes as [(left, top, right, bottom), ...]"


@dataclass(frozen=True)
class Prompt:
    """What is said of one object.

    Attributes:
        points: (k, 2) x and y in pixels of the picture.
        labels: (k,) 1 for a point in the object, 0 for one outside of it.
        box: (4,) left, top, right, bottom, or None.
    """

    points: np.ndarray
    labels: np.ndarray
    box: np.ndarray | None

    @property
    def kind(self) -> tuple[int, bool]:
        """Prompts of one kind can be decoded together."""
        return len(self.points), self.box is not None

    @property
    def is_ambiguous(self) -> bool:
        """Whether it may mean a thing, a part of it, or what it is a part of."""
        return self.kind == (1, False)


def open_segmenter(
    model: Any, image: Picture, bands: int | None, placed: Callable[[Tensor], Tensor], name: str
) -> Segmenter:
    """One picture that will be asked for many masks; see `VisionModel.segmenter`.

    Args:
        model: a SAM, or anything that is refused.
        image: of any kind.
        bands: how many it has at full depth; None reads 8-bit RGB.
        placed: brings pictures to where the model computes.
        name: of the model, for errors.
    Raises:
        ValueError: for no picture or several, and for a model that is no SAM, or one without its decoder.
    """
    if not isinstance(model, Sam):
        raise ValueError(f"{name} cannot segment: take a SAM, its makers' file or a folder of SamModel")
    if model.decoder is None:
        raise ValueError(f"{name} is the image encoder of a SAM alone, and cannot segment: take the whole model")
    config = model.config
    shape = Preprocess(config.image_size, "pad", bands, interpolation="bilinear", fill=config.mean)
    batch, *others = islice(read_batches(image, shape, batch_size=1), 2)
    if others:
        raise ValueError("several pictures were given, and masks are asked of one: take one after the other")
    return Segmenter(model, placed(batch.images), batch.sizes[0])


class Segmenter:
    """One picture that is asked for masks. The network looks at it once, at the first question.

    Args:
        sam: with a decoder.
        image: (1, C, S, S), the picture as the network reads it: padded on the right and below.
        size: height and width of the picture as it was.
    """

    def __init__(self, sam: Sam, image: Tensor, size: tuple[int, int]):
        self.size = size
        self._sam, self._image = sam, image
        self._decoder = present(sam.decoder)
        self._inside = inside(size, sam.config.image_size)

    @cached_property
    @torch.no_grad()
    def embedding(self) -> Tensor:
        """(1, D, h, w), what the network makes of the picture."""
        features = self._sam(self._image)
        return features.patches.transpose(1, 2).unflatten(2, features.grid)

    @torch.no_grad()
    def segment(
        self,
        points: Numbers | None = None,
        boxes: Numbers | None = None,
        labels: Numbers | None = None,
        alternatives: bool = False,
    ) -> Segments:
        """The objects that points and boxes mean, in the order in which they are asked for.

        A single point may mean a shirt or who wears it: of the three masks that the model has for it, that of the
        highest score is taken. For any other prompt the model has one mask, which is better then.

        Args:
            points: [(x, y), ...] in pixels of the picture, from its upper left corner: all on or off one object. Or a
                list of such lists, one an object.
            boxes: [(left, top, right, bottom), ...] in the same pixels, one an object. With points, those of the same
                object stand at the same place.
            labels: 1 for each point that is on its object, 0 for each that is not, in the form of `points`; None takes
                all to be on it.
            alternatives: all three masks of every object, those of higher scores first.
        Returns:
            Masks (n, H, W) bool at the picture's own size and scores (n,), one an object, or three.
        Raises:
            ValueError: nothing is asked, points or boxes lie outside of the picture or have other forms, or labels or
                boxes do not fit the points.
        Source: the advice of the makers in `SamPredictor.predict` of facebookresearch/segment-anything: of an ambiguous
        prompt, such as a single click, several masks and the one with the best predicted quality; one mask otherwise.
        """
        prompts = read_prompts(points, boxes, labels, self.size)
        count = len(prompts) * (self._decoder.masks.num_multimask_outputs if alternatives else 1)
        masks, scores = np.empty((count, *self.size), bool), np.empty(count, np.float32)
        for place, (logits, score) in enumerate(self._answers(prompts, alternatives)):
            masks[place] = (self._upscaled(logits) > 0).cpu().numpy()
            scores[place] = score
        return Segments(masks, scores)

    def _answers(self, prompts: Sequence[Prompt], alternatives: bool) -> Iterator[tuple[Tensor, float]]:
        """Logits (h, w) and score of every mask."""
        for _, alike in groupby(prompts, lambda prompt: prompt.kind):
            group = list(alike)
            for start in range(0, len(group), AT_ONCE):
                logits, scores = self._decoded(group[start : start + AT_ONCE], alternatives)
                yield from zip(logits.flatten(0, 1), scores.flatten().tolist(), strict=True)

    def _decoded(self, prompts: Sequence[Prompt], alternatives: bool) -> tuple[Tensor, Tensor]:
        """(n, m, h, w) logits and (n, m) scores, higher ones first, of prompts of one kind."""
        first = prompts[0]
        logits, scores = self._decoder(
            self.embedding,
            self._placed([prompt.points for prompt in prompts]) if len(first.points) else None,
            torch.tensor(np.stack([prompt.labels for prompt in prompts]), device=self.embedding.device),
            None if first.box is None else self._placed([present(p.box).reshape(2, 2) for p in prompts]).flatten(1),
            several=alternatives or first.is_ambiguous,
        )
        order = scores.argsort(dim=1, descending=True, stable=True)
        order = order if alternatives else order[:, :1]
        prompt = torch.arange(len(prompts), device=order.device)[:, None]
        return logits[prompt, order], scores[prompt, order]

    def _placed(self, places: Sequence[np.ndarray]) -> Tensor:
        """(n, k, 2) float64 (high frequencies are made of them), points of the picture in what the network reads."""
        scale = np.array(self._inside[::-1]) / np.array(self.size[::-1])
        return torch.tensor(np.stack(places) * scale, device=self.embedding.device)

    def _upscaled(self, logits: Tensor) -> Tensor:
        return upscaled(logits[None, None].float(), self._sam.config.image_size, self._inside, self.size)[0, 0]


def read_prompts(
    points: Numbers | None, boxes: Numbers | None, labels: Numbers | None, size: tuple[int, int]
) -> list[Prompt]:
    """What points and boxes say, object by object; see `Segmenter.segment`.

    Args:
        points, boxes, labels: as there.
        size: height and width of the picture.
    Raises:
        ValueError: as there.
    """
    nested = points is not None and _is_nested(points)
    asked = [] if points is None else [_rows(each, 2, _POINTS) for each in (points if nested else [points])]
    frames = np.empty((0, 4)) if boxes is None else _rows(boxes, 4, _BOXES)
    if not asked and not len(frames):
        raise ValueError(
            "nothing says what to segment: give points=[(x, y)], boxes=[(left, top, right, bottom)] or both"
        )
    if asked and len(frames) and len(asked) != len(frames):
        raise ValueError(
            f"{len(frames)} boxes are {len(frames)} objects, and points are given of {len(asked)}; "
            "give one list of points a box"
        )
    marks = _labels(labels, asked, nested)
    for rows in asked:
        _check_points(rows, size)
    _check_boxes(frames, size)
    nowhere = [np.empty((0, 2))] * len(frames), [np.empty(0, np.int64)] * len(frames)
    asked, marks = (asked, marks) if asked else nowhere
    sides = list(frames) if len(frames) else [None] * len(asked)
    return [Prompt(*each) for each in zip(asked, marks, sides, strict=True)]


def _is_nested(points: Numbers) -> bool:
    """Whether points are lists of points, one an object."""
    try:
        return np.ndim(points[0]) == 2
    except (TypeError, ValueError, LookupError):
        raise ValueError(f"expected {_POINTS}, got {_short(points)}") from None


def _rows(values: Any, width: int, form: str) -> np.ndarray:
    """(n, width) float64; a single row may stand alone."""
    try:
        rows = np.atleast_2d(np.asarray(values.cpu() if isinstance(values, Tensor) else values, np.float64))
    except (TypeError, ValueError):
        rows = np.empty(0)
    if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
        raise ValueError(f"expected {form}, got {_short(values)}")
    return rows


def _labels(labels: Numbers | None, asked: Sequence[np.ndarray], nested: bool) -> list[np.ndarray]:
    """Which points of each object are on it, (k,) int64 each."""
    if labels is None:
        return [np.ones(len(rows), np.int64) for rows in asked]
    try:
        marks = [np.asarray(each, np.float64).reshape(-1) for each in (labels if nested else [labels])]
    except (TypeError, ValueError):
        raise ValueError(f"expected labels in the form of the points, got {_short(labels)}") from None
    counts, wanted = [len(each) for each in marks], [len(rows) for rows in asked]
    if counts != wanted:
        raise ValueError(f"labels of {_listed(counts)} points do not fit points, of which there are {_listed(wanted)}")
    if not all(np.isin(each, (0, 1)).all() for each in marks):
        raise ValueError(f"labels are 1 for a point on the object and 0 for one beside it, got {_short(labels)}")
    return [each.astype(np.int64) for each in marks]


def _check_points(points: np.ndarray, size: tuple[int, int]) -> None:
    height, width = size
    for x, y in points.tolist():
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"the point {x:g},{y:g} lies outside of the picture, {width} pixels wide and {height} high"
            )


def _check_boxes(boxes: np.ndarray, size: tuple[int, int]) -> None:
    height, width = size
    for left, top, right, bottom in boxes.tolist():
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(
                f"the box {left:g},{top:g},{right:g},{bottom:g} should be left, top, right, bottom with left < right "
                f"and top < bottom, inside of a picture {width} pixels wide and {height} high"
            )


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts)) or "none"


def _short(value: Any) -> str:
    """A value in one line that is not long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
