"""Several small pictures on one canvas, so that a network that wants large pictures sees them at their own scale.

Source: RADIOv2.5, "Mosaic augmentation" (Heinrich et al. 2024, arXiv 2412.07679): a teacher that reads 1024 pixels sees
4 x 4 pictures of 256 at once, where one small picture, enlarged, would be out of its distribution and cost as much.
"""

from __future__ import annotations

import torch
from torch import Tensor


def assemble(pictures: Tensor, tiles: int) -> Tensor:
    """Canvases of `tiles` x `tiles` pictures, row by row; the last one begins anew with the first pictures.

    Args:
        pictures: (N, C, s, s).
        tiles: pictures down and across a canvas.
    Returns:
        (ceil(N / tiles^2), C, tiles * s, tiles * s).
    """
    count, channels, side, _ = pictures.shape
    canvases = -(-count // tiles**2)
    order = torch.arange(canvases * tiles**2, device=pictures.device) % count
    rows = pictures[order].unflatten(0, (canvases, tiles, tiles))  # (M, k, k, C, s, s)
    return rows.permute(0, 3, 1, 4, 2, 5).reshape(canvases, channels, tiles * side, tiles * side)


def cut(patches: Tensor, grid: tuple[int, int], tiles: int, count: int) -> tuple[Tensor, tuple[int, int]]:
    """The patches of each picture of the canvases that `assemble` makes.

    Args:
        patches: (M, h*w, D) of the canvases.
        grid: (h, w) of a canvas; multiples of `tiles`.
        tiles: pictures down and across a canvas.
        count: how many pictures were put there.
    Returns:
        (N, (h / tiles) * (w / tiles), D), and their grid.
    """
    inside = (grid[0] // tiles, grid[1] // tiles)
    assert (inside[0] * tiles, inside[1] * tiles) == grid, f"{tiles} pictures do not tile a grid of {grid}"
    rows = patches.unflatten(1, (tiles, inside[0], tiles, inside[1]))  # (M, k, h', k, w', D)
    rows = rows.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(0, 2)  # (M*k*k, h'*w', D)
    return rows[:count], inside
