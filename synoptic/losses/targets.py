"""What a student of itself is trained towards: its teacher's logits, centred and sharpened."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from synoptic.losses.ssl import entropy, sinkhorn_knopp, softened
from synoptic.types import ALONE, Group

Centring = Literal["mean", "sinkhorn", "none"]

_USAGE_MOMENTUM = 0.9


class Targets(nn.Module):
    """Turns teacher logits into targets, and remembers of them what centring needs.

    Args:
        prototypes: K.
        centring: "mean" subtracts the running mean of the logits (DINO), "sinkhorn" balances the batch over the
            prototypes (DINOv2), "none" leaves the logits alone.
        momentum: of the running mean.
        queue: rows of past logits that are balanced with the batch, by "sinkhorn" alone. They count once there are as
            many. The idea is SwAV's (arXiv 2006.09882, sec. 4.1), which keeps features in place of logits.
    """

    def __init__(self, prototypes: int, centring: Centring, momentum: float = 0.9, queue: int = 0):
        super().__init__()
        self.centring = centring
        self.momentum = momentum
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(1, prototypes))
        self.usage: Tensor
        self.register_buffer("usage", torch.full((1, prototypes), 1.0 / prototypes))
        self.queue: Tensor
        self.register_buffer("queue", torch.zeros(queue if centring == "sinkhorn" else 0, prototypes))
        self._sums: list[Tensor] = []  # of each part of a step: logits, then targets, then how many
        self._rows: list[Tensor] = []  # logits for the queue

    def forward(self, logits: Tensor, temperature: float, seen: int, group: Group = ALONE) -> Tensor:
        """Targets (B, K) for teacher logits (B, K), detached.

        Args:
            logits: of this process, B the same in all processes where there is a queue.
            temperature: of the targets.
            seen: rows that all processes together have seen in earlier steps.
            group: the processes that share the batch.
        """
        logits = logits.detach()
        if self.centring == "sinkhorn":
            past = self.queue[group.rank :: group.size] if seen >= len(self.queue) else self.queue[:0]
            targets = sinkhorn_knopp(torch.cat((past, logits)), temperature, group=group)[len(past) :]
        else:
            targets = softened(logits, temperature, self.centre if self.centring == "mean" else 0.0)
        # Balanced targets use all prototypes whatever the teacher says: what counts is what it says.
        said = softened(logits, temperature) if self.centring == "sinkhorn" else targets
        parts = (logits.to(targets.dtype).sum(0), said.sum(0), targets.new_full((1,), len(targets)))
        self._sums.append(torch.cat(parts))
        if len(self.queue):
            self._rows.append(logits)
        return targets

    @torch.no_grad()
    def update(self, group: Group = ALONE) -> None:
        """Takes in what was seen since the last update; once a step, after the loss that used the old state."""
        sums = group.sum(torch.stack(self._sums).sum(0))
        self._sums.clear()
        logits, said = (sums[:-1] / sums[-1]).chunk(2)  # NaN where nowhere was a row
        _approach(self.usage, said, 1.0 - _USAGE_MOMENTUM)
        if self.centring == "mean":
            _approach(self.centre, logits, 1.0 - self.momentum)
        if len(self.queue):
            rows = torch.cat((self.queue, group.gather(torch.cat(self._rows)).to(self.queue.dtype)))
            self._rows.clear()
            self.queue.copy_(rows[-len(self.queue) :])

    def prototypes_used(self) -> Tensor:
        """Share of the prototypes in use, from 1/K to 1: exp(entropy) / K of the mean of the recent targets, those of
        "sinkhorn" as they were before they were balanced."""
        return entropy(self.usage).exp() / self.usage.shape[1]


def _approach(average: Tensor, mean: Tensor, share: float) -> None:
    """Moves a running average towards the mean of a batch, unless that had no row."""
    average.lerp_(torch.where(mean.isnan(), average, mean.to(average.dtype)), share)
