"""Compilation and recomputation, applied to a task's blocks from this one place."""

from __future__ import annotations

import shutil
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from synoptic.config import TrainConfig
from synoptic.methods.base import Task

# Blocks share one code, of which PyTorch keeps so many versions: each depth of stochastic depth and each set of crops
# takes one.
_VERSIONS = 128


def accelerate(task: Task, config: TrainConfig) -> None:
    """Prepares the blocks of a task (`shard_units`, `frozen_units`) as the configuration says; names and values of
    weights stay.

    Raises:
        ValueError: for compilation on a CPU where there is no C++ compiler.
    """
    if config.compile:
        if config.device == "cpu" and not any(map(shutil.which, ("g++", "clang++", "cl"))):
            raise ValueError("compile=true: on a CPU that needs a C++ compiler (g++); install one or leave it out")
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VERSIONS)
    for unit in task.shard_units():
        if config.recompute:
            unit.forward = partial(checkpoint, unit.forward, use_reentrant=False)
        if config.compile:
            unit.compile()
    for unit in task.frozen_units() if config.compile else ():
        unit.compile()
