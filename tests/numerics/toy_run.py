"""A run of milliseconds that holds all that a resumed run could get wrong, and what tells two runs apart."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from synoptic.config import CheckpointConfig, OptimConfig, TrainConfig
from synoptic.engine import checkpoint
from synoptic.engine.observe import read_metrics
from synoptic.methods.base import Task
from synoptic.types import Batch

CONFIG = TrainConfig(
    data="toy",
    out="toy",
    steps=24,
    batch=6,
    accumulate=2,
    precision="fp32",
    seed=3,
    log_every=5,
    checkpoint_every=4,
    evaluate_every=7,
    optim=OptimConfig(lr=1e-2, final_weight_decay=0.2, ema=0.9),
    checkpoint=CheckpointConfig(keep=2, metric="knn"),
)


class ToyTask(Task):
    """Learns labels from pictures, with everything that a resumed run could get wrong: dropout, batch statistics, an
    average of its own in `after_step`, a frozen part, and terms that not every step reports."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 3))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.register_buffer("average", torch.zeros(3))
        self.seen: list[tuple[str, float]] = []

    def prepare(self, batch: Batch, seed: int) -> Batch:
        return replace(batch, images=batch.images.float() / 255)

    def losses(self, batch: Batch, progress: float) -> Iterator[dict[str, torch.Tensor]]:
        self.seen.append(("losses", progress))
        logits = self.net(batch.images)
        loss = nn.functional.cross_entropy(logits, batch.labels)
        terms = {"loss": loss + 0.1 * self.frozen(logits).square().mean(), "cross_entropy": loss}
        if int(progress * 24) % 2:
            terms["odd"] = logits.mean()
        yield terms

    def before_step(self, progress: float) -> None:
        self.seen.append(("before", progress))

    def after_step(self, progress: float) -> None:
        self.seen.append(("after", progress))
        self.average.lerp_(self.net[-1].bias.detach(), 0.1)

    def exported(self) -> nn.Module:
        return self.net


class ToyLoader:
    """Random pictures, a function of the step."""

    def __init__(self, size: int = CONFIG.batch, tell: int | None = None, most: int | None = None):
        self.size = size
        self.tell = tell  # a pipe that takes a byte a batch
        self.most = most  # batches, after which it waits to be killed
        self.asked: list[int] = []

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        for step in range(start, stop):
            if len(self.asked) == self.most:
                time.sleep(300)
            self.asked.append(step)
            if self.tell is not None:
                os.write(self.tell, b".")
            generator = torch.Generator().manual_seed(step)
            images = torch.randint(0, 256, (self.size, 3, 2, 2), generator=generator, dtype=torch.uint8)
            place = torch.arange(self.size)
            yield Batch(images=images, labels=(place + step) % 3, index=place, position=step * self.size + place)

    def names(self, step: int) -> list[str]:
        return [f"{step}/{place}.png" for place in range(self.size)]


def score(model: nn.Module) -> dict[str, float]:
    """A score that is highest in the middle of the run, and spoils every random state on the way."""
    torch.rand(7)
    return {"knn": -abs(float(model[1].weight.square().sum()) - 8.0), "chance": 0.1}


def final_state(out: Path) -> dict:
    return checkpoint.Checkpoints(out / "checkpoints", 2).latest()


def assert_same_run(first: Path, second: Path) -> None:
    """Bitwise equal weights, moments and averages, and equal metrics apart from the times."""
    states = [final_state(first), final_state(second)]
    for state in states:
        del state["seconds"]
    assert_equal(*states)
    assert metrics_without_times(first) == metrics_without_times(second)
    names = [sorted(path.name for path in (out / "checkpoints").iterdir()) for out in (first, second)]
    assert names[0] == names[1]


def assert_equal(first, second) -> None:
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_equal(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_equal(one, other)
    else:
        assert first == second


def metrics_without_times(out: Path) -> list[dict]:
    times = ("images_per_second", "data_wait", "seconds")
    return [
        {name: value for name, value in line.items() if name not in times}
        for line in read_metrics(out / "metrics.jsonl")
    ]
