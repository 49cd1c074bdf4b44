"""A run of one process."""

import torch

from synoptic.engine.distributed import Group


def test_alone_collectives_change_nothing():
    group, tensor = Group(), torch.randn(3, 2, requires_grad=True)
    assert (group.rank, group.world_size) == (0, 1)
    assert torch.equal(group.all_reduce(tensor), tensor)
    group.all_gather(tensor).sum().backward()
    assert torch.equal(tensor.grad, torch.ones(3, 2))
