"""Losses by which a student learns the features of its teachers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

COSINE_SHARE, SMOOTH_L1_SHARE = 0.9, 0.1  # AM-RADIO sec. 3.4


def summary_match(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine similarity, the mean over the batch.

    Args:
        student: (B, C) the student's answer in the teacher's space.
        teacher: (B, C) the teacher's summary.
    Returns:
        Scalar float32 in [0, 2].
    Source: AM-RADIO sec. 3.4 (arXiv 2312.06709).
    """
    return 1.0 - F.cosine_similarity(student.float(), teacher.float(), dim=-1).mean()


def patch_match(student: Tensor, teacher: Tensor) -> Tensor:
    """0.9 (1 - cosine) + 0.1 smooth L1, the cosine a patch, the mean over patches and batch.

    Args:
        student: (B, N, D) the student's patches in the teacher's space.
        teacher: (B, N, D) the teacher's patches on the same grid.
    Returns:
        Scalar float32.
    Source: AM-RADIO sec. 3.4 (arXiv 2312.06709).
    """
    student, teacher = student.float(), teacher.float()
    cosine = 1.0 - F.cosine_similarity(student, teacher, dim=-1).mean()
    return COSINE_SHARE * cosine + SMOOTH_L1_SHARE * F.smooth_l1_loss(student, teacher)


def on_grid(patches: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """(B, h*w, D) patches resampled bilinearly to another grid, (B, H*W, D)."""
    if grid == wanted:
        return patches
    planes = patches.transpose(1, 2).unflatten(2, grid)  # (B, D, h, w)
    planes = F.interpolate(planes.float(), size=wanted, mode="bilinear", align_corners=False)
    return planes.flatten(2).transpose(1, 2)


def to_larger_grid(
    student: Tensor, student_grid: tuple[int, int], teacher: Tensor, teacher_grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Both patch features on the larger of the two grids, side by side (AM-RADIO sec. 4, "Resolution Mismatch")."""
    wanted = (max(student_grid[0], teacher_grid[0]), max(student_grid[1], teacher_grid[1]))
    return on_grid(student, student_grid, wanted), on_grid(teacher, teacher_grid, wanted)
