"""Spectral reparametrisation, with which RADIO trains, folded into plain weights: what its files hold of each matrix W.

The weight that the network computes with is W * s / sigma, where sigma = u W v is the largest singular value of W as
power iteration left it. In the first version s is what the file says, in the second softplus of it plus 0.05, so that
it stays above zero. Query, key and value, and both halves of a gated layer, have each their own s and sigma, though
they are one matrix. DAMP, noise on the weights while training, leaves `original` alone behind.

Source: PHI-S, sec. A.2 (Ranzinger et al. 2024, arXiv 2410.01680), after Zhai et al. 2023 (arXiv 2303.06296).
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from synoptic.weights.reading import State

_LEAST = 0.05  # of s in the second version
_KEY = re.compile(
    r"(?P<owner>.+)\.parametrizations\.weight\."
    r"(?:original|[0-9]+\.(?:parts\.(?P<part>[0-9]+)\.)?(?P<name>scale|_u|_v|_sn_version))"
)


def folded(state: State) -> State:
    """Tensors of a file with plain weights in place of reparametrised ones.

    Raises:
        ValueError: one of them lacks what it is computed of, or its parts do not fit it.
    """
    plain, originals = State(), State()
    said: dict[str, dict[int, State]] = {}  # whose -> part -> name -> tensor
    for key, tensor in state.items():
        match = _KEY.fullmatch(key)
        if match is None:
            plain[key] = tensor
        elif match["name"] is None:
            originals[match["owner"]] = tensor
        else:
            said.setdefault(match["owner"], {}).setdefault(int(match["part"] or 0), {})[match["name"]] = tensor
    if lacking := sorted(said.keys() - originals.keys()):
        raise ValueError(f"{lacking[0]} has a spectral reparametrisation and no weight")
    for owner, weight in originals.items():
        if f"{owner}.weight" in plain:
            raise ValueError(f"{owner} has a weight twice, plain and with a spectral reparametrisation")
        plain[f"{owner}.weight"] = _fold(owner, weight, said.get(owner, {}))
    return plain


def _fold(owner: str, weight: Tensor, parts: dict[int, State]) -> Tensor:
    if not parts:
        return weight
    if sorted(parts) != list(range(len(parts))) or weight.ndim < 2 or len(weight) % len(parts):
        raise ValueError(f"{owner}: {len(parts)} spectral parts do not make a weight of {tuple(weight.shape)}")
    if weight.is_meta:
        return weight
    pieces = zip(weight.chunk(len(parts)), (parts[place] for place in range(len(parts))), strict=True)
    scaled = [_scaled(owner, piece, values) for piece, values in pieces]
    return scaled[0] if len(scaled) == 1 else torch.cat(scaled)


def _scaled(owner: str, weight: Tensor, values: State) -> Tensor:
    lacking = [name for name in ("scale", "_u", "_v") if name not in values]
    if lacking:
        raise ValueError(f"{owner}: its spectral reparametrisation has no {lacking[0]}")
    matrix, (scale, u, v) = weight.double().flatten(1), (values[name].double() for name in ("scale", "_u", "_v"))
    if (u.numel(), v.numel(), scale.numel()) != (*matrix.shape, 1):
        told = f"scale, u and v of {scale.numel()}, {u.numel()} and {v.numel()} numbers"
        raise ValueError(f"{owner}: {told} do not fit a weight of {tuple(weight.shape)}")
    version = values["_sn_version"].flatten().tolist() if "_sn_version" in values else [1]
    if version not in ([1], [2]):
        raise ValueError(f"{owner}: its spectral reparametrisation is of version {version}; 1 and 2 are known here")
    wanted = scale.reshape(()) if version == [1] else F.softplus(scale.reshape(())) + _LEAST
    sigma = u.flatten() @ (matrix @ v.flatten())
    return (weight * (wanted / sigma)).float()
