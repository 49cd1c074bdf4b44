"""What is where in the picture: a linear probe from patch features to the pixels' classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from synoptic.data.sources import Source
from synoptic.evaluation.features import Encoded, Shown, Space, check_finite, encode
from synoptic.evaluation.ridge import LinearProbe, NormalEquations
from synoptic.types import EncodesImages, Features

IGNORE = 255  # pixels of this class are neither learned from nor judged

# A class counts by its frequency to the power -BALANCE, so that rare ones are not lost against the background. Held-out
# pictures choose how far the logits go on towards classes that count the same, and how strong the ridge is.
BALANCE = 0.5
FURTHER = (0.0, 0.125, 0.25, 0.375, 0.5)
RIDGES = (1e-4, 1e-2, 1.0)
HELD_OUT = 5  # every fifth training picture
HELD_OUT_SIDE = 64  # pixels: of larger masks, the choice looks at every second, third ... pixel


@dataclass(frozen=True)
class Confusion:
    """How many pixels of each class were taken for each class.

    Attributes:
        counts: (C, C) int64; counts[truth, said].
    """

    counts: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """(C,) float64, intersection over union; NaN for a class that is neither there nor said."""
        hits = self.counts.diagonal().astype(np.float64)
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)

    @property
    def miou(self) -> float:
        """Mean over the classes that are there or said."""
        return float(np.nanmean(self.iou))


class Segmentation:
    """Linear-probe segmentation: how well the classes of pixels can be read off frozen patch features.

    A ridge regression in closed form learns how much of each class there is in each patch. Its strength, and how far
    rare classes are favoured, are chosen by their mIoU on every fifth training picture; then it is fitted to all.
    The logits of a test picture's patches are resized bilinearly to the resolution of its mask. Models see whole
    pictures, squashed to their size, so that every pixel is judged.

    Yields "segmentation_miou": the mean intersection over union of all classes that occur in the test masks or in the
    answers, background included.

    Args:
        train: pictures with masks, to fit.
        test: pictures with masks, to judge by.
        adaptor: judges a student's answer in the space of this teacher; None takes the model's own patches.
    Raises:
        ValueError: for pictures without masks, and for masks that are none.
    """

    def __init__(self, train: Source, test: Source, adaptor: str | None = None):
        self.train, self.test, self.space = train, test, Space(adaptor)
        pixels, judged = count_pixels(train), count_pixels(test)
        self.classes = int(np.flatnonzero(pixels + judged).max()) + 1
        self._frequency = torch.from_numpy(pixels[: self.classes] / pixels.sum())

    def run(self, model: EncodesImages) -> Iterator[tuple[str, float]]:
        yield f"segmentation_miou{self.space.suffix}", self.judge(model, self.fit(model)).miou

    def fit(self, model: EncodesImages) -> LinearProbe:
        """The probe for a model's patches, from the training pictures alone."""
        every = range(len(self.train))
        held = every[HELD_OUT - 1 :: HELD_OUT] or every  # of fewer than five, the same ones fit and choose
        rest = sorted(set(every) - set(held)) or every
        equations = NormalEquations()
        for features, masks in self._patches(model, self.train, rest):
            equations.add(*self._rows(features, masks))
        probes = [equations.solve(ridge) for ridge in RIDGES]
        counts = np.zeros((len(RIDGES), len(FURTHER), self.classes, self.classes), np.int64)
        for features, masks in self._patches(model, self.train, held):
            equations.add(*self._rows(features, masks))
            for probe, found in zip(probes, counts, strict=True):
                self._try_out(probe, features, masks, found)
        scores = [[Confusion(found).miou for found in row] for row in counts]
        best, further = np.unravel_index(np.argmax(scores), (len(RIDGES), len(FURTHER)))
        probe = equations.solve(RIDGES[best])
        return probe.scaled(self._factors(FURTHER[further]).to(probe.bias))

    def judge(self, model: EncodesImages, probe: LinearProbe) -> Confusion:
        """What a probe of the model's patches makes of the test pictures."""
        counts = np.zeros((self.classes, self.classes), np.int64)
        for features, masks in self._patches(model, self.test, range(len(self.test))):
            for logits, mask in zip(probe.logits(features), masks, strict=True):
                tally(counts, mask, segment(logits, mask.shape))
        return Confusion(counts)

    def _patches(
        self, model: EncodesImages, source: Source, indices: Sequence[int]
    ) -> Iterator[tuple[Features, list[np.ndarray]]]:
        """The patches of pictures in the space that is judged, batch by batch, with their masks."""
        for batch in encode(model, source, indices, mode="squash"):
            features = self.space.of(batch.features)
            check_finite(features.patches, batch.index, source)
            yield features, read_masks(source, batch)

    def _rows(self, features: Features, masks: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Every patch with the weighted share of each class in it: (B*h*w, D) and (B*h*w, C)."""
        shares = torch.cat([class_shares(mask, features.grid, self.classes) for mask in masks])
        return features.patches.flatten(0, 1), shares * self._factors(BALANCE)

    def _factors(self, power: float) -> Tensor:
        """(C,) float64, frequency to the power -`power`; 1 for a class that no training pixel has."""
        return torch.where(self._frequency > 0, self._frequency, 1.0).pow(-power)

    def _try_out(self, probe: LinearProbe, features: Features, masks: Sequence[np.ndarray], counts: np.ndarray) -> None:
        """Adds to (len(FURTHER), C, C) counts what the probe makes of held-out pictures."""
        for logits, mask in zip(probe.logits(features), masks, strict=True):
            stride = -(-max(mask.shape) // HELD_OUT_SIDE)
            mask = mask[stride // 2 :: stride, stride // 2 :: stride]
            pixels = _resized(logits, mask.shape)
            for further, found in zip(FURTHER, counts, strict=True):
                said = (pixels * self._factors(further).to(pixels)[:, None, None]).max(0).indices
                tally(found, mask, said.cpu().numpy())


def segment(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """(height, width) int64, the likeliest class of each pixel, from (C, h, w) logits of patches."""
    return _resized(logits, size).max(0).indices.cpu().numpy()


def class_shares(mask: np.ndarray, grid: tuple[int, int], classes: int) -> Tensor:
    """Which share of each patch each class covers.

    Args:
        mask: (H, W) int64; pixels of class 255 belong to none.
        grid: (h, w) patches down and across.
        classes: how many there are.
    Returns:
        (h*w, classes) float64; a row sums to at most 1.
    """
    (height, width), (rows, columns) = mask.shape, grid
    row, column = np.arange(height) * rows // height, np.arange(width) * columns // width
    patch = row[:, None] * columns + column
    known = mask != IGNORE
    counts = np.bincount(patch[known] * classes + mask[known], minlength=rows * columns * classes)
    pixels = np.outer(np.bincount(row, minlength=rows), np.bincount(column, minlength=columns))
    return torch.from_numpy(counts.reshape(-1, classes) / np.maximum(pixels.reshape(-1, 1), 1))


def read_mask(path: Path) -> np.ndarray:
    """(H, W) int64, the class of each pixel.

    Raises:
        ValueError: for a file that cannot be read, or holds colours (a palette is fine) or classes above 255.
    """
    try:
        with Image.open(path) as image:
            mask = np.asarray(image)
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"mask {path} cannot be read: {error}") from None
    if mask.ndim != 2 or not 0 <= mask.min() <= mask.max() <= IGNORE or mask.dtype.kind == "f":
        raise ValueError(f"mask {path} should hold one class a pixel, 0 to 254, or {IGNORE} for none")
    return mask.astype(np.int64)


def masks_of(source: Source) -> Sequence[Path]:
    """The mask file of each picture.

    Raises:
        ValueError: there are none.
    """
    if source.masks is None:
        raise ValueError(f"{source.root} has no masks: put PNGs of the pictures' names into masks/ beside images/")
    return source.masks


def read_masks(source: Source, batch: Encoded | Shown) -> list[np.ndarray]:
    """The masks of a batch of pictures of `source`, (H, W) int64 each.

    Raises:
        ValueError: see `read_mask`; and for a mask of another shape than its picture.
    """
    paths = [masks_of(source)[index] for index in batch.index]
    masks = [read_mask(path) for path in paths]
    for path, mask, (height, width) in zip(paths, masks, batch.sizes, strict=True):
        # A mask may be smaller than its picture, with sides rounded.
        if abs(mask.shape[0] * width - mask.shape[1] * height) > max(height, width):
            raise ValueError(
                f"{path} is {mask.shape[1]} x {mask.shape[0]} pixels, a shape unlike that of "
                f"its picture, {width} x {height}"
            )
    return masks


def _resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, h, w) to (C, height, width), patches standing at the centres of what they cover."""
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def tally(counts: np.ndarray, truth: np.ndarray, said: np.ndarray) -> None:
    """Adds to (C, C) int64 counts of truth and answer the pixels of a mask (H, W) and of what was said of it."""
    known = truth != IGNORE
    classes = len(counts)
    counts += np.bincount(truth[known] * classes + said[known], minlength=classes**2).reshape(classes, classes)


def count_pixels(source: Source) -> np.ndarray:
    """(255,) int64, pixels of each class in all masks.

    Raises:
        ValueError: there are no masks, one is none (see `read_mask`), or none of their pixels has a class.
    """
    pixels = np.zeros(IGNORE + 1, np.int64)
    masks = masks_of(source)
    for path in masks:
        pixels += np.bincount(read_mask(path).ravel(), minlength=IGNORE + 1)
    pixels = pixels[:IGNORE]
    if not pixels.any():
        raise ValueError(f"{masks[0].parent}: no pixel of its masks has a class, all are {IGNORE}")
    return pixels
