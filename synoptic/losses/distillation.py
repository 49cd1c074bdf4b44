"""Losses by which a student learns the features of its teachers, one value a picture."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synoptic.losses.precision import wide
from synoptic.types import ALONE, Group

SummaryLoss = Literal["cosine", "l1", "l2", "smooth_l1", "angle"]
PatchLoss = Literal["hybrid", "mse", "smooth_l1", "cosine"]
Grid = tuple[int, int]  # patches down and across

COSINE_SHARE, SMOOTH_L1_SHARE = 0.9, 0.1  # AM-RADIO sec. 3.4

_MOMENTUM = 0.99  # of the running means: that of AM-RADIO's averages of losses, appendix E
_NARROWEST = 1e-4  # rad^2, (0.6 degrees)^2: a teacher that says so nearly the same of all pictures is weighed no more
_ENOUGH = 64  # summaries, before which a mean direction is mostly that of the very pictures that are compared to it


def summary_match(
    student: Tensor, teacher: Tensor, kind: SummaryLoss = "cosine", dispersion: Tensor | None = None
) -> Tensor:
    """How far the student's summaries are from the teacher's.

    Args:
        student: (B, C) the student's answer in the teacher's space.
        teacher: (B, C) the teacher's summary.
        kind: "cosine" is 1 - cosine, in [0, 2]; "l1", "l2" (of squares) and "smooth_l1" are means over the channels;
            "angle" is the squared angle in rad^2, over the dispersion of the teacher's summaries.
        dispersion: scalar in rad^2, see `Dispersion`; 1 where it is None. Read by "angle" alone.
    Returns:
        (B,) float32, float64 for such summaries.
    Raises:
        ValueError: an unknown kind.
    Source: AM-RADIO sec. 3.4 (arXiv 2312.06709), which compares the first four and takes the cosine; the angle
    C-RADIOv4 eq. 3 to 7 (arXiv 2601.17237).
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = wide(student), wide(teacher)
        if kind == "cosine":
            return 1.0 - F.cosine_similarity(student, teacher, dim=-1)
        if kind == "angle":
            squared = angles(student, teacher).square()
            return squared if dispersion is None else squared / dispersion.to(squared.dtype)
        return _differences(student, teacher, kind, SummaryLoss).mean(dim=-1)


def patch_match(student: Tensor, teacher: Tensor, kind: PatchLoss = "hybrid", seen: Tensor | None = None) -> Tensor:
    """How far the student's patches are from the teacher's, the mean over those that count.

    Args:
        student: (B, N, D) the student's patches in the teacher's space.
        teacher: (B, N, D) the teacher's patches on the same grid.
        kind: "hybrid" is 0.9 (1 - cosine) + 0.1 smooth L1, "cosine" the first of the two; "mse" and "smooth_l1" are
            means over the channels. Each patch has a cosine of its own.
        seen: (B, N) bool, the patches that count; None counts all.
    Returns:
        (B,) float32, float64 for such patches; 0 for a picture of which no patch counts.
    Raises:
        ValueError: an unknown kind.
    Source: hybrid AM-RADIO sec. 3.4 (arXiv 2312.06709); mse, of standardised features, PHI-S (arXiv 2410.01680).
    """
    with torch.autocast(student.device.type, enabled=False):
        values = _of_patches(wide(student), wide(teacher), kind)  # (B, N)
        if seen is None:
            return values.mean(dim=1)
        return torch.where(seen, values, 0.0).sum(dim=1) / seen.sum(dim=1).clamp(min=1)


def angles(one: Tensor, other: Tensor) -> Tensor:
    """(...,) angle between vectors (..., C), in radians, in [0, pi]; half of pi where one is zero, 0 where both are.

    The arc cosine loses half the digits near 0 and pi, and its gradient is infinite there. Twice the arc tangent of
    |a - b| / |a + b|, for a and b of length 1, is exact, and its gradient is 0 at both.

    Source: Kahan, "How futile are mindless assessments of roundoff", 2006, sec. 12.
    """
    one, other = F.normalize(wide(one), dim=-1), F.normalize(wide(other), dim=-1)
    apart, along = (one - other).norm(dim=-1), (one + other).norm(dim=-1)
    return 2.0 * torch.atan2(apart, along)


class Dispersion(nn.Module):
    """How far a teacher's summaries lie from their mean direction, a running mean over the steps.

    A teacher whose summaries lie close together is matched within a small angle by a student that knows the mean alone;
    over its dispersion that angle is 1, as it is for every other teacher.

    Args:
        width: channels C of the summaries.

    Attributes:
        mean: (C,) running mean of the summaries.
        spread: scalar, running mean of their squared angles to its direction.
        weight: scalar, of all that the two hold, from 0 to 1; they are to be divided by it.
        count: scalar, how many summaries were seen.
    Source: C-RADIOv4 eq. 3 to 7 (arXiv 2601.17237); 0.69 for SigLIP2-g, 2.19 for DINOv3-7B there.
    """

    def __init__(self, width: int):
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.spread: Tensor
        self.register_buffer("spread", torch.zeros((), dtype=torch.float64))
        self.weight: Tensor
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))
        self.count: Tensor
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, summaries: Tensor, group: Group = ALONE) -> None:
        """Takes in the summaries of all processes.

        Args:
            summaries: (B, C) of this process; B may differ between processes, and be 0.
            group: the processes.
        """
        summaries = summaries.double()
        sums = group.sum(torch.cat((summaries.sum(0), summaries.new_full((1,), len(summaries)))))
        count = sums[-1].clamp(min=1.0)
        share = (sums[-1] > 0).double() * (1.0 - _MOMENTUM)  # a step without summaries changes nothing
        self.mean.lerp_(sums[:-1] / count, share)
        spread = group.sum(angles(summaries, self.mean.expand_as(summaries)).square().sum())
        self.spread.lerp_(spread / count, share)
        self.weight.lerp_(torch.ones_like(self.weight), share)
        self.count += sums[-1]

    @property
    def value(self) -> Tensor:
        """Scalar float32 in rad^2, at least 1e-4; 1 before 64 summaries were seen."""
        spread = (self.spread / self.weight).clamp(min=_NARROWEST)
        return torch.where(self.count >= _ENOUGH, spread, 1.0).float()


def on_grid(patches: Tensor, grid: Grid, wanted: Grid) -> Tensor:
    """(B, h*w, D) patches resampled bilinearly to another grid, (B, H*W, D).

    Where the grid becomes smaller, every patch counts: the filter grows with the distance of the new ones.
    """
    if grid == wanted:
        return patches
    planes = wide(patches).transpose(1, 2).unflatten(2, grid)  # (B, D, h, w)
    shrinks = wanted[0] < grid[0] or wanted[1] < grid[1]
    planes = F.interpolate(planes, size=wanted, mode="bilinear", align_corners=False, antialias=shrinks)
    return planes.flatten(2).transpose(1, 2)


def on_one_grid(
    student: Tensor,
    student_grid: Grid,
    teacher: Tensor,
    teacher_grid: Grid,
    to: Literal["larger", "smaller"] = "larger",
) -> tuple[Tensor, Tensor]:
    """Patches of student and teacher side by side.

    Args:
        student: (B, h*w, D) on `student_grid`.
        teacher: (B, h'*w', D') on `teacher_grid`.
        to: the grid on which both are compared, each way for itself. "larger" is AM-RADIO's (sec. 4, "Resolution
            Mismatch"); "smaller" costs less where a teacher's grid is much the larger one (PHI-S, arXiv 2410.01680,
            first stage).
    Returns:
        Both, (B, H*W, D) and (B, H*W, D').
    """
    pick = max if to == "larger" else min
    wanted = (pick(student_grid[0], teacher_grid[0]), pick(student_grid[1], teacher_grid[1]))
    return on_grid(student, student_grid, wanted), on_grid(teacher, teacher_grid, wanted)


def _of_patches(student: Tensor, teacher: Tensor, kind: PatchLoss) -> Tensor:
    """(B, N) from (B, N, D)."""
    if kind == "cosine":
        return 1.0 - F.cosine_similarity(student, teacher, dim=-1)
    if kind == "hybrid":
        smooth = F.smooth_l1_loss(student, teacher, reduction="none").mean(dim=-1)
        return COSINE_SHARE * _of_patches(student, teacher, "cosine") + SMOOTH_L1_SHARE * smooth
    return _differences(student, teacher, kind, PatchLoss).mean(dim=-1)


def _differences(student: Tensor, teacher: Tensor, kind: str, kinds: object) -> Tensor:
    """The loss of each number by itself."""
    losses = {"l1": F.l1_loss, "l2": F.mse_loss, "mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}
    if kind not in get_args(kinds):
        raise ValueError(f"kind={kind!r} is none of {', '.join(get_args(kinds))}")
    return losses[kind](student, teacher, reduction="none")
