"""Attention of SAM's image encoder: in windows or over the whole picture, with decomposed relative positions.

Source: Li et al. 2022 (ViTDet, arXiv 2203.16527) for the windows; Li et al. 2022 (MViTv2, arXiv 2112.01526), sec. 4.1,
for the positions; the released SAM for the details.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synoptic.models.layers import Mlp
from synoptic.models.linear import Linear

MOST_TERMS = 2**24  # relative terms held at once: those of one head over 64 x 64 patches, 64 MB in float32


class RelativeAttention(nn.Module):
    """Multi-head self-attention over a grid, whose scores know how far query and key lie apart, down and across.

    score = query key / sqrt(d) + query down[distance] + query across[distance]; that of the last two is not scaled.

    Relative terms are as many as scores, and the fused kernel, which never writes scores down, reads them as a mask. So
    heads, windows and, of large grids, lines of queries take turns: at any size no more than `MOST_TERMS` terms, or
    those of a single line of queries, are held at once. Where gradients are wanted, all are kept.

    Args:
        width: channels D of the tokens.
        heads: number of heads; divides `width`.
        side: cells of the grid, down and across, that the tables are made for.
    """

    def __init__(self, width: int, heads: int, side: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        self.down = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.across = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, tokens: Tensor) -> Tensor:  # (N, h, w, D) -> (N, h, w, D)
        count, height, width, _ = tokens.shape
        parts = self.qkv(tokens).view(count, height * width, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4).flatten(1, 2)  # each (N * heads, T, d)
        down, across = relative_rows(self.down, height), relative_rows(self.across, width)
        rows = max(1, MOST_TERMS // (height * width) ** 2)
        split = zip(query.split(rows), key.split(rows), value.split(rows), strict=True)
        mixed = torch.cat([_attend(*part, down, across) for part in split])
        return self.proj(mixed.unflatten(0, (count, self.heads)).transpose(1, 2).reshape(tokens.shape))


def _attend(query: Tensor, key: Tensor, value: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Some rows of attention, (R, T, d) each to (R, T, d), with rows of the tables (h, h, d) and (w, w, d)."""
    grid = (len(down), len(across))
    lines = max(1, MOST_TERMS // (query.shape[0] * query.shape[1] * grid[1]))
    mixed = []
    for part, near in zip(query.unflatten(1, grid).split(lines, dim=1), down.split(lines), strict=True):
        vertical = torch.einsum("rhwd,hkd->rhwk", part, near)
        horizontal = torch.einsum("rhwd,wkd->rhwk", part, across)
        terms = (vertical[..., :, None] + horizontal[..., None, :]).flatten(3).flatten(1, 2)  # (R, t, T)
        asked = part.flatten(1, 2)
        # The kernels that hold no scores take four dimensions.
        mixed.append(F.scaled_dot_product_attention(asked[None], key[None], value[None], attn_mask=terms[None])[0])
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=1)


def relative_rows(table: Tensor, side: int) -> Tensor:
    """For each query and key on a line of cells the row of a table that stands for their distance.

    Args:
        table: (2S - 1, d), from the farthest key behind the query to the farthest before it.
        side: cells of the line; other than S, the table is resampled linearly, as SAM's code does.
    Returns:
        (side, side, d).
    """
    if len(table) != 2 * side - 1:
        wide = table.to(torch.promote_types(table.dtype, torch.float32))
        table = F.interpolate(wide.T[None], size=2 * side - 1, mode="linear")[0].T.to(table.dtype)
    place = torch.arange(side, device=table.device)
    return table[place[:, None] - place + side - 1]


def to_windows(tokens: Tensor, window: int) -> Tensor:
    """Cuts (B, h, w, D) into (B * n, window, window, D), row by row, filled with zeros on the right and below."""
    height, width = tokens.shape[1:3]
    tokens = F.pad(tokens, (0, 0, 0, -width % window, 0, -height % window))
    parts = tokens.unflatten(2, (-1, window)).unflatten(1, (-1, window))  # (B, m, window, n, window, D)
    return parts.transpose(2, 3).flatten(0, 2)


def from_windows(windows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Puts (B * n, window, window, D) together again as (B, h, w, D), without what they were filled with."""
    height, width = grid
    window = windows.shape[1]
    lines, columns = -(-height // window), -(-width // window)
    parts = windows.unflatten(0, (-1, lines, columns)).transpose(2, 3)  # (B, m, window, n, window, D)
    return parts.flatten(3, 4).flatten(1, 2)[:, :height, :width]


class SamBlock(nn.Module):
    """Pre-norm transformer block on a grid: x + attention(norm x), then x + feed-forward(norm x).

    Args:
        width, heads: see RelativeAttention.
        hidden: width of the feed-forward layer.
        window: side of the windows that attend apart; 0 attends over the whole grid. The zeros that fill windows come
            after the norm, and take part.
        side: cells of the whole grid, down and across, that the positions are made for.
        norm_eps: of the norms.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, window: int, side: int, norm_eps: float = 1e-6):
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = RelativeAttention(width, heads, window or side)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, h, w, D) -> (B, h, w, D)
        tokens = tokens + self._attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))

    def _attention(self, tokens: Tensor) -> Tensor:
        if not self.window:
            return self.attn(tokens)
        _, height, width, _ = tokens.shape
        return from_windows(self.attn(to_windows(tokens, self.window)), (height, width))
