"""The precision in which losses and statistics are taken."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where that is what comes in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
