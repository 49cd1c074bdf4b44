"""Position embeddings of a grid of patches: learned tables, and cropped position embeddings (CPE)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Interpolation = Literal["bicubic", "bilinear"]


class LearnedPositions(nn.Module):
    """One learned vector a patch and a summary token; the grid is interpolated at other sizes than its own.

    Args:
        width: channels D.
        grid: (h, w) of the table.
        prefix: summary tokens, which have positions of their own.
        interpolation: how the grid is resampled.
        antialias: whether it is low-passed when it shrinks (DINOv2 with registers: yes; without, and DINO: no).
        offset: added to the wanted grid before the scale factor is computed, 0.1 in DINO and DINOv2 without
            registers, whose released outputs depend on it; 0 resamples to the exact size.
    """

    def __init__(
        self,
        width: int,
        grid: tuple[int, int],
        prefix: int,
        interpolation: Interpolation = "bicubic",
        antialias: bool = False,
        offset: float = 0.0,
    ):
        super().__init__()
        self.grid = grid
        self.prefix = prefix
        self.interpolation = interpolation
        self.antialias = antialias
        self.offset = offset
        self.table = nn.Parameter(torch.empty(1, prefix + grid[0] * grid[1], width))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, prefix: Tensor | None, patches: Tensor, grid: tuple[int, int]) -> tuple[Tensor | None, Tensor]:
        """Adds positions to (1, T, D) summary tokens, where there are any, and to (B, h*w, D) patches."""
        if prefix is not None:
            prefix = prefix + self.table[:, : self.prefix]
        return prefix, patches + self._resampled(grid).to(patches.dtype)

    def _resampled(self, grid: tuple[int, int]) -> Tensor:  # (1, h*w, D)
        table = self.table[:, self.prefix :]
        if grid == self.grid:
            return table
        planes = table.float().reshape(1, *self.grid, -1).permute(0, 3, 1, 2)  # (1, D, H, W)
        if self.offset:
            factors = tuple((want + self.offset) / have for want, have in zip(grid, self.grid, strict=True))
            planes = F.interpolate(planes, scale_factor=factors, mode=self.interpolation, antialias=self.antialias)
        else:
            planes = F.interpolate(planes, size=grid, mode=self.interpolation, antialias=self.antialias)
        assert planes.shape[-2:] == grid, f"position grid {tuple(planes.shape[-2:])} does not fit {grid}"
        return planes.flatten(2).transpose(1, 2)


class CroppedPositions(nn.Module):
    """CPE: a large table of which every training picture sees its own random crop, so that any size works later.

    While training, each picture gets a viewport of random scale in [sqrt(0.1), 1], aspect ratio in [3/4, 4/3] and
    place, sampled bilinearly from the table. In evaluation the table is resized to a square of the longer side of the
    grid and cropped at its top left, which keeps the aspect ratio. Summary tokens have no position.

    Args:
        width: channels D.
        grid: (h, w) of the table.
        align_corners: of the resize in evaluation; released RADIO models differ in it.
        dropout: share of training pictures that see no position at all.

    Source: Kim et al. 2023 (RO-ViT, arXiv 2305.07011) for the idea; AM-RADIO sec. 3 (arXiv 2312.06709) for viewports.
    """

    def __init__(self, width: int, grid: tuple[int, int], align_corners: bool = True, dropout: float = 0.1):
        super().__init__()
        self.grid = grid
        self.align_corners = align_corners
        self.dropout = dropout
        self.table = nn.Parameter(torch.randn(1, grid[0] * grid[1], width) * width**-0.5)

    def forward(self, prefix: Tensor | None, patches: Tensor, grid: tuple[int, int]) -> tuple[Tensor | None, Tensor]:
        """Adds positions to (B, h*w, D) patches; summary tokens pass."""
        positions = self._viewports(len(patches), grid) if self.training else self._resized(grid)
        return prefix, patches + positions.to(patches.dtype)

    def _planes(self) -> Tensor:  # (1, D, H, W)
        return self.table.float().reshape(1, *self.grid, -1).permute(0, 3, 1, 2)

    def _resized(self, grid: tuple[int, int]) -> Tensor:  # (1, h*w, D)
        planes = self._planes()
        side = max(grid)
        if self.grid != (side, side):
            planes = F.interpolate(planes, size=(side, side), mode="bilinear", align_corners=self.align_corners)
        return planes[..., : grid[0], : grid[1]].flatten(2).transpose(1, 2)

    def _viewports(self, batch: int, grid: tuple[int, int]) -> Tensor:  # (B, h*w, D)
        device = self.table.device

        def uniform(low: float, high: float) -> Tensor:
            return torch.rand(batch, device=device) * (high - low) + low

        scale = uniform(math.sqrt(0.1), 1.0)
        aspect = uniform(math.log(3 / 4), math.log(4 / 3)).exp()
        width, height = (scale * aspect).clamp(0, 1), (scale / aspect).clamp(0, 1)
        left, top = torch.rand(batch, device=device) * (1 - width), torch.rand(batch, device=device) * (1 - height)
        x = left[:, None] + width[:, None] * torch.linspace(0, 1, grid[1], device=device)  # (B, w)
        y = top[:, None] + height[:, None] * torch.linspace(0, 1, grid[0], device=device)  # (B, h)
        where = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1) * 2 - 1  # (B, h, w, 2)
        planes = self._planes().expand(batch, -1, -1, -1)
        positions = F.grid_sample(planes, where, mode="bilinear", padding_mode="zeros", align_corners=True)
        positions = positions.flatten(2).transpose(1, 2)
        return positions * (torch.rand(batch, 1, 1, device=device) >= self.dropout)
