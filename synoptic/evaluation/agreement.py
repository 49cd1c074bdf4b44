"""Does a student say what its teachers say, and at which sizes of the pictures?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from synoptic.data.sources import Source
from synoptic.evaluation.features import check_finite, show_each
from synoptic.evaluation.sizes import rising_sizes, squarely
from synoptic.types import EncodesBlocks, EncodesImages, EncodesSizes, Features, Preprocess

LEVEL = 1e-12  # of a channel's mean square: what varies less is rounding


class Agreement:
    """A student against its teachers, as a curve over the size at which it sees the pictures.

    A teacher sees each picture at its own size and as it was trained to (one that pads: the largest centred square, as
    in the student's training); the student sees the very same region at every size. Patches are compared on the larger
    of the two grids, resampled bilinearly.

    Yields for each teacher T and each size S, the smallest first:

    - "agreement_T_cosine@S": the mean cosine of a patch of the student and the teacher's at the same place;
    - "agreement_T_error@S": the mean square of their difference, each channel in units of the teacher's variance there
      over all patches of all pictures: 0 is best, and 1 is what answering the teacher's mean gives;
    - "agreement_T_summary@S": the mean cosine of the summaries, where both have one;

    and of several sizes "agreement_T_drop": the largest fall of the cosine from one size to the next larger one. A
    student that changes its mode between two sizes (CLIP and DINO below, SAM above) falls far there.

    Args:
        source: the pictures.
        teachers: by the names of the student's adaptors.
        sizes: sides in pixels; see `rising_sizes`.
    Source: patches on the larger grid as in AM-RADIO sec. 4 (arXiv 2312.06709); mode switching as RADIOv2.5 calls it
        (arXiv 2412.07679).
    """

    def __init__(self, source: Source, teachers: Mapping[str, EncodesImages], sizes: Sequence[int] | None = None):
        self.source, self.teachers, self.sizes = source, dict(teachers), sizes

    def run(self, model: EncodesImages) -> Iterator[tuple[str, float]]:
        sizes = self._checked(model)  # here, before any picture is read
        return self._scores(model, sizes)

    def _checked(self, model: EncodesImages) -> tuple[int, ...]:
        check_names(self.teachers, model.adaptors if isinstance(model, EncodesSizes) else ())
        for name, teacher in self.teachers.items():
            if teacher.preprocess.bands != model.preprocess.bands:
                read = [each.preprocess.bands or "8-bit RGB" for each in (teacher, model)]
                raise ValueError(f"teachers={name}: reads other bands ({read[0]}) than the student ({read[1]})")
        return rising_sizes(model, self.sizes)

    def _scores(self, model: EncodesImages, sizes: Sequence[int]) -> Iterator[tuple[str, float]]:
        found = self.judge(model, sizes)
        for name in self.teachers:
            curve = [found[name, size] for size in sizes]
            for size, each in zip(sizes, curve, strict=True):
                yield f"agreement_{name}_cosine@{size}", each.cosine
                yield f"agreement_{name}_error@{size}", each.error
                if each.summary is not None:
                    yield f"agreement_{name}_summary@{size}", each.summary
            if len(sizes) > 1:
                yield f"agreement_{name}_drop", drop([each.cosine for each in curve])

    def judge(self, model: EncodesImages, sizes: Sequence[int]) -> dict[tuple[str, int], Agreed]:
        """What each teacher and the student agree about, by name and size."""
        native = {name: squarely(teacher.preprocess) for name, teacher in self.teachers.items()}
        views = {(name, size): squarely(way, size) for name, way in native.items() for size in sizes}
        sums = {key: _Sums() for key in views}
        for batch in show_each([*native.values(), *views.values()], self.source):
            answers: dict[Preprocess, Features] = {}  # teachers that are shown the same share the student's answer
            said: dict[str, Features] = {}
            for (name, size), way in views.items():
                if way not in answers:
                    answers[way] = _asked(model, batch.images[way])
                mine = answers[way].adaptors[name]
                if name not in said:
                    said[name] = taught(name, self.teachers[name], batch.images[native[name]], mine)
                for part in (mine.patches, mine.summary, said[name].patches, said[name].summary):
                    if part is not None:
                        check_finite(part, batch.index, self.source)
                sums[name, size].add(mine, said[name])
        return {(name, size): each.agreed(name) for (name, size), each in sums.items()}


@dataclass(frozen=True)
class Agreed:
    """How alike a student and a teacher answer.

    Attributes:
        cosine: of patches, the mean.
        error: of patches, in units of the teacher's variance.
        summary: cosine of summaries, the mean; None where one of them has none.
    """

    cosine: float
    error: float
    summary: float | None


def drop(curve: Sequence[float]) -> float:
    """The largest fall from a value to the next; 0 where there is none."""
    return max([0.0, *(before - after for before, after in pairwise(curve))])


def check_names(names: Iterable[str], adaptors: Sequence[str]) -> None:
    """Refuses teachers that a student has no adaptors for.

    Raises:
        ValueError: there are none, or the student does not answer for one of them.
    """
    if not adaptors:
        raise ValueError("teachers=: the model has no adaptors to compare with teachers; take a student")
    if not list(names):
        form = f"teachers={adaptors[0]}:MODEL"
        raise ValueError(f"on=agreement: compares with teachers, and there are none; give them as {form}")
    for name in names:
        if name not in adaptors:
            raise ValueError(
                f"teachers={name}: the student has no such adaptor; its adaptors are {', '.join(adaptors)}"
            )


@dataclass
class _Sums:
    """Sums over patches and pictures, float64, of one teacher at one size."""

    patches: int = 0
    pictures: int = 0
    cosine: float = 0.0
    summary: float | None = None
    errors: Tensor = field(default_factory=lambda: torch.zeros(()))  # (D,) of squared differences
    values: Tensor = field(default_factory=lambda: torch.zeros(()))  # (D,) of the teacher
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))  # (D,)

    def add(self, mine: Features, theirs: Features) -> None:
        grid = max(mine.grid[0], theirs.grid[0]), max(mine.grid[1], theirs.grid[1])
        students, teachers = (_on_grid(each, grid).cpu() for each in (mine, theirs))
        self.patches += teachers.shape[:2].numel()
        self.pictures += len(teachers)
        for student, teacher in zip(students, teachers, strict=True):  # in float64 not all at once
            student, teacher = student.double(), teacher.double()
            self.cosine += float(F.cosine_similarity(student, teacher, dim=1).sum())
            self.errors = self.errors + (student - teacher).square().sum(0)
            self.values = self.values + teacher.sum(0)
            self.squares = self.squares + teacher.square().sum(0)
        if mine.summary is not None and theirs.summary is not None:
            alike = F.cosine_similarity(mine.summary.cpu().double(), theirs.summary.cpu().double(), dim=1)
            self.summary = float(alike.sum()) + (self.summary or 0.0)

    def agreed(self, name: str) -> Agreed:
        square = self.squares / self.patches
        variance = square - (self.values / self.patches).square()
        varies = variance > LEVEL * square
        if not varies.any():
            raise ValueError(
                f"teachers={name}: answers the same to every patch, and so there is nothing to agree about"
            )
        error = float((self.errors / self.patches / variance)[varies].mean())
        summary = None if self.summary is None else self.summary / self.pictures
        return Agreed(self.cosine / self.patches, error, summary)


@torch.no_grad()
def _asked(model: EncodesImages, images: Tensor) -> Features:
    return model.encode_image(images).float()


@torch.no_grad()
def taught(name: str, teacher: EncodesImages, images: Tensor, wanted: Features) -> Features:
    """What a teacher answers, in the channels of the student's answer: its patches, or those of its last block, before
    what comes behind it, since a student may have learned from a SAM before its neck (AM-RADIO, table 8).

    Args:
        name: of the teacher, for messages.
        teacher: the model.
        images: (B, C, S, S) float in [0, 1].
        wanted: what the student answers in its space, to any picture.
    Raises:
        ValueError: it answers in other channels.
    """
    answer = teacher.encode_image(images)
    if not _same_channels(answer.patches, wanted.patches) and isinstance(teacher, EncodesBlocks):
        last = _last_block(teacher, images)
        if last is not None and _same_channels(last.patches, wanted.patches):
            answer = replace(last, summary=answer.summary)
    for given, asked in ((answer.patches, wanted.patches), (answer.summary, wanted.summary)):
        if given is not None and asked is not None and not _same_channels(given, asked):
            channels = f"answers with {given.shape[-1]} channels, the student's adaptor {name} with {asked.shape[-1]}"
            raise ValueError(f"teachers={name}: {channels}; give the teacher that it learned from")
    return answer.float()


def _same_channels(one: Tensor, other: Tensor) -> bool:
    return one.shape[-1] == other.shape[-1]


def _last_block(teacher: EncodesBlocks, images: Tensor) -> Features | None:
    try:
        return teacher.encode_image(images, (-1,)).layers[0]
    except ValueError:  # it tells nothing of its blocks
        return None


def _on_grid(features: Features, grid: tuple[int, int]) -> Tensor:
    """(B, H*W, D) patches, resampled bilinearly where their grid is another."""
    if features.grid == grid:
        return features.patches
    planes = features.patches.transpose(1, 2).unflatten(2, features.grid)  # (B, D, h, w)
    return F.interpolate(planes, size=grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
