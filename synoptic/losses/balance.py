"""How much each loss counts where several are summed, and which teacher counts for a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synoptic.losses.precision import wide
from synoptic.types import ALONE, Group

Balance = Literal["fixed", "uncertainty", "adaloss"]

_MOMENTUM = 0.99  # AM-RADIO appendix E (arXiv 2312.06709)
_LEAST = 1e-8  # a running mean below it counts as it: a loss that is 0 would be divided by 0


class Balancer(nn.Module):
    """Sums the terms of a loss, each with its weight and a factor.

    "fixed" has no factors. "uncertainty" learns a number b for each term, which then counts exp(-b) times its loss plus
    softplus(b), without which b would grow for ever. "adaloss" divides each term by its running mean, so that all are
    about 1. In evaluation mode running means stand still.

    Args:
        weights: of the terms by name, above 0.
        kind: what the factors are.

    Attributes:
        log_scale: (T,) parameter of "uncertainty", None otherwise: b, in the order of the weights, at first 0, where
            the factor is 1.
        average: (T,) float64, running means of the terms over all processes, by "adaloss" alone.
        filled: (T,) float64, how much of each running mean is filled, from 0 to 1; the mean is to be divided by it.

    Raises:
        ValueError: an unknown kind.
    Source: AM-RADIO appendix E (arXiv 2312.06709), where equal weights came out best; PHI-S (arXiv 2410.01680) finds
    that adaloss helps classification and harms dense tasks.
    """

    def __init__(self, weights: Mapping[str, float], kind: Balance):
        super().__init__()
        if kind not in get_args(Balance):
            raise ValueError(f"kind={kind!r} is none of {', '.join(get_args(Balance))}")
        self.names, self.kind = tuple(weights), kind
        count = len(self.names)
        self.weights: Tensor  # of the configuration, so no state
        self.register_buffer("weights", torch.tensor([*weights.values()], dtype=torch.float64), persistent=False)
        # One parameter for all, which has a gradient in every step, whichever terms that has.
        self.log_scale = nn.Parameter(torch.zeros(count)) if kind == "uncertainty" else None
        remembered = count if kind == "adaloss" else 0
        self.average: Tensor
        self.register_buffer("average", torch.zeros(remembered, dtype=torch.float64))
        self.filled: Tensor
        self.register_buffer("filled", torch.zeros(remembered, dtype=torch.float64))

    def forward(self, terms: Mapping[str, Tensor], group: Group = ALONE) -> Tensor:
        """The total.

        Args:
            terms: scalars by name, those of this step; each has a weight.
            group: the processes over which running means are taken. Some may have terms that others lack.
        Returns:
            Scalar float32, float64 for such terms.
        """
        unknown = terms.keys() - set(self.names)
        assert not unknown, f"terms without a weight: {', '.join(sorted(unknown))}"
        if self.kind == "adaloss" and self.training:
            self._remember(terms, group)
        losses = {name: wide(term) for name, term in terms.items()}
        factors = self._by_name(self._factors())
        parts = [factors[name].to(loss.dtype) * loss for name, loss in losses.items()]
        if self.log_scale is not None:
            prices = self._by_name(self.weights * F.softplus(self.log_scale))
            parts += [prices[name].to(loss.dtype) for name, loss in losses.items()]
        return torch.stack(parts).sum()

    def factors(self) -> dict[str, Tensor]:
        """What each term is multiplied with by now, its weight included: scalars without gradient."""
        return self._by_name(self._factors().detach())

    def _factors(self) -> Tensor:
        """(T,)"""
        if self.log_scale is not None:
            return self.weights * (-self.log_scale).exp()
        if self.kind == "fixed":
            return self.weights
        mean = (self.average / self.filled).clamp(min=_LEAST)
        return torch.where(self.filled > 0, self.weights / mean, self.weights)

    def _by_name(self, values: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, values.unbind(), strict=True))

    @torch.no_grad()
    def _remember(self, terms: Mapping[str, Tensor], group: Group) -> None:
        """Takes the terms into their running means; those that no process has stay as they are."""
        sums = self.average.new_zeros(2, len(self.names))
        for place, name in enumerate(self.names):
            if name in terms:
                sums[0, place], sums[1, place] = terms[name].detach(), 1.0
        total, count = group.sum(sums).unbind()
        share = (count > 0).double() * (1.0 - _MOMENTUM)
        self.average.lerp_(total / count.clamp(min=1.0), share)
        self.filled.lerp_(torch.ones_like(self.filled), share)


@torch.no_grad()
def teacher_weights(losses: Tensor, draws: Tensor, rate: float, group: Group = ALONE) -> Tensor:
    """Teacher dropping: what the student knows least of always counts, the rest now and then.

    For each picture the teacher of the highest loss is kept, and each other dropped with probability `rate`.

    Args:
        losses: (B, T) of each picture and teacher.
        draws: (B, T) uniform in [0, 1).
        rate: 0 drops none, 1 all but the highest.
        group: the processes that share the batch.
    Returns:
        (B, T) weights without gradient, of the dtype of the losses: 0 where dropped, else one number that makes them
        sum to T times the pictures of all processes.
    Source: UNIC (Sariyildiz et al. 2024, arXiv 2408.05088), with a rate of 0.5.
    """
    kept = draws >= rate
    kept.scatter_(1, losses.argmax(dim=1, keepdim=True), True)
    whole, left = group.sum(torch.stack((torch.ones_like(kept).sum(), kept.sum())).double()).unbind()
    return kept * (whole / left.clamp(min=1.0)).to(losses.dtype)
