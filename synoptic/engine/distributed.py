"""The processes of one training: how they meet, what they tell each other, how they are started.

Nothing else in the library knows `torch.distributed`. Each process holds the whole model and sees its part of every
batch; gradients are averaged by `DistributedDataParallel`. Under `torchrun` the processes are there already; `launch`
starts those of one machine.
"""

from __future__ import annotations

import gc
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from synoptic.children import Child, stop, terminated_as_interrupted
from synoptic.machine import cores
from synoptic.methods.base import Task
from synoptic.types import ALONE, Group

T = TypeVar("T")

PATIENCE = timedelta(hours=2)  # that processes wait for one another: the first alone evaluates, however long it takes
LOOK_EVERY = 0.2  # seconds between two looks at the processes
SAVING = 600.0  # seconds that processes have to end a step or an evaluation, and to save
FOLLOW = 5.0  # seconds in which the others fail too, once one has failed


class Processes:
    """The group of several processes (see `types.Group`)."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    @torch.no_grad()
    def sum(self, tensor: Tensor) -> Tensor:
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def gather(self, tensor: Tensor) -> Tensor:
        return _Gather.apply(tensor.contiguous())


class _Gather(torch.autograd.Function):
    """All processes' tensors in one; each part's gradient is the sum of what all processes ask of it."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # it may be another's as well
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def world() -> tuple[int, int]:
    """(rank, size) of this process among those that train together, as its launcher said; (0, 1) without one."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def place(device: str) -> str:
    """Where this process trains: of several GPUs its own."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


@contextmanager
def joined(device: str) -> Iterator[Group]:
    """The group of the processes that the launcher started; of this one alone where there is no launcher.

    Args:
        device: "cpu" or "cuda", on which they speak by gloo or by NCCL.
    """
    if world()[1] == 1:
        yield ALONE
        return
    if device == "cuda":
        torch.cuda.set_device(place(device))
    # A convolution in bf16 lays its gradients out otherwise than its weights. That costs a copy, and changes no number.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    yield Processes()
    # Nothing may hold the group any more, or its threads outlive it, and one that still asks for Python while that ends
    # takes the process with it. Not after a failure: it might wait for what other processes never say.
    gc.collect()
    dist.destroy_process_group()


def shared(value: T, group: Group) -> T:
    """What the first process says, in all of them."""
    if group.size == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told)
    return told[0]


class Replica:
    """A task whose gradients are averaged over all processes.

    Args:
        task: on its device, equal in all processes.
        group: the processes.
    """

    def __init__(self, task: Task, group: Group):
        step: nn.Module = _NextLosses(task)
        self._step = _averaging(step) if group.size > 1 else step

    def __call__(self, losses: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The next of the task's losses; backward on it averages the gradients, unless within `apart`."""
        return self._step(losses)

    def apart(self) -> AbstractContextManager[None]:
        """Within it gradients stay this process's own, and add up with those of the next losses."""
        return self._step.no_sync() if isinstance(self._step, DistributedDataParallel) else nullcontext()


def _averaging(step: nn.Module) -> nn.Module:
    """Buffers (running means) are equal in all processes, or each process's own: none are sent around."""
    with warnings.catch_warnings():  # the argument goes once the one that replaces it can do as much, says PyTorch
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(step, broadcast_buffers=False)


class _NextLosses(nn.Module):
    """A task as the module that DistributedDataParallel wants: its forward pass computes the next losses."""

    def __init__(self, task: Task):
        super().__init__()
        self.task = task

    def forward(self, losses: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
        return next(losses)


def launch(count: int, words: Sequence[str]) -> None:
    """Runs a module in several processes of this machine that train together, and waits for their end.

    When one fails, or this process is asked to stop (SIGINT, SIGTERM), the others are asked to stop too.

    Args:
        count: how many.
        words: the module and its arguments, the same for all.
    Raises:
        ValueError: one failed by the user's mistake, or was killed.
        RuntimeError: one failed otherwise.
        KeyboardInterrupt: this process was asked to stop.
    """
    # They meet at a store that stands here before any of them starts, as under torchrun: a port that were only looked
    # for here, and opened by the first of them, could be taken by then.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    threads = os.environ.get("OMP_NUM_THREADS", str(max(cores() // count, 1)))
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": threads,
    }
    running: list[Child] = []
    with terminated_as_interrupted():
        try:
            for rank in range(count):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                running.append(Child("", words, common | own, heard=rank == 0))
            _wait(running)
        except KeyboardInterrupt:
            stop(running, SAVING)
            raise KeyboardInterrupt("".join(running[0].said()[-1:])) from None
        finally:
            stop(running)


def _wait(running: Sequence[Child]) -> None:
    """Waits for the end of all; where one fails, raises what tells most of why."""
    while any(child.process.poll() is None for child in running):
        if any(child.process.returncode for child in running):
            break
        time.sleep(LOOK_EVERY)
    failed_at = time.monotonic()
    while any(child.process.poll() is None for child in running) and time.monotonic() < failed_at + FOLLOW:
        time.sleep(LOOK_EVERY)  # one that fails takes the others with it, which know less
    # What the user did wrong tells most, then that one was killed, least that others lost touch with it.
    for child in sorted(running, key=lambda child: (child.process.poll() != 2, (child.process.poll() or 0) >= 0)):
        if child.process.poll():
            child.check()
