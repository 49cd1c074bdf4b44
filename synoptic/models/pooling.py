"""How a picture's patches become its summary by attention: SigLIP's learned query, and that of CLIP's ResNets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synoptic.models.layers import Activation, Mlp, attend


class CrossAttention(nn.Module):
    """Multi-head attention of some tokens to others.

    Args:
        width: channels D of both.
        heads: number of heads; divides `width`.
        out: channels of the answer; None keeps D.
    """

    def __init__(self, width: int, heads: int, out: int | None = None):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, out or width)

    def forward(self, asking: Tensor, asked: Tensor) -> Tensor:  # (B, M, D), (B, N, D) -> (B, M, out)
        width = asking.shape[-1]
        (of_query, of_rest), biases = (part.split([width, 2 * width]) for part in (self.qkv.weight, self.qkv.bias))
        query = F.linear(asking, of_query, biases[0])
        key, value = F.linear(asked, of_rest, biases[1]).chunk(2, dim=-1)
        heads = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        return self.proj(attend(*heads).transpose(1, 2).flatten(2))


class AttentionPool(nn.Module):
    """One learned query asks all patches; a feed-forward layer follows (SigLIP's towers, arXiv 2303.15343).

    Source: the pooling head of Zhai et al. 2022, "Scaling Vision Transformers" (arXiv 2106.04560), sec. 3.2.
    """

    def __init__(self, width: int, heads: int, hidden: int, act: Activation, norm_eps: float):
        super().__init__()
        self.probe = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=width**-0.5))
        self.attn = CrossAttention(width, heads)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden, act)

    def forward(self, patches: Tensor) -> Tensor:  # (B, N, D) -> (B, D)
        answer = self.attn(self.probe.expand(len(patches), -1, -1), patches)
        return (answer + self.mlp(self.norm(answer)))[:, 0]

    def apart(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, h*w, D) to (B, h*w, D), what it answers to each patch alone."""
        return self(patches.flatten(0, 1)[:, None]).unflatten(0, patches.shape[:2])


class MeanAttentionPool(nn.Module):
    """The mean of all patches asks itself and all patches, each with a position (CLIP's ResNets, sec. 2.4).

    Args:
        width: channels D of the patches.
        heads: number of heads.
        out: channels of the answer.
        side: of the square grid that the position table covers; for other grids it is resampled.
    """

    def __init__(self, width: int, heads: int, out: int, side: int):
        super().__init__()
        self.side = side
        self.positions = nn.Parameter(torch.randn(side**2 + 1, width) * width**-0.5)
        self.attn = CrossAttention(width, heads, out)
        nn.init.normal_(self.attn.qkv.weight, std=width**-0.5)
        nn.init.normal_(self.attn.proj.weight, std=width**-0.5)

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:  # (B, h*w, D) -> (B, out)
        tokens = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1) + self._table(grid)
        return self.attn(tokens[:, :1], tokens)[:, 0]

    def apart(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, h*w, D) to (B, h*w, out), what it answers where all attention is on one patch."""
        tokens = (patches + self._table(grid)[1:]).flatten(0, 1)[:, None]
        return self.attn(tokens, tokens)[:, 0].unflatten(0, patches.shape[:2])

    def _table(self, grid: tuple[int, int]) -> Tensor:
        if grid == (self.side, self.side):
            return self.positions
        mean, cells = self.positions[:1], self.positions[1:]
        table = cells.T.unflatten(1, (self.side, self.side))[None].float()
        table = F.interpolate(table, grid, mode="bicubic", align_corners=False, antialias=True)
        return torch.cat([mean, table[0].flatten(1).T.to(cells.dtype)])
