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
        return prefix, patches + self._resampled(grid)

    def _resampled(self, grid: tuple[int, int]) -> Tensor:  # (1, h*w, D)
        table = self.table[:, self.prefix :]
        if grid == self.grid:
            return table
        planes = _planes(table, self.grid)
        if self.offset:
            factors = tuple((want + self.offset) / have for want, have in zip(grid, self.grid, strict=True))
            planes = F.interpolate(planes, scale_factor=factors, mode=self.interpolation, antialias=self.antialias)
        else:
            planes = F.interpolate(planes, size=grid, mode=self.interpolation, antialias=self.antialias)
        assert planes.shape[-2:] == grid, f"position grid {tuple(planes.shape[-2:])} does not fit {grid}"
        return planes.flatten(2).transpose(1, 2).to(table.dtype)


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
        self.table = nn.Parameter(torch.empty(1, grid[0] * grid[1], width))
        nn.init.normal_(self.table, std=width**-0.5)

    def forward(self, prefix: Tensor | None, patches: Tensor, grid: tuple[int, int]) -> tuple[Tensor | None, Tensor]:
        """Adds positions to (B, h*w, D) patches; summary tokens pass."""
        if not self.training:
            return prefix, patches + self._resized(grid)
        positions = self._sampled(self._viewports(len(patches)), grid)
        seen = torch.rand(len(patches), 1, 1, device=patches.device) >= self.dropout
        return prefix, patches + positions * seen

    def _resized(self, grid: tuple[int, int]) -> Tensor:  # (1, h*w, D)
        planes = _planes(self.table, self.grid)
        side = max(grid)
        if self.grid != (side, side):
            planes = F.interpolate(planes, size=(side, side), mode="bilinear", align_corners=self.align_corners)
        return planes[..., : grid[0], : grid[1]].flatten(2).transpose(1, 2).to(self.table.dtype)

    def _viewports(self, batch: int) -> Tensor:
        """(B, 4): left, top, width, height of each picture's part of the table, which is a unit square."""

        def uniform(low: float, high: float) -> Tensor:
            return torch.rand(batch, device=self.table.device) * (high - low) + low

        scale = uniform(math.sqrt(0.1), 1.0)
        aspect = uniform(math.log(3 / 4), math.log(4 / 3)).exp()
        width, height = (scale * aspect).clamp_max(1), (scale / aspect).clamp_max(1)
        left, top = uniform(0, 1) * (1 - width), uniform(0, 1) * (1 - height)
        return torch.stack((left, top, width, height), dim=1)

    def _sampled(self, viewports: Tensor, grid: tuple[int, int]) -> Tensor:  # (B, 4) -> (B, h*w, D)
        left, top, width, height = viewports[:, :, None].unbind(1)  # each (B, 1)
        x = left + width * torch.linspace(0, 1, grid[1], device=viewports.device)  # (B, w)
        y = top + height * torch.linspace(0, 1, grid[0], device=viewports.device)  # (B, h)
        where = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1) * 2 - 1  # (B, h, w, 2)
        planes = _planes(self.table, self.grid).expand(len(viewports), -1, -1, -1)
        # Viewports end inside the table, so the padding only keeps rounding errors from reaching beyond its border.
        positions = F.grid_sample(planes, where.to(planes.dtype), padding_mode="border", align_corners=True)
        return positions.flatten(2).transpose(1, 2).to(self.table.dtype)


def _planes(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1, H*W, D) as (1, D, H, W), in float32 or better."""
    table = table.to(torch.promote_types(table.dtype, torch.float32))
    return table.reshape(1, *grid, -1).permute(0, 3, 1, 2)
