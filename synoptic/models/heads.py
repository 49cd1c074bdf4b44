"""Projection heads on top of backbones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from synoptic.models.bounds import MOST_BLOCKS, check_sizes
from synoptic.models.layers import Block, init_linear

ATTENTION_HEADS, ATTENTION_BLOCKS = 16, 2  # of the patch heads of C-RADIOv4


class DinoHead(nn.Module):
    """DINO's head: a three-layer MLP, an L2-normalised bottleneck, and weight-normalised prototypes.

    Args:
        width: channels of the backbone's summary.
        prototypes: K, the number of outputs.
        hidden: width of the MLP.
        bottleneck: width in which prototypes are compared.
        norm: batch normalisation before each activation (the paper's choice for convolutional backbones).
        fixed_norm: the prototypes stay of unit length (paper's default; steadier, slightly worse on small models).

    Source: Caron et al. 2021, sec. 3.1 and appendix C (arXiv 2104.14294).
    """

    def __init__(
        self,
        width: int,
        prototypes: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        *,
        norm: bool = False,
        fixed_norm: bool = True,
    ):
        super().__init__()
        parts: list[nn.Module] = []
        for before in (width, hidden):
            parts += [nn.Linear(before, hidden), *([_BatchNorm(hidden)] if norm else []), nn.GELU()]
        self.mlp = nn.Sequential(*parts, nn.Linear(hidden, bottleneck))
        self.mlp.apply(init_linear)
        self.last_layer = weight_norm(nn.Linear(bottleneck, prototypes, bias=False))
        norms = self.last_layer.parametrizations.weight.original0  # (K, 1), the lengths of the prototypes
        nn.init.ones_(norms)
        norms.requires_grad_(not fixed_norm)

    def forward(self, summary: Tensor) -> Tensor:  # (B, D) -> (B, K)
        hidden = self.mlp(summary)
        # Logits are divided by temperatures down to 0.01: rounded to half precision they would be off by tenths.
        with torch.autocast(hidden.device.type, enabled=False):
            return self.last_layer(
                F.normalize(hidden.to(self.last_layer.parametrizations.weight.original1.dtype), dim=-1)
            )


class _BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes a row alone, which has no statistics of its own, by the running ones: in a step
    perhaps a single patch is hidden."""

    def forward(self, rows: Tensor) -> Tensor:
        if len(rows) > 1 or not self.training:
            return super().forward(rows)
        return F.batch_norm(rows, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


HeadForm = Literal["paper", "v1", "v2", "attention"]


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What one head of an adaptor is.

    Attributes:
        form: "paper", Linear, LayerNorm, GELU, Linear; "v1", the same with ReLU, as RADIO's first releases have it;
            "v2", residual blocks in between, as in later ones; "attention", v2 behind transformer blocks, which patches
            alone can go through (C-RADIOv4).
        hidden: width inside; None takes the adaptor's.
        inner: residual blocks of "v2" and "attention".
        upsample: how many times finer than the backbone's grid the answer's is, for patches, of "v2" and "attention".
        qkv_bias: of the transformer blocks of "attention".
    """

    form: HeadForm = "paper"
    hidden: int | None = None
    inner: int = 0
    upsample: int = 1
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        check_sizes(self, "hidden")
        check_sizes(self, "inner", least=0, most=MOST_BLOCKS)
        check_sizes(self, "upsample", most=16)
        if self.form in ("paper", "v1") and (self.inner or self.upsample > 1):
            raise ValueError(f"form={self.form} has neither inner={self.inner} blocks nor upsample={self.upsample}")


PAPER = HeadConfig()


class MlpHead(nn.Module):
    """AM-RADIO's head: Linear, LayerNorm, GELU, Linear (arXiv 2312.06709, sec. 3.2); its releases have ReLU.

    Args:
        width: channels that come in.
        hidden: width in between.
        out: channels that go out.
        act: the activation.
    """

    def __init__(self, width: int, hidden: int, out: int, act: Literal["gelu", "relu"] = "gelu"):
        super().__init__()
        self.act = F.gelu if act == "gelu" else F.relu
        self.fc1 = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, out)
        self.apply(init_linear)

    @property
    def last(self) -> nn.Linear:
        """The layer that answers, into which a linear map of answers can be folded."""
        return self.fc2

    def forward(self, tokens: Tensor) -> Tensor:  # (..., width) -> (..., out)
        return self.fc2(self.act(self.norm(self.fc1(tokens))))


class ResidualHead(nn.Module):
    """The heads of RADIO's later releases: Linear, residual blocks, and LayerNorm, GELU, Linear ("v2").

    Args:
        width: channels that come in.
        hidden: width in between.
        out: channels that go out.
        inner: residual blocks, x + Linear(GELU(LayerNorm x)).

    Source: what the keys and shapes in files of radio_v2.5 and c-radio tell; no paper describes them.
    """

    def __init__(self, width: int, hidden: int, out: int, inner: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.blocks = nn.ModuleList(_norm_act_linear(hidden, hidden) for _ in range(inner))
        self.final = _norm_act_linear(hidden, out)
        self.apply(init_linear)

    @property
    def last(self) -> nn.Module:
        """The layer that answers, into which a linear map of answers can be folded."""
        return self.final[-1]

    def forward(self, tokens: Tensor) -> Tensor:  # (..., width) -> (..., out)
        hidden = self.fc1(tokens)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.final(hidden)


def _norm_act_linear(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, out))


class AttentionHead(nn.Module):
    """The patch heads of C-RADIOv4: two transformer blocks of 16 heads with LayerScale, then a ResidualHead.

    Args:
        width, hidden, out, inner: see ResidualHead.
        qkv_bias: of the transformer blocks.

    Source: as ResidualHead; the epsilon of the norms, which no file tells, is that of timm's blocks, 1e-6.
    """

    def __init__(self, width: int, hidden: int, out: int, inner: int, qkv_bias: bool):
        super().__init__()
        if width % ATTENTION_HEADS:
            raise ValueError(f"a head of form=attention needs a width that {ATTENTION_HEADS} divides, not {width}")
        self.blocks = nn.ModuleList(
            Block(width, ATTENTION_HEADS, 4 * width, qkv_bias=qkv_bias, layer_scale=1e-5)
            for _ in range(ATTENTION_BLOCKS)
        )
        self.blocks.apply(init_linear)
        self.mlp = ResidualHead(width, hidden, out, inner)

    @property
    def last(self) -> nn.Module:
        """The layer that answers, into which a linear map of answers can be folded."""
        return self.mlp.last

    def forward(self, tokens: Tensor) -> Tensor:  # (B, N, width) -> (B, N, out), every patch sees all of its picture
        packed, groups = tokens.flatten(0, 1), ((tokens.shape[0], tokens.shape[1]),)
        for block in self.blocks:
            packed = block(packed, groups)
        return self.mlp(packed.view_as(tokens))


def build_head(config: HeadConfig, width: int, hidden: int, out: int) -> nn.Module:
    """A head of an adaptor.

    Args:
        config: what it is.
        width: channels that come in.
        hidden: width inside, where `config` leaves it open.
        out: channels that go out, of one place of the finer grid where it upsamples.
    """
    hidden, out = config.hidden or hidden, out * config.upsample**2
    if config.form in ("paper", "v1"):
        return MlpHead(width, hidden, out, "gelu" if config.form == "paper" else "relu")
    if config.form == "v2":
        return ResidualHead(width, hidden, out, config.inner)
    return AttentionHead(width, hidden, out, config.inner, config.qkv_bias)


def finer(patches: Tensor, grid: tuple[int, int], times: int) -> tuple[Tensor, tuple[int, int]]:
    """(B, h*w, u*u*C) patches of a grid as (B, u*h*u*w, C) ones of a grid that is u `times` finer.

    The channels of a patch are those of its finer ones, row by row (pixel shuffle with the channels last).
    """
    if times == 1:
        return patches, grid
    parted = patches.unflatten(2, (times, times, -1)).unflatten(1, grid)  # (B, h, w, u, u, C)
    rows = parted.transpose(2, 3)  # (B, h, u, w, u, C)
    return rows.flatten(1, 4), (grid[0] * times, grid[1] * times)
