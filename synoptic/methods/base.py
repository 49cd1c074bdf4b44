"""What a training method is: a `Task` that owns models, losses and augmentation, run by the one loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

import torch
from pydantic import AfterValidator
from pydantic import Field as Bound
from torch import Tensor, nn

from synoptic.config import TrainConfig
from synoptic.models.vit import tiled_sizes, vit_config
from synoptic.types import Batch

ConfigT = TypeVar("ConfigT", bound=TrainConfig)

_AreaShare = Annotated[float, Bound(gt=0, le=1)]


def _rising(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] > span[1]:
        raise ValueError("the lowest value comes first")
    return span


AreaSpan = Annotated[tuple[_AreaShare, _AreaShare], AfterValidator(_rising)]
"""Lowest and highest share of a picture's area."""


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share their hyper-parameters.

    Attributes:
        name: told in logs.
        params: the parameters.
        lr_scale: multiplies the scheduled learning rate.
        decay: whether weight decay applies.
    """

    name: str
    params: list[nn.Parameter]
    lr_scale: float = 1.0
    decay: bool = True


class Task(nn.Module):
    """A training method. The loop calls, for every step: `prepare`, `losses`, `before_step`, `after_step`.

    `progress` is the share of the run already done, in [0, 1]: every schedule is a function of it.
    """

    @property
    def reads(self) -> int:
        """Side in pixels of the largest pictures that a network of this task is shown."""
        raise NotImplementedError

    def facts(self) -> dict[str, str]:
        """What else a run of this task depends on, beside its configuration: name -> what tells it apart."""
        return {}

    def prepare(self, batch: Batch, seed: int) -> Batch:
        """Augments a batch on its own device; everything random comes from (seed, batch.position)."""
        raise NotImplementedError

    def losses(self, batch: Batch, progress: float) -> Iterator[dict[str, Tensor]]:
        """Yields dictionaries of scalar tensors, each with "loss", on which the loop calls backward in turn.

        The other entries are reported: name -> scalar on the device, never synchronised here.
        """
        raise NotImplementedError

    def before_step(self, progress: float) -> None:
        """Called after backward and before clipping and the optimiser's step (frozen layers)."""

    def after_step(self, progress: float) -> None:
        """Called after the optimiser's step (EMA teacher, clamps)."""

    def parameter_groups(self) -> list[ParamGroup]:
        """Trainable parameters, matrices apart from vectors, which are never decayed."""
        return split_by_decay(self.named_parameters())

    def shard_units(self) -> Iterator[nn.Module]:
        """The modules that sharding, compilation and activation checkpointing treat as one."""
        return iter(())

    def exported(self) -> nn.Module:
        """What evaluators judge and `weights/` keeps: a model of `synoptic.models` that answers with Features."""
        raise NotImplementedError


@dataclass(frozen=True)
class Method:
    """A method by name: its configuration, how its task is built, and its presets.

    Attributes:
        name: what users type.
        summary: one line that tells what it does.
        config: its configuration class.
        resolve: (config, number of training pictures) -> the configuration with every None derived.
        build: (resolved config, training source) -> the task.
        presets: name -> values by dotted key.
        captions: whether it trains on captions.
        metric: validation score that decides which checkpoint is best, where the data allow it.
    """

    name: str
    summary: str
    config: type[TrainConfig]
    resolve: Callable[..., TrainConfig]
    build: Callable[..., Task]
    presets: Mapping[str, Mapping[str, Any]]
    captions: bool = False
    metric: str = "knn"


def resolve_common(config: ConfigT, samples: int, *, lr: float, epochs: float, size: int) -> ConfigT:
    """Fills what is None in a configuration in the way that all methods share.

    Args:
        config: as the user gave it.
        samples: number of training pictures.
        lr: highest learning rate, where the user gave none.
        epochs: length of the run, where the user gave neither steps nor epochs.
        size: side of the training pictures, where the user gave none.
    """
    steps = config.steps or max(1, round((config.epochs or epochs) * samples / config.batch))
    return replace(
        config,
        steps=steps,
        size=config.size or size,
        checkpoint_every=config.checkpoint_every or max(1, steps // 20),
        evaluate_every=config.evaluate_every or max(1, steps // 5),
        optim=config.optim if config.optim.lr is not None else replace(config.optim, lr=lr),
    )


def check_tiles(key: str, size: int, model: str) -> None:
    """Refuses pictures that the patches of an architecture do not tile, by the key that users type."""
    patch = vit_config(model).patch_size
    if size % patch:
        low, high = tiled_sizes(size, patch)
        raise ValueError(f"{key}={size}: the patches of {model} do not tile it; the nearest that work: {low}, {high}")


def split_by_decay(named: Iterator[tuple[str, nn.Parameter]]) -> list[ParamGroup]:
    """Two groups: matrices, which weight decay shrinks, and vectors, biases and scalars, which it leaves alone."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for _, parameter in named:
        if parameter.requires_grad:
            (matrices if parameter.ndim >= 2 else vectors).append(parameter)
    return [ParamGroup("matrices", matrices), ParamGroup("vectors", vectors, decay=False)]


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, parameter by parameter; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - decay)
    for target, source in zip(average.buffers(), model.buffers(), strict=True):
        target.copy_(source)
