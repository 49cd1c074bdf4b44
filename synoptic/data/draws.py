"""Random numbers that belong to a sample: the same whatever the batch, the process or the interruption."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators")."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


class Draws:
    """Draws for a batch of samples, each a function of (seed, position of the sample in the run, name of the draw).

    Args:
        seed: seed of the run.
        position: (B,) int64, where each sample stands in the run.
    """

    def __init__(self, seed: int, position: Tensor):
        self.position = position.cpu()
        keys = self.position.numpy().astype(np.uint64)
        with np.errstate(over="ignore"):
            self._keys = _mix(_mix(keys * _GOLDEN) + np.uint64(seed & 0xFFFFFFFFFFFFFFFF) * _GOLDEN)  # (B,)

    def __len__(self) -> int:
        return len(self._keys)

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0, count: int | None = None) -> Tensor:
        """(B,) or (B, count) float32 on the CPU, uniform from low to high; every draw of a batch has its own name."""
        stream = np.uint64(zlib.crc32(name.encode()))
        columns = np.arange(1, (count or 1) + 1, dtype=np.uint64)
        with np.errstate(over="ignore"):
            bits = _mix(_mix(self._keys[:, None] + stream * _GOLDEN) + columns * _GOLDEN)  # (B, count)
        values = torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24))
        values = low + (high - low) * values
        return values if count is not None else values[:, 0]

    def flags(self, name: str, probability: float) -> Tensor:
        """(B,) bool, each true with the given probability."""
        return self.uniform(name) < probability

    def integers(self, name: str, high: Tensor | int) -> Tensor:
        """(B,) int64 in [0, high); `high` is one number or one a sample."""
        return (self.uniform(name).double() * high).long()
