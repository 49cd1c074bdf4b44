"""Spectral reparametrisation: matrices whose largest singular value is a parameter of its own.

Attention of large models at high resolution can break down while training, as its logits grow with the norms of the
weights. Here w' = w * s / sigma(w), sigma the largest singular value, so that the norm of w' is s, which weight decay
reaches. For inference the weights are computed once and for all (`fold`).

Source: sigma-reparametrisation, Zhai et al. 2023 (arXiv 2303.06296); of RADIO, AM-RADIO sec. 4 (arXiv 2312.06709) and
PHI-S table 10 (arXiv 2410.01680), with s = softplus(scale) + 0.05 in the released weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

LEAST = 0.05  # s cannot fall below it, so that weight decay never ends a layer (RADIO's released weights)

_PARTS = {"qkv": 3, "w12": 2}  # layers that are several matrices in one, each with a norm of its own


class Spectral(nn.Module):
    """w * s / sigma(w) of one matrix, s = softplus(scale) + 0.05.

    Args:
        weight: (out, in) of the layer; s starts as its norm, so that w' starts as w.

    Attributes:
        scale: (1, 1) parameter, of two dimensions as weight decay goes by them.
        u, v: (out,) and (in,) what power iteration holds the leading singular vectors to be. Every forward pass in
            training brings them nearer by one iteration.

    Raises:
        ValueError: the norm is not above 0.05.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        norm, left, right = leading(weight.detach().double())
        if norm <= LEAST:
            raise ValueError(f"a norm of {float(norm):.3g} is not above {LEAST}, the least that can be held")
        above = norm - LEAST
        start = above + torch.log(-torch.expm1(-above))  # the inverse of softplus
        self.scale = nn.Parameter(start.to(weight.dtype).view(1, 1))
        self.u: Tensor
        self.register_buffer("u", left.to(weight.dtype))
        self.v: Tensor
        self.register_buffer("v", right.to(weight.dtype))

    @property
    def norm(self) -> Tensor:
        """(1, 1), s: the norm of w', as far as sigma is known."""
        return F.softplus(self.scale) + LEAST

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            if self.training:
                self._iterate(weight)
            u, v = self.u.clone(), self.v.clone()  # a later pass may change them before this one's gradients are found
            return weight * (self.norm / torch.dot(u, weight @ v))

    @torch.no_grad()
    def _iterate(self, weight: Tensor) -> None:
        self.v.copy_(F.normalize(weight.T @ self.u, dim=0))
        self.u.copy_(F.normalize(weight @ self.v, dim=0))


class SpectralParts(nn.Module):
    """`Spectral` for each of several matrices of equal height that lie one below the other in a weight."""

    def __init__(self, weight: Tensor, count: int):
        super().__init__()
        self.parts = nn.ModuleList(Spectral(part) for part in weight.chunk(count))

    def forward(self, weight: Tensor) -> Tensor:
        matrices = weight.chunk(len(self.parts))
        return torch.cat([part(matrix) for part, matrix in zip(self.parts, matrices, strict=True)])


def leading(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular value, scalar, and its singular vectors, (m,) and (n,), of an (m, n) matrix.

    By the smaller of the two products of the matrix with itself, in a small part of the time that all singular values
    take.
    """
    if matrix.shape[0] < matrix.shape[1]:
        norm, right, left = leading(matrix.T)
        return norm, left, right
    right = torch.linalg.eigh(matrix.T @ matrix)[1][:, -1]
    left = matrix @ right
    norm = left.norm()
    return norm, left / norm, right


def spectral(module: nn.Module, skip: Sequence[str] = ("patch_embed",)) -> None:
    """Gives every trained linear layer inside a module a norm that is a parameter; what it answers stays the same.

    Frozen layers, and those whose weights are computed already (weight normalisation), stay as they are.

    Args:
        module: changed in place, before an optimiser holds its parameters.
        skip: names of layers, or of modules that hold some, to be left out.
    Raises:
        ValueError: the weights of a layer are too near zero.
    """
    for name, layer in list(module.named_modules()):
        if not isinstance(layer, nn.Linear) or set(name.split(".")) & set(skip):
            continue
        weight = layer._parameters.get("weight")
        if weight is None or not weight.requires_grad:
            continue
        last = name.rpartition(".")[2]
        try:
            made = SpectralParts(weight, _PARTS[last]) if last in _PARTS else Spectral(weight)
        except ValueError as error:
            raise ValueError(f"{name or 'the layer'}.weight: {error}; leave it out by skip=({last!r},)") from None
        parametrize.register_parametrization(layer, "weight", made.train(layer.training))


def fold(module: nn.Module) -> None:
    """Takes back what `spectral` did: leaves plain weights, those that the module answered with in evaluation mode.

    Copies of a module share the class that PyTorch made for the layer; it is left as it is, so that they go on.
    """
    for layer in list(module.modules()):
        if not isinstance(layer, nn.Linear) or not parametrize.is_parametrized(layer, "weight"):
            continue
        (made, *others) = layer.parametrizations.weight  # type: ignore[union-attr,misc]
        if not isinstance(made, Spectral | SpectralParts) or others or len(layer.parametrizations) > 1:  # type: ignore[arg-type]
            continue
        made.eval()  # no further iteration
        weight, learns = layer.weight.detach().clone(), layer.parametrizations.weight.original.requires_grad  # type: ignore[union-attr]
        del layer.parametrizations
        layer.__class__ = type(layer).__bases__[0]
        layer.register_parameter("weight", nn.Parameter(weight, requires_grad=bool(learns)))
