"""The levels of a pyramid, made of the maps of a picture encoder.

Source: Grounding DINO (Liu et al. 2023, arXiv 2303.05499), and its authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from synoptic.models.deform_attn import Levels, Shape

_GROUPS = 32  # of the norm on each level


@dataclass(frozen=True)
class Pyramid:
    """Pictures as a detector sees them, before any word is known.

    Attributes:
        tokens: (S, D) packed.
        positions: (S, D) where and on which level they lie.
        levels: how they lie.
        valid_ratios: of each picture how much of the width and of the height of what the backbone saw it takes, the
            rest being filled up; measured in cells of the finest level.
    """

    tokens: Tensor
    positions: Tensor
    levels: Levels
    valid_ratios: tuple[tuple[float, float], ...]

    def split(self) -> list[Pyramid]:
        """Each picture by itself."""
        counts = list(self.levels.counts)
        parts = (self.tokens.split(counts), self.positions.split(counts), self.levels.shapes, self.valid_ratios)
        return [Pyramid(a, b, Levels((shapes,)), (share,)) for a, b, shapes, share in zip(*parts, strict=True)]


class Neck(nn.Module):
    """A backbone's maps as levels of one width, and coarser ones made of the last.

    Args:
        widths: channels of the maps.
        width: channels D of the levels.
        levels: how many there are to be, at least as many as maps.
        temperature: of the sines that say where a token lies.
    """

    def __init__(self, widths: Sequence[int], width: int, levels: int, temperature: float):
        super().__init__()
        self.width, self.temperature = width, temperature
        same: list[nn.Conv2d] = [nn.Conv2d(each, width, 1) for each in widths]
        halved = [
            nn.Conv2d(widths[-1] if not further else width, width, 3, 2, 1) for further in range(levels - len(widths))
        ]
        self.projections = nn.ModuleList([*same, *halved])
        self.norms = nn.ModuleList(nn.GroupNorm(_GROUPS, width) for _ in range(levels))
        self.level_embed = nn.Parameter(torch.randn(levels, width))
        for layer in (*same, *halved):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Sequence[Tensor]], valid_ratios: Sequence[tuple[float, float]]) -> Pyramid:
        """Packs the levels of pictures.

        Args:
            maps: of each group of pictures of one size its maps, (B, C, h, w), the finest first.
            valid_ratios: of each picture how much of the height and of the width it takes, the rest being filled up.
        """
        levels = [level for group in maps for level in self._pictures(group)]
        cut = [[_cut(level, ratio) for level in picture] for picture, ratio in zip(levels, valid_ratios, strict=True)]
        tokens = torch.cat([level.flatten(1).T for picture in cut for level in picture])
        positions = [self._positions(place, level) for picture in cut for place, level in enumerate(picture)]
        shapes = tuple(tuple((level.shape[1], level.shape[2]) for level in picture) for picture in cut)
        finest = zip(cut, levels, strict=True)
        taken = [
            (inner[0].shape[2] / outer[0].shape[2], inner[0].shape[1] / outer[0].shape[1]) for inner, outer in finest
        ]
        return Pyramid(tokens, torch.cat(positions), Levels(shapes), tuple(taken))

    def _pictures(self, maps: Sequence[Tensor]) -> list[list[Tensor]]:
        """The levels (D, h, w) of each picture of a group."""
        levels: list[Tensor] = []
        for place, (layer, norm) in enumerate(zip(self.projections, self.norms, strict=True)):
            beyond = place - len(maps)
            source = maps[place] if beyond < 0 else maps[-1] if not beyond else levels[-1]
            levels.append(norm(layer(source)))
        return [list(picture) for picture in zip(*(level.unbind() for level in levels), strict=True)]

    def _positions(self, place: int, level: Tensor) -> Tensor:
        """(h * w, D) of a level (D, h, w)."""
        _, height, width = level.shape
        where = grid_positions((height, width), self.width, self.temperature, level.device)
        return (where + self.level_embed[place]).to(level.dtype)


def _cut(level: Tensor, ratio: tuple[float, float]) -> Tensor:
    """What of a level (D, h, w) shows the picture, as nearest neighbours of its mask would say."""
    height, width = (max(math.ceil(side * part - 1e-6), 1) for side, part in zip(level.shape[1:], ratio, strict=True))
    return level[:, :height, :width]


def grid_positions(shape: Shape, width: int, temperature: float, device: torch.device) -> Tensor:
    """(h * w, D) float32, sines of where each cell of a grid lies: half of the channels say down, half across.

    Source: DETR (Carion et al. 2020, arXiv 2005.12872), sec. 3.2; counted from 1 and divided by the side, as in its
        code.
    """
    down, across = (_along(side, width // 2, temperature, device) for side in shape)
    both = torch.cat((down[:, None].expand(-1, shape[1], -1), across[None].expand(shape[0], -1, -1)), -1)
    return both.flatten(0, 1)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # so that trainings may use what inference has made
def _along(side: int, width: int, temperature: float, device: torch.device) -> Tensor:
    """(side, width) sines of places along a side, the last of which is at 1."""
    places = torch.arange(1, side + 1, device=device, dtype=torch.float32)
    return sines(places / (side + 1e-6), width, temperature)


def sines(values: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """(..., D) float32 at least, sines and cosines of numbers by turns, of ever longer waves; the shortest is 1."""
    wide = torch.promote_types(values.dtype, torch.float32)
    powers = torch.arange(width, device=values.device, dtype=torch.float32).div(2, rounding_mode="floor") * 2 / width
    angles = (values.to(wide) * (2 * math.pi))[..., None] / (temperature**powers)
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), -1).flatten(-2)
