"""Swin Transformer: attention in windows that are shifted from block to block, on a pyramid of stages.

Pictures of any sizes are packed: their patches are one tensor (T, C), picture after picture, row by row. Tables of rows
say which patches make a window, and which four are merged into one. So nothing is computed for what fills up windows
that reach beyond a picture, but for what other patches see there.

Source: Liu et al. 2021 (arXiv 2103.14030); any size of picture and a norm on each stage that is answered with, as in
its authors' code for detection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synoptic.models.bounds import MOST_BLOCKS, check_sizes
from synoptic.models.layers import Mlp, Normalize, init_linear
from synoptic.models.linear import Linear
from synoptic.models.parts import in_parts
from synoptic.models.vit import IMAGENET_MEAN, IMAGENET_STD
from synoptic.types import Features

Grid = tuple[int, int]  # patches down and across

APART = -100.0  # added to scores of patches that a shift brings together from opposite sides (its authors' code)
_EPS = 1e-5  # of norms outside of the blocks


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """Everything that decides the function of a Swin Transformer, beside its weights. The defaults are Swin-T's.

    Attributes:
        width: channels of the first stage; each further one has twice as many.
        depths: blocks of each stage.
        heads: of each stage.
        window: side of the windows in patches.
        hidden: times by which the feed-forward layers are wider than the others.
        patch_size: side of a patch in pixels.
        channels: bands of the pictures.
        stages: those that can be asked for as `layers`, counted from 0; the last is among them.
        drop_path: stochastic depth of the last block, rising linearly from zero at the first.
        norm_eps: of the norms inside the blocks.
        mean, std: pixel statistics a band, of pictures in [0, 1].
    """

    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    hidden: int = 4
    patch_size: int = 4
    channels: int = 3
    stages: tuple[int, ...] = (1, 2, 3)
    drop_path: float = 0.2
    norm_eps: float = _EPS
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_sizes(self, "width", "window", "hidden", "patch_size", "channels")
        if not 1 <= len(self.depths) <= 8 or not all(1 <= depth <= MOST_BLOCKS for depth in self.depths):
            raise ValueError(f"depths={self.depths} should be blocks of one to eight stages")
        if len(self.heads) != len(self.depths) or not all(
            heads > 0 and not width % heads for heads, width in zip(self.heads, self.widths, strict=True)
        ):
            raise ValueError(f"heads={self.heads} should divide the widths of the stages, {self.widths}")
        last = len(self.depths) - 1
        if sorted({*self.stages, last}) != list(self.stages) or min(self.stages) < 0:
            raise ValueError(f"stages={self.stages} should rise from 0 or more to the last, {last}")
        if not len(self.mean) == len(self.std) == self.channels or not all(each > 0 for each in self.std):
            raise ValueError(f"channels={self.channels} needs as many values in mean={self.mean} and std={self.std}")
        if not (self.norm_eps > 0 and 0 <= self.drop_path < 1):
            raise ValueError(
                f"norm_eps={self.norm_eps} should be above 0, drop_path={self.drop_path} from 0 to below 1"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the stages."""
        return tuple(self.width << stage for stage in range(len(self.depths)))


class Swin(nn.Module):
    """A picture encoder that answers with a pyramid.

    Attributes:
        width: channels of the last stage.
        stride: pixels from one patch of the last stage to the next.
        channels: bands of the pictures.
        depth: stages that can be asked for, by their numbers.
    """

    def __init__(self, config: SwinConfig):
        super().__init__()
        self.config = config
        self.width, self.depth = config.widths[-1], len(config.depths)
        self.stride, self.channels = config.patch_size << (self.depth - 1), config.channels
        self.normalize = Normalize(config.mean, config.std)
        self.patch_embed = nn.Conv2d(config.channels, config.width, config.patch_size, config.patch_size)
        self.patch_norm = nn.LayerNorm(config.width, eps=_EPS)
        last = max(sum(config.depths) - 1, 1)
        rates = (config.drop_path * place / last for place in range(last + 1))
        self.stages = nn.ModuleList(
            Stage(config, width, heads, [next(rates) for _ in range(depth)])
            for width, heads, depth in zip(config.widths, config.heads, config.depths, strict=True)
        )
        self.merges = nn.ModuleList(Merge(width) for width in config.widths[:-1])
        self.norms = nn.ModuleDict(
            {str(stage): nn.LayerNorm(config.widths[stage], eps=_EPS) for stage in config.stages}
        )
        self.apply(init_linear)

    def forward(self, images: Tensor, masks: Tensor | None = None, layers: Sequence[int] = ()) -> Features:
        """Features of (B, C, H, W) pictures in [0, 1], of any size.

        Args:
            layers: stages that are wanted too, each on its own grid, counted from 0 or, if negative, from the end.
        Raises:
            ValueError: for another number of bands, masks, or stages that have no norm.
        """
        if masks is not None:
            raise ValueError("masks were given to a Swin, which hides nothing")
        wanted = [layer + self.depth if layer < 0 else layer for layer in layers]
        if unknown := [layer for layer in wanted if layer not in self.config.stages]:
            raise ValueError(f"layers={list(layers)}: stage {unknown[0]} is none of {self.config.stages}")
        found = dict(zip(self.config.stages, self.pyramid([images]), strict=True))
        answers = {
            stage: Features(tokens.unflatten(0, (len(images), -1)), grids[0])
            for stage, (tokens, grids) in found.items()
            if stage in wanted or stage == self.depth - 1
        }
        last = answers[self.depth - 1]
        return Features(last.patches, last.grid, layers=tuple(answers[stage] for stage in wanted))

    def pyramid(self, groups: Sequence[Tensor]) -> list[tuple[Tensor, tuple[Grid, ...]]]:
        """The stages of the configuration, of pictures of several sizes.

        Args:
            groups: (B, C, H, W) pictures in [0, 1] of one size each.
        Returns:
            For each stage packed tokens (T, C) of all pictures in order, and the grid of each picture.
        """
        tokens, grids = self._patches(groups)
        found = []
        for number, stage in enumerate(self.stages):
            tokens = stage(tokens, grids)
            if number in self.config.stages:
                found.append((self.norms[str(number)](tokens), grids))
            if number + 1 < self.depth:
                tokens, grids = self.merges[number](tokens, grids)
        return found

    def _patches(self, groups: Sequence[Tensor]) -> tuple[Tensor, tuple[Grid, ...]]:
        packed, grids, side = [], [], self.config.patch_size
        for images in groups:
            if images.ndim != 4 or images.shape[1] != self.channels:
                raise ValueError(f"expected pictures (B, {self.channels}, H, W), got {tuple(images.shape)}")
            height, width = images.shape[2:]
            filled = F.pad(self.normalize(images), (0, -width % side, 0, -height % side))
            planes = self.patch_embed(filled.to(self.patch_embed.weight.dtype))
            packed.append(planes.flatten(2).transpose(1, 2).flatten(0, 1))
            grids += [(planes.shape[2], planes.shape[3])] * len(images)
        return self.patch_norm(packed[0] if len(packed) == 1 else torch.cat(packed)), tuple(grids)


class Stage(nn.ModuleList):
    """Blocks on one grid; every other one with shifted windows."""

    def __init__(self, config: SwinConfig, width: int, heads: int, rates: Sequence[float]):
        super().__init__(
            Block(width, heads, config, shift=config.window // 2 if place % 2 else 0, drop_path=rate)
            for place, rate in enumerate(rates)
        )

    def forward(self, tokens: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        for block in self:
            tokens = block(tokens, grids)
        return tokens


class Block(nn.Module):
    """x + attention(norm x), then x + feed-forward(norm x), on packed tokens."""

    def __init__(self, width: int, heads: int, config: SwinConfig, shift: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = WindowAttention(width, heads, config.window, shift)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = Mlp(width, config.hidden * width)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        tokens = tokens + self._kept(self.attn(self.norm1(tokens), grids), grids)
        if self.training and self.drop_path:
            return tokens + self._kept(self.mlp(self.norm2(tokens)), grids)
        return in_parts(lambda part: part + self.mlp(self.norm2(part)), tokens)

    def _kept(self, branch: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        """A branch without some of the pictures while training, the others scaled so that its expectation stays."""
        if not (self.training and self.drop_path):
            return branch
        counts = torch.tensor([height * width for height, width in grids], device=branch.device)
        kept = torch.rand(len(grids), 1, device=branch.device) >= self.drop_path
        return branch * (kept.to(branch.dtype) / (1 - self.drop_path)).repeat_interleave(counts, 0)


class WindowAttention(nn.Module):
    """Multi-head self-attention in windows, whose scores know how far query and key lie apart.

    Args:
        width: channels of the tokens.
        heads: number of heads; divides `width`.
        window: side of the windows.
        shift: cells by which they lie further down and to the right than a grid's first.
    """

    def __init__(self, width: int, heads: int, window: int, shift: int):
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, tokens: Tensor, grids: tuple[Grid, ...]) -> Tensor:  # (T, C) -> (T, C)
        windows = windows_of(grids, self.window, self.shift, tokens.device)
        qkv = self.qkv(tokens)
        rows = qkv.index_select(0, windows.rows)
        if windows.beyond is not None:  # what the layer makes of nothing
            beyond = self.qkv.bias.to(rows.dtype).expand(len(windows.beyond), -1)
            rows.index_copy_(0, windows.beyond, beyond)
        # (3, windows, heads, window**2, d)
        parts = rows.view(-1, self.window**2, 3, self.heads, tokens.shape[1] // self.heads).permute(2, 0, 3, 1, 4)
        bias = self._bias().to(rows.dtype)
        mixed = []
        for (query, key, value), kind in zip(_cut(parts, windows.counts), windows.kinds, strict=True):
            mask = (bias if kind is None else bias + kind.to(bias.dtype))[None]
            mixed.append(F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2))
        mixed = [each.reshape(-1, tokens.shape[1]) for each in mixed]
        return self.proj((mixed[0] if len(mixed) == 1 else torch.cat(mixed)).index_select(0, windows.back))

    def _bias(self) -> Tensor:
        """(heads, window**2, window**2), what is added to scores for the way from key to query."""
        return self.relative_position_bias_table[
            distances(self.window, self.relative_position_bias_table.device)
        ].permute(2, 0, 1)


def _cut(parts: Tensor, counts: Sequence[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [tuple(each.unbind()) for each in parts.split(list(counts), dim=1)]


class Merge(nn.Module):
    """Four neighbours become one patch of twice the channels; what lies beyond an odd side is zero."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, eps=_EPS)
        self.reduction = Linear(4 * width, 2 * width, bias=False)

    def forward(self, tokens: Tensor, grids: tuple[Grid, ...]) -> tuple[Tensor, tuple[Grid, ...]]:
        rows, beyond = merged_rows(grids, tokens.device)
        four = tokens.index_select(0, rows)
        if beyond is not None:
            four = four.index_fill(0, beyond, 0)
        halved = tuple(((height + 1) // 2, (width + 1) // 2) for height, width in grids)
        return self.reduction(self.norm(four.view(-1, 4 * tokens.shape[1]))), halved


@dataclass(frozen=True, eq=False)
class Windows:
    """Where the patches of windows lie among packed tokens.

    Attributes:
        rows: (W * window**2,) of the patches of each window; any row for what lies beyond a picture.
        beyond: which of these lie beyond, or None.
        back: (T,) where each token lies among the windows' patches.
        counts: windows of each kind, in their order.
        kinds: for each (window**2, window**2), what is added to scores where a shift brought together what lies apart.
    """

    rows: Tensor
    beyond: Tensor | None
    back: Tensor
    counts: tuple[int, ...]
    kinds: tuple[Tensor | None, ...]


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # so that trainings may use what inference has made
def windows_of(grids: tuple[Grid, ...], window: int, shift: int, device: torch.device) -> Windows:
    """How pictures of some grids are cut into windows, those of one kind side by side."""
    kinds = tuple(product((False, True), (False, True))) if shift else ((False, False),)
    found: dict[tuple[bool, bool], list[Tensor]] = {kind: [] for kind in kinds}
    start = 0
    for height, width in grids:
        full = torch.full((-(-height // window) * window, -(-width // window) * window), -1)
        full[:height, :width] = torch.arange(start, start + height * width).view(height, width)
        turned = full.roll((-shift, -shift), (0, 1))
        squares = turned.unfold(0, window, window).unfold(1, window, window)  # (down, across, window, window)
        for kind in kinds:
            lines, columns = (slice(-1, None) if last else slice(None, -1 if shift else None) for last in kind)
            found[kind].append(squares[lines, columns].flatten(0, 1).flatten(1))
        start += height * width
    parts = {kind: torch.cat(rows) for kind, rows in found.items()}
    places = torch.cat(list(parts.values())).flatten()
    inside = places >= 0
    back = torch.empty(start, dtype=torch.long)
    back[places[inside]] = inside.nonzero()[:, 0]
    present = [kind for kind in kinds if len(parts[kind])]
    return Windows(
        places.clamp(min=0).to(device),
        None if bool(inside.all()) else (~inside).nonzero()[:, 0].to(device),
        back.to(device),
        tuple(len(parts[kind]) for kind in present),
        tuple(_apart(kind, window, shift, device) for kind in present),
    )


def _apart(kind: tuple[bool, bool], window: int, shift: int, device: torch.device) -> Tensor | None:
    """What keeps the parts of a window on the last line, or in the last column, from seeing each other."""
    if not any(kind):
        return None
    behind = torch.arange(window) >= window - shift
    nothing = torch.zeros_like(behind)
    down, across = (behind if last else nothing for last in kind)
    part = (2 * down.long()[:, None] + across.long()).flatten()
    return torch.where(part[:, None] == part, 0.0, APART).to(device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # so that trainings may use what inference has made
def distances(window: int, device: torch.device) -> Tensor:
    """(window**2, window**2), for each query and key the row of a table that stands for the way between them."""
    places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    down, across = places[:, :, None] - places[:, None, :] + window - 1
    return (down * (2 * window - 1) + across).to(device)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # so that trainings may use what inference has made
def merged_rows(grids: tuple[Grid, ...], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """(4 T',) rows of the four that are merged, upper left, lower left, upper right, lower right; and which of them lie
    beyond a picture, or None."""
    parts, start = [], 0
    for height, width in grids:
        full = torch.full((height + height % 2, width + width % 2), -1)
        full[:height, :width] = torch.arange(start, start + height * width).view(height, width)
        four = [full[row::2, column::2] for column, row in product(range(2), range(2))]
        parts.append(torch.stack(four, -1).flatten())
        start += height * width
    rows = torch.cat(parts)
    beyond = (rows < 0).nonzero()[:, 0]
    return rows.clamp(min=0).to(device), beyond.to(device) if len(beyond) else None
