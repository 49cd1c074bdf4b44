"""What a training method is: a `Task` that owns models, losses and augmentation, run by the one loop."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from synoptic.config import TrainConfig, flat, from_layers, nested
from synoptic.data.sources import Source
from synoptic.data.statistics import statistics
from synoptic.models.vit import ViTConfig, tiled_sizes, vit_config
from synoptic.types import ALONE, Batch, Group

ConfigT = TypeVar("ConfigT", bound=TrainConfig)


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share their hyper-parameters.

    Attributes:
        name: told in logs.
        params: the parameters.
        lr_scale: multiplies the scheduled learning rate.
        decay: whether weight decay applies.
        start: share of the run in which they stand still.
        warmup: share of the run after that in which their learning rate rises to the scheduled one.
    """

    name: str
    params: list[nn.Parameter]
    lr_scale: float = 1.0
    decay: bool = True
    start: float = 0.0
    warmup: float = 0.0


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with the learning of a run that goes on without an error.

    Attributes:
        name: in two or three words.
        cause: what that means, and what likely brought it about.
        mend: settings that help.
    """

    name: str
    cause: str
    mend: str

    def __str__(self) -> str:
        return f"{self.name}: {self.cause}; try {self.mend}"


@dataclass(frozen=True)
class Phase:
    """A part of a run with pictures of its own size, over which every schedule runs from its beginning to its end.

    Attributes:
        start: share of the run at which it begins.
        lr_scale: its learning rates over those of the run.
    """

    start: float = 0.0
    lr_scale: float = 1.0


def first_step(start: float, steps: int) -> int:
    """The first step of a run of so many whose progress is at least a share of the run."""
    step = int(start * steps)
    return step if step / steps >= start else step + 1


class Collapsed(ValueError):
    """A run stopped itself, since it was learning nothing any more."""


class Task(nn.Module):
    """A training method. The loop calls, for every step: `prepare`, `losses`, `before_step`, `after_step`.

    `progress` is the share of the run already done, in [0, 1]: every schedule is a function of it, by `phase`.

    Attributes:
        group: the processes that train together; statistics of the whole batch are taken over them.
        passes: how many dictionaries `losses` yields for the batch that was prepared last.
        whole_batches: whether `losses` is given whole batches, which it cuts into `accumulate` parts by itself.
        phases: in order, the first from 0 on.
        resolution: side in pixels of the pictures that the exported model is made for; None is the run's `size`.
        averages: running averages of what is exported, where the loop keeps one.
        largest_fall: share by which the score that decides may fall below that of the start before the run stops; None
            asks for no score of the start.
    """

    group: Group = ALONE
    passes: int = 1
    whole_batches: bool = False
    phases: tuple[Phase, ...] = (Phase(),)
    resolution: int | None = None
    averages: tuple[nn.Module, ...] = ()
    largest_fall: float | None = None

    @property
    def reads(self) -> int:
        """Side in pixels of the largest pictures that a network of this task is shown."""
        raise NotImplementedError

    def phase(self, progress: float) -> tuple[Phase, float]:
        """The phase in which a share of the run falls, and how much of the phase is done by then."""
        starts = [phase.start for phase in self.phases]
        place = bisect_right(starts, progress) - 1
        end = (*starts, 1.0)[place + 1]
        return self.phases[place], (progress - starts[place]) / (end - starts[place])

    def facts(self) -> dict[str, str]:
        """What else a run of this task depends on, beside its configuration: name -> what tells it apart."""
        return {}

    def prepare(self, batch: Batch, seed: int) -> Batch:
        """Augments a batch on its own device; everything random comes from (seed, batch.position)."""
        raise NotImplementedError

    def losses(self, batch: Batch, progress: float) -> Iterator[dict[str, Tensor]]:
        """Yields `passes` dictionaries of scalar tensors, each with "loss", on which the loop calls backward in turn.

        The other entries are reported: name -> scalar on the device, never synchronised here.
        """
        raise NotImplementedError

    def before_step(self, progress: float) -> None:
        """Called after backward and before clipping and the optimiser's step (frozen layers)."""

    def after_step(self, progress: float) -> None:
        """Called after the optimiser's step (EMA teacher, clamps)."""

    def memory(self) -> dict[str, Any]:
        """What it remembers beside its tensors, as plain values that a checkpoint keeps."""
        return {}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Goes back to what `memory` told."""

    def expected_losses(self) -> dict[str, float]:
        """What the terms of the loss should be about at the start, as far as theory tells: those of guessing."""
        return {}

    def diagnose(self, terms: Mapping[str, float], scores: Mapping[str, float], progress: float) -> Diagnosis | None:
        """What is wrong with the learning, by the terms since the last look and the scores of the last evaluation.

        Raises:
            Collapsed: where that is a reason to stop.
        """
        return None

    def parameter_groups(self) -> list[ParamGroup]:
        """Trainable parameters, matrices apart from vectors, which are never decayed."""
        return split_by_decay(self.named_parameters())

    def networks(self) -> Iterator[nn.Module]:
        """The modules that hold what is trained, each of which `optim.clip_by=module` bounds as a whole."""
        yield self

    def shard_units(self) -> Iterator[nn.Module]:
        """The modules that sharding, compilation and activation checkpointing treat as one."""
        return iter(())

    def frozen_units(self) -> Iterator[nn.Module]:
        """Likewise of networks that are asked and never trained, which compilation alone treats so."""
        return iter(())

    def exported(self) -> nn.Module:
        """What evaluators judge and `weights/` keeps: a model of `synoptic.models` that answers with Features."""
        raise NotImplementedError

    def finished(self, model: nn.Module) -> nn.Module:
        """What is written of an exported model (or the average of its weights) at the end: without what training alone
        needed. It may be changed in place."""
        return model


@dataclass(frozen=True)
class Unused:
    """Keys that decide nothing in some configurations, where whoever types them expects what will not come.

    Attributes:
        where: the rest of the sentence "KEY decides nothing ...".
        keys: their names; that of a group stands for all in it.
        holds: whether a configuration is one of these.
    """

    where: str
    keys: tuple[str, ...]
    holds: Callable[[Any], bool]

    def names(self, key: str) -> bool:
        """Whether a dotted key is one of them."""
        return any(key == name or key.startswith(f"{name}.") for name in self.keys)


LENGTH = Unused("beside steps=", ("epochs",), lambda config: config.steps is not None)


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
        rankme: whether the effective rank of the embeddings is found while training: for methods that may collapse.
        unused: keys that are refused where they would decide nothing.
    """

    name: str
    summary: str
    config: type[TrainConfig]
    resolve: Callable[..., TrainConfig]
    build: Callable[..., Task]
    presets: Mapping[str, Mapping[str, Any]]
    captions: bool = False
    metric: Literal["knn", "r_mean"] = "knn"
    rankme: bool = False
    unused: tuple[Unused, ...] = ()

    def configure(
        self, values: Mapping[str, Any], where: str, *, file: str | Path | None = None, preset: str | None = None
    ) -> TrainConfig:
        """A configuration from a file, a preset over it, and what a user typed over both.

        Args:
            values: nested or with dotted keys.
            where: told in errors.
            file: JSON file with values, such as the `config.json` of a run.
            preset: one of the method's.
        Raises:
            ValueError: see `config.from_layers`; and for a typed key that decides nothing beside the others.
        """
        config = from_layers(self.config, values, where, file=file, preset=preset, presets=self.presets)
        for key in (key for key, value in flat(nested(values)).items() if value is not None):
            for unused in (LENGTH, *self.unused):
                if unused.names(key) and unused.holds(config):
                    raise ValueError(f"{where}: {key} decides nothing {unused.where}; leave it out")
        return config


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
    if config.channels != 3 and config.depth == "8bit":
        raise ValueError(f"depth=8bit: reads RGB, not channels={config.channels}; leave depth out, or give depth=full")
    return replace(
        config,
        steps=steps,
        size=config.size or size,
        depth=config.depth or ("8bit" if config.channels == 3 else "full"),
        checkpoint_every=config.checkpoint_every or max(1, steps // 20),
        evaluate_every=config.evaluate_every or max(1, steps // 5),
        optim=config.optim if config.optim.lr is not None else replace(config.optim, lr=lr),
    )


def of_bands(config: TrainConfig, source: Source) -> dict[str, Any]:
    """What a ViT's configuration has to say of pictures that are read at full depth; nothing for 8-bit RGB.

    Their statistics are taken here, anew also where a run goes on: they are a function of the pictures.
    """
    if config.bands is None:
        return {}
    mean, std = statistics(source, config.bands)
    return {"channels": config.bands, "mean": mean, "std": std}


def facts_of_bands(config: TrainConfig, vit: ViTConfig) -> dict[str, str]:
    """The statistics by which a run normalises pictures of full depth, among its `Task.facts`: it cannot go on with
    other ones."""
    if config.bands is None:
        return {}
    return {"data.mean": ", ".join(map(str, vit.mean)), "data.std": ", ".join(map(str, vit.std))}


def check_tiles(key: str, size: int, model: str, patch: int | None = None) -> None:
    """Refuses pictures that the patches of an architecture do not tile, by the key that users type.

    Args:
        key: of the size.
        size: side in pixels.
        model: told to the user; the name of the architecture, unless `patch` is given.
        patch: its patch size.
    """
    patch = patch or vit_config(model).patch_size
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


def split_by_depth(named: Iterator[tuple[str, nn.Parameter]], decay: float, patch_embed: float) -> list[ParamGroup]:
    """Groups as `split_by_decay`, each parameter of a ViT `backbone` at the learning rate of its depth.

    Args:
        named: the parameters by name; those outside of `backbone` learn at the full rate.
        decay: factor from each block to the one below it; what comes before the first block is one layer more.
        patch_embed: further factor of the patch embedding.

    Source: layer-wise decay as in BEiT (arXiv 2106.08254, appendix); patch embedding at 0.2 in DINOv2's code.
    """
    parameters = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    depths = {name: _depth(name) for name, _ in parameters}
    top = max(depths.values(), default=0) + 1
    scales: dict[float, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in parameters:
        depth = top if depths[name] < 0 else depths[name]
        scale = decay ** (top - depth) * (patch_embed if name.startswith("backbone.patch_embed.") else 1.0)
        scales.setdefault(scale, []).append((name, parameter))
    return [
        replace(group, name=f"{group.name} x {scale:.3g}" if scale != 1.0 else group.name, lr_scale=scale)
        for scale, members in scales.items()
        for group in split_by_decay(iter(members))
        if group.params
    ]


def _depth(name: str) -> int:
    """1 for a parameter of a ViT's first block, 0 below it, -1 above all blocks and outside of the backbone."""
    if match := re.match(r"backbone\.blocks\.(\d+)\.", name):
        return int(match[1]) + 1
    return -1 if not name.startswith("backbone.") or name.startswith("backbone.norm.") else 0


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, parameter by parameter; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - decay)
    for target, source in zip(average.buffers(), model.buffers(), strict=True):
        target.copy_(source)
