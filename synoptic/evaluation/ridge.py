"""Ridge regression from patch features to classes, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from synoptic.types import Features


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of patches.

    Attributes:
        weight: (D, C) float32.
        bias: (C,) float32.
    """

    weight: Tensor
    bias: Tensor

    def logits(self, features: Features) -> Tensor:
        """(B, C, h, w) float32, a score for each class and patch."""
        scores = features.patches.float() @ self.weight + self.bias
        return scores.transpose(1, 2).unflatten(2, features.grid)

    def scaled(self, factors: Tensor) -> LinearProbe:
        """The probe whose logits are these, times (C,) factors."""
        return LinearProbe(self.weight * factors, self.bias * factors)


class NormalEquations:
    """Weighted least squares from features to classes, in memory that does not grow with the rows.

    A row with amounts y of the classes counts as that many observations of each class, all with the row's features.
    Everything is summed in float64.
    """

    def __init__(self) -> None:
        self._gram = torch.zeros((), dtype=torch.float64)  # (D + 1, D + 1); the last row is that of the intercept
        self._cross = torch.zeros((), dtype=torch.float64)  # (D + 1, C)

    def add(self, features: Tensor, amounts: Tensor) -> None:
        """Takes in rows.

        Args:
            features: (n, D), on any device, always the same.
            amounts: (n, C) of the classes, 0 or more.
        """
        rows = F.pad(features.double(), (0, 1), value=1.0)
        amounts = amounts.to(rows)
        self._gram = self._gram + rows.T @ (rows * amounts.sum(1, keepdim=True))
        self._cross = self._cross + rows.T @ amounts

    def solve(self, ridge: float) -> LinearProbe:
        """Minimises the mean squared error plus `ridge` times the sum of the squared weights.

        The penalty is on the weights of features brought to mean 0 and variance 1, so that it means the same for any
        model; the intercept goes free.

        Args:
            ridge: above 0.
        Raises:
            ValueError: where all amounts are 0.
        """
        if not self._cross.any():
            raise ValueError("nothing to fit: no pixel of the pictures has a class")
        mass = self._gram[-1, -1]
        mean = self._gram[-1, :-1] / mass
        covariance = self._gram[:-1, :-1] / mass - torch.outer(mean, mean)
        variance = covariance.diagonal()
        # A feature that does not vary says nothing; what is left of its variance is rounding.
        scale = torch.where(variance > 1e-12 * mean.square(), variance.clamp_min(1e-300).rsqrt(), 0.0)
        system = covariance * torch.outer(scale, scale)
        system.diagonal().add_(ridge)
        target = scale[:, None] * (self._cross[:-1] - torch.outer(mean, self._cross[-1])) / mass
        weight = scale[:, None] * torch.cholesky_solve(target, torch.linalg.cholesky(system))
        return LinearProbe(weight.float(), (self._cross[-1] / mass - mean @ weight).float())
