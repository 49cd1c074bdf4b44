"""Building blocks of transformers: attention, feed-forward layers, LayerScale, stochastic depth, pixel statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["gelu", "quick_gelu"]
FeedForward = Literal["mlp", "swiglu"]


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): the approximation with which OpenAI's CLIP was trained (Hendrycks & Gimpel 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def activation(name: Activation) -> nn.Module:
    """The activation of that name; exact GELU unless the weights ask for the quick one."""
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
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not query.requires_grad:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        mixed = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=causal)
    return mixed.to(query.dtype)


class Attention(nn.Module):
    """Multi-head self-attention through `scaled_dot_product_attention`.

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
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, D / heads)
        mixed = attend(query, key, value, self.causal)
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, width))


class Mlp(nn.Module):
    """Linear, activation, Linear."""

    def __init__(self, width: int, hidden: int, act: Activation = "gelu"):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = activation(act)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(tokens)))


class SwiGLU(nn.Module):
    """Gated feed-forward layer W3(silu(W1 x) * W2 x) (Shazeer 2020, arXiv 2002.05202), W1 and W2 in one matrix.

    Args:
        width: channels of the tokens.
        hidden: hidden width of the plain MLP that this replaces; two thirds of it, rounded up to a multiple of 8, are
            used, which keeps the parameters equal (DINOv2's released ViT-g).
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        gate, value = self.w12(tokens).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned factor a channel on a residual branch (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, width: int, initial: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: leaves out a residual branch for some samples while training (Huang et al. 2016)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return branch
        keep = torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device) >= self.rate
        return branch * (keep.to(branch.dtype) / (1.0 - self.rate))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm x), then x + feed-forward(norm x)."""

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
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        tokens = tokens + self.drop_path(self.ls1(self.attn(self.norm1(tokens))))
        return tokens + self.drop_path(self.ls2(self.mlp(self.norm2(tokens))))


def init_linear(module: nn.Module) -> None:
    """Truncated normal of deviation 0.02 for the weights of linear layers, zero for biases (ViT, DINO)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
