"""The processes that train together. The one place where `torch.distributed` may appear."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Group:
    """The processes of a run, as losses and the loop see them. This one is alone, so its collectives change nothing.

    Attributes:
        rank: number of this process, from 0.
        world_size: how many processes there are.
    """

    rank: int = 0
    world_size: int = 1

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all processes of equally shaped tensors."""
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """(n, ...) tensors of all processes, one after the other by rank: (world_size * n, ...), with gradients."""
        return tensor
