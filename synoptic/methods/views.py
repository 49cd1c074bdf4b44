"""What a student and its teachers are shown: stages of a run, sizes at once, crops that all share, shifts, canvases.

Source: AM-RADIO sec. 4 (arXiv 2312.06709) for one crop that student and teachers share; RADIOv2.5 (arXiv 2412.07679)
for stages of rising resolution and several resolutions at once; C-RADIOv4 eq. 1 (arXiv 2601.17237) for shifts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from synoptic.data.draws import Draws
from synoptic.data.resample import resized_crop
from synoptic.data.transforms import random_boxes
from synoptic.methods.teachers import Teacher, View
from synoptic.types import Batch, present

FORMER = "+"  # in place of the names of a former student's spaces, which no teacher can have
RATIO = (3 / 4, 4 / 3)  # width over height of a crop, as in RandomResizedCrop


@dataclass(frozen=True)
class Stage:
    """A part of a run.

    Attributes:
        start: share of the run at which it begins.
        sizes: sides in pixels of the student's pictures; each gets an equal part of every batch.
    """

    start: float
    sizes: tuple[int, ...]


def parse_stages(spec: str, size: int) -> tuple[Stage, ...]:
    """`64@0,96@0.5,64+192@0.75` as stages; nothing is one stage of the run's `size`.

    Raises:
        ValueError: naming the entry that is wrong.
    """
    if not spec:
        return (Stage(0.0, (size,)),)
    stages = []
    for entry in spec.split(","):
        sides, at, share = entry.strip().partition("@")
        parts = sides.split("+")
        try:
            start = float(share) if at else 0.0
        except ValueError:
            start = -1.0
        if at and 1.0 <= start < math.inf:
            raise ValueError(f"stages={spec!r}: {entry!r} begins when the run is over; shares are from 0 to below 1")
        if not 0.0 <= start < 1.0 or not all(part.isdecimal() and int(part) for part in parts):
            raise ValueError(
                f"stages={spec!r}: {entry!r} is not of the form SIZE@SHARE or SIZE+SIZE@SHARE, such as 64+192@0.75"
            )
        if len(set(parts)) < len(parts):
            raise ValueError(f"stages={spec!r}: {entry!r} names a size twice")
        stages.append(Stage(start, tuple(map(int, parts))))
    if stages[0].start or any(after.start <= before.start for before, after in pairwise(stages)):
        raise ValueError(f"stages={spec!r}: the first begins at 0, and each later one at a larger share of the run")
    return tuple(stages)


@dataclass(frozen=True)
class Asked:
    """One picture side and place that somebody sees.

    Attributes:
        side: in pixels.
        offset: cells down and across by which the crop lies inside the region that all share.
    """

    side: int
    offset: tuple[int, int] = (0, 0)


class Shown:
    """What student and teachers see of pictures of one size.

    Args:
        size: side of the student's pictures in pixels.
        stride: side of its patches.
        teachers: those that take part at this size.
        scale: share of a picture's area that the crop keeps, lowest and highest.
        flip: share of the crops that are mirrored.
        shift: cells by which crops of student and teachers may lie apart, at most.

    Attributes:
        grid: patches along a side of the student's pictures.
        views: by teacher.
    """

    def __init__(
        self,
        size: int,
        stride: int,
        teachers: Mapping[str, Teacher],
        scale: tuple[float, float],
        flip: float,
        shift: int = 0,
    ):
        self.size, self.grid = size, size // stride
        self.scale, self.flip, self.shift = scale, flip, shift
        self.views: dict[str, View] = {name: teacher.view(self.grid) for name, teacher in teachers.items()}
        self.formers = {name for name, teacher in teachers.items() if teacher.is_former}

    @property
    def largest(self) -> int:
        """Side in pixels of the largest picture that anybody sees."""
        return max(self.size, *(view.side for view in self.views.values()), 0)

    def asked(self, step: int, seed: int) -> dict[str, Asked]:
        """What everybody sees in a step, the student by the name of ""."""
        asked = {"": self.size, **{name: view.side for name, view in self.views.items()}}
        if not self.shift:
            return {name: Asked(side) for name, side in asked.items()}
        draws = Draws(seed, torch.tensor([step]))
        together = {name: FORMER if name in self.formers else name for name in asked}  # one answers for all

        def offset(name: str) -> tuple[int, int]:
            down, across = (int(draws.integers(f"shift.{axis}.{name}", self.shift + 1)[0]) for axis in "yx")
            return down, across

        return {name: Asked(side, offset(together[name])) for name, side in asked.items()}

    def crops(self, batch: Batch, step: int, seed: int) -> dict[Asked, Tensor]:
        """(B, C, side, side) float32 of the same region of each picture, for all that is asked for."""
        images, sizes, position = present(batch.images), batch.sizes, present(batch.position)
        if sizes is None:
            sizes = torch.tensor([images.shape[-2:]]).expand(len(images), 2)
        draws = Draws(seed, position)
        boxes = random_boxes(sizes, self.scale, RATIO, draws, "crop.box")
        flips = draws.flags("crop.flip", self.flip)
        wanted = dict.fromkeys(self.asked(step, seed).values())
        return {
            each: resized_crop(images, self._inside(boxes, flips, each.offset), each.side, flips) for each in wanted
        }

    def _inside(self, boxes: Tensor, flips: Tensor, offset: tuple[int, int]) -> Tensor:
        """The part of (B, 4) boxes that lies at an offset in cells; of mirrored pictures at the mirrored place."""
        if not self.shift:
            return boxes
        cells = self.grid + self.shift
        left, top, right, bottom = boxes.double().unbind(1)
        wide, high = (right - left) / cells, (bottom - top) / cells
        across = torch.where(flips, self.shift - offset[1], offset[1])
        left, top = left + across * wide, top + offset[0] * high
        # What is rounded up must not leave the picture.
        right, bottom = torch.minimum(left + self.grid * wide, right), torch.minimum(top + self.grid * high, bottom)
        return torch.stack((left, top, right, bottom), dim=1)


def overlap(first: tuple[int, int], second: tuple[int, int], grid: int) -> tuple[Tensor, Tensor]:
    """Which patches of two crops of `grid` x `grid` cells, at offsets in cells, show the same place.

    Returns:
        Indices into the patches of the first and of the second, (n,) int64 each, in the same order.
    """

    def along(axis: int) -> tuple[range, range]:
        start, end = max(first[axis], second[axis]), min(first[axis], second[axis]) + grid
        return range(start - first[axis], end - first[axis]), range(start - second[axis], end - second[axis])

    rows, columns = along(0), along(1)
    indices = [(torch.tensor(rows[side])[:, None] * grid + torch.tensor(columns[side])).flatten() for side in (0, 1)]
    return indices[0], indices[1]


def parts_of(batch: Batch, count: int) -> Iterator[tuple[Batch, float]]:
    """The pictures of a batch in turns of `count`, with each part's share of the batch."""
    if count == 1:
        yield batch, 1.0
        return
    position = present(batch.position)
    for place in range(count):
        rows = (position.cpu() % count == place).nonzero()[:, 0]
        images, sizes = present(batch.images), batch.sizes
        yield (
            replace(
                batch,
                images=images[rows.to(images.device)],
                sizes=None if sizes is None else sizes[rows],
                position=position[rows],
            ),
            len(rows) / len(position),
        )
