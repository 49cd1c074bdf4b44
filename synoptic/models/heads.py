"""Projection heads on top of backbones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from synoptic.models.layers import init_linear


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


class MlpHead(nn.Module):
    """AM-RADIO's head: Linear, LayerNorm, GELU, Linear (arXiv 2312.06709, sec. 3.2).

    Args:
        width: channels that come in.
        hidden: width in between.
        out: channels that go out.
    """

    def __init__(self, width: int, hidden: int, out: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, out)
        self.apply(init_linear)

    def forward(self, tokens: Tensor) -> Tensor:  # (..., width) -> (..., out)
        return self.fc2(F.gelu(self.norm(self.fc1(tokens))))
