"""Rows that do not see each other, some after the others: what is made of them between two layers stays in a core's
cache, and needs no memory of its own each time, which the system would have to clear first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

COUNT = 1024  # rows: those of 2,048 hidden channels are 8 MB in float32


def in_parts(step: Callable[..., Tensor], *rows: Tensor, count: int = COUNT) -> Tensor:
    """step(*rows), its answer being like the first of the rows; without gradients on a CPU in parts.

    Args:
        step: whose answer of a row depends on that row of each alone.
        rows: (N, ...) each.
        count: rows of a part.
    """
    first = rows[0]
    if torch.is_grad_enabled() or first.device.type != "cpu" or len(first) <= count or torch.compiler.is_compiling():
        return step(*rows)
    answer = torch.empty_like(first)
    for place, *parts in zip(answer.split(count), *(each.split(count) for each in rows), strict=True):
        place.copy_(step(*parts))
    return answer
