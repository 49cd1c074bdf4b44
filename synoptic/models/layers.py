"""Building blocks of transformers: attention, feed-forward layers, LayerScale, stochastic depth, pixel statistics.

Blocks work on packed tokens: pictures of several sizes in one tensor (T, D), first all tokens of the first group of
pictures, then those of the next, so that norms and matrices are applied once to all; only attention goes group by group
(DINOv2 sec. 5, arXiv 2304.07193). A plain batch is a pack of one group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synoptic.models.linear import Linear, activated

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
FeedForward = Literal["mlp", "swiglu"]
Groups = tuple[tuple[int, int], ...]  # (pictures, tokens a picture) of each group of packed tokens


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): the approximation with which OpenAI's CLIP was trained (Hendrycks & Gimpel 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return x * torch.sigmoid(1.702 * x)
        return (1.702 * x).sigmoid_().mul_(x)  # the same in one tensor


def activation(name: Activation) -> nn.Module:
    """The activation of that name; exact GELU unless the weights ask for an approximation."""
    if name == "gelu_tanh":
        return nn.GELU(approximate="tanh")
    return {"gelu": nn.GELU, "quick_gelu": QuickGELU}[name]()


class Normalize(nn.Module):
    """(images - mean) / std a channel. The constants belong to the model's configuration, not to its weights."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, images: Tensor) -> Tensor:
        channels = zip(images.unbind(1), self.mean, self.std, strict=True)
        return torch.stack([(channel - mean) / std for channel, mean, std in channels], dim=1)


def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    """softmax(query key^T / sqrt(d)) value, each (B, heads, N, d).

    Where gradients are wanted of bfloat16 on a CPU it is computed in float32, since PyTorch's bfloat16 kernel for CPUs
    takes three to five times as long backward as the one for float32.
    """
    if not query.requires_grad or query.dtype != torch.bfloat16 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        mixed = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=causal)
    return mixed.to(query.dtype)


class Attention(nn.Module):
    """Multi-head self-attention through `scaled_dot_product_attention`, whose memory is linear in the tokens.

    Args:
        width: channels D of the tokens.
        heads: number of heads; divides `width`.
        bias: biases on query, key and value.
        causal: a token sees itself and those before it.
    """

    def __init__(self, width: int, heads: int, *, bias: bool = True, causal: bool = False):
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = Linear(width, 3 * width, bias=bias)
        self.proj = Linear(width, width)

    def forward(self, tokens: Tensor, groups: Groups) -> Tensor:  # (T, D) -> (T, D)
        heads = self._heads(tokens, groups)
        mixed = [attend(*parts, self.causal).transpose(1, 2).reshape(-1, tokens.shape[1]) for parts in heads]
        return self.proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed))

    def weights(self, tokens: Tensor, groups: Groups, queries: int) -> list[Tensor]:
        """What the first tokens of every picture look at, which the fused kernel never writes down.

        Args:
            tokens: (T, D), packed.
            groups: their shapes.
            queries: how many tokens a picture are asked about.
        Returns:
            (B, heads, queries, N), float32 at least, for each group; rows sum to 1.
        """
        weights = []
        for query, key, _ in self._heads(tokens, groups):
            wide = torch.promote_types(query.dtype, torch.float32)
            scores = query[:, :, :queries].to(wide) @ key.to(wide).transpose(-2, -1)
            weights.append((scores * query.shape[-1] ** -0.5).softmax(dim=-1))
        return weights

    def _heads(self, tokens: Tensor, groups: Groups) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Query, key and value of each group, (B, heads, N, D / heads)."""
        width = tokens.shape[1]
        qkv = self.qkv(tokens)
        parts = [qkv] if len(groups) == 1 else qkv.split([batch * count for batch, count in groups])
        for part, (batch, count) in zip(parts, groups, strict=True):
            parted = part.view(batch, count, 3, self.heads, width // self.heads)
            query, key, value = parted.permute(2, 0, 3, 1, 4).unbind()
            yield query, key, value


class Mlp(nn.Module):
    """Linear, activation, Linear."""

    def __init__(self, width: int, hidden: int, act: Activation = "gelu"):
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.act = activation(act)
        self.fc2 = Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(activated(self.fc1, tokens, self.act))


class SwiGLU(nn.Module):
    """Gated feed-forward layer W3(silu(W1 x) * W2 x) (Shazeer 2020, arXiv 2002.05202), W1 and W2 in one matrix.

    Args:
        width: channels of the tokens.
        hidden: hidden width of the plain MLP that this replaces; two thirds of it, rounded up to a multiple of 8, are
            used, which keeps the parameters equal (DINOv2's released ViT-g).
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        hidden = gated_width(hidden)
        self.w12 = Linear(width, 2 * hidden)
        self.w3 = Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        gate, value = self.w12(tokens).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


def gated_width(hidden: int) -> int:
    """The width of the gated layers in place of a plain MLP that is `hidden` wide."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


class LayerScale(nn.Module):
    """A learned factor a channel on a residual branch (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, width: int, initial: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


class BatchSubset:
    """Stochastic depth by batch subset: the pictures for which a residual branch is computed, drawn anew each time.

    The others are spared its arithmetic and memory. What the branch adds is scaled up, so that its expectation stays.

    Args:
        groups: shapes of the packed tokens.
        kept: how many pictures of each group stay.
        dtype, device: of the tokens.

    Source: Huang et al. 2016 (arXiv 1603.09382); by subset DINOv2 sec. 5 (arXiv 2304.07193).
    """

    def __init__(self, groups: Groups, kept: Sequence[int], dtype: torch.dtype, device: torch.device):
        self.groups = tuple((keep, count) for keep, (_, count) in zip(kept, groups, strict=True))
        self.rows = _rows(groups, kept, device)
        scales = [(keep * count, pictures / keep) for keep, (pictures, count) in zip(kept, groups, strict=True)]
        self._scale = torch.cat([torch.full((n, 1), scale, dtype=dtype, device=device) for n, scale in scales])

    def add(self, tokens: Tensor, branch: Tensor) -> Tensor:
        """(T, D) tokens plus what the branch says of the chosen ones, (T', D)."""
        return tokens.index_add(0, self.rows, (branch * self._scale).to(tokens.dtype))


def _rows(groups: Groups, kept: Sequence[int], device: torch.device) -> Tensor:
    """Which packed tokens belong to randomly chosen pictures, as many of each group as `kept` says."""
    parts, start = [], 0
    for keep, (batch, count) in zip(kept, groups, strict=True):
        chosen = torch.randperm(batch, device=device)[:keep].sort().values
        parts.append((start + chosen[:, None] * count + torch.arange(count, device=device)).flatten())
        start += batch * count
    return torch.cat(parts)


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm x), then x + feed-forward(norm x), on packed tokens.

    While training, `drop_path` of the pictures of each group, to the nearest whole number, go without each branch; few
    pictures may therefore keep all, and one always does.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        act: Activation = "gelu",
        feed_forward: FeedForward = "mlp",
        qkv_bias: bool = True,
        causal: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads, bias=qkv_bias, causal=causal)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden, act) if feed_forward == "mlp" else SwiGLU(width, hidden)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor, groups: Groups, rows: Tensor | None = None) -> Tensor:
        """(T, D) packed tokens of groups of pictures, (B, N) each, to the next layer's.

        Args:
            tokens: (T, D).
            groups: shapes of the packed tokens.
            rows: (R,) which tokens' answers are wanted, where not all are; the others' are not computed further than
                these need.
        Returns:
            (T, D), or (R, D) of the rows wanted.
        """
        tokens = self._residual(tokens, groups, self._attention)
        if rows is not None:
            tokens, groups = tokens[rows], ((len(rows), 1),)
        return self._residual(tokens, groups, self._feed_forward)

    def _attention(self, tokens: Tensor, groups: Groups) -> Tensor:
        return self.ls1(self.attn(self.norm1(tokens), groups))

    def _feed_forward(self, tokens: Tensor, groups: Groups) -> Tensor:
        return self.ls2(self.mlp(self.norm2(tokens)))

    def _residual(self, tokens: Tensor, groups: Groups, branch: Callable[[Tensor, Groups], Tensor]) -> Tensor:
        rate = self.drop_path if self.training else 0.0
        if not rate:
            return tokens + branch(tokens, groups)
        kept = [max(round(batch * (1.0 - rate)), 1) for batch, _ in groups]
        if kept == [batch for batch, _ in groups]:
            return tokens + branch(tokens, groups)
        subset = BatchSubset(groups, kept, tokens.dtype, tokens.device)
        return subset.add(tokens, branch(tokens.index_select(0, subset.rows), subset.groups))


def init_linear(module: nn.Module) -> None:
    """Truncated normal of deviation 0.02 for the weights of linear layers, zero for biases (ViT, DINO)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
