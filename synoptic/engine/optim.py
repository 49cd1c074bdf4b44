"""AdamW with parameter groups, its schedules, and the average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from synoptic.config import OptimConfig
from synoptic.methods.base import Task, update_average


def schedule(progress: float, warmup: float, final: float) -> float:
    """A factor that rises linearly from 0 to 1, then falls to `final` on half a cosine.

    Args:
        progress: share of the run, or of a phase of it, in [0, 1].
        warmup: share in which the factor rises, in [0, 1].
        final: factor at the end.

    Source: Loshchilov and Hutter 2017, "SGDR" (arXiv 1608.03983), one period; warm-up of Goyal et al. 2017
        (arXiv 1706.02677).
    """
    if progress < warmup:
        return progress / warmup
    fallen = (progress - warmup) / (1.0 - warmup) if warmup < 1.0 else 0.0
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * fallen))


def learning_rate(config: OptimConfig, progress: float) -> float:
    """The learning rate at a share of the run or phase, before the scale of the phase and of a group."""
    assert config.lr is not None, "optim.lr is resolved when the run is built"
    return config.lr * schedule(progress, config.warmup, config.final_lr)


def weight_decay(config: OptimConfig, progress: float) -> float:
    """The weight decay at a share of the run or phase: constant, or on half a cosine to its final value.

    Source: DINO (arXiv 2104.14294), sec. 3.3.
    """
    if config.final_weight_decay is None:
        return config.weight_decay
    final = config.final_weight_decay
    return final + (config.weight_decay - final) * schedule(progress, 0.0, 0.0)


def rates(task: Task, config: OptimConfig, step: int, steps: int) -> dict[str, float]:
    """ "lr" and "weight_decay" of a step, from 0, taken at its middle, so that the first and the last one count too."""
    phase, share = task.phase((step + 0.5) / steps)
    return {"lr": phase.lr_scale * learning_rate(config, share), "weight_decay": weight_decay(config, share)}


def build_optimizer(task: Task, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the task's parameter groups; call it once the task is on its device.

    Every group keeps what `set_rates` needs of it.

    Source: Loshchilov and Hutter 2019, "Decoupled weight decay regularization" (arXiv 1711.05101).
    """
    groups = [group for group in task.parameter_groups() if group.params]
    grouped = [id(parameter) for group in groups for parameter in group.params]
    trainable = {id(parameter): name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped)), "a parameter is in two groups"
    assert set(grouped) == set(trainable), f"in no group: {[trainable[i] for i in set(trainable) - set(grouped)]}"
    return torch.optim.AdamW(
        [
            {name: getattr(group, name) for name in ("params", "name", "lr_scale", "decay", "start", "warmup")}
            for group in groups
        ],
        betas=config.betas,
        fused=True,  # one pass over the memory: on a CPU, too, several times as fast as parameter by parameter
    )


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float, progress: float = 1.0) -> None:
    """Gives every group its learning rate and weight decay for the coming step, at a share of the run."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"] * _awake(progress, group["start"], group["warmup"])
        group["weight_decay"] = weight_decay if group["decay"] else 0.0


def _awake(progress: float, start: float, warmup: float) -> float:
    """0 before `start`, then rising linearly to 1."""
    if progress < start:
        return 0.0
    return min((progress - start) / warmup, 1.0) if warmup else 1.0


@torch.no_grad()
def clip(networks: Sequence[Sequence[nn.Parameter]], config: OptimConfig, norm: Tensor) -> None:
    """Scales gradients down in place to the norm that `config.clip` allows.

    Args:
        networks: the trained parameters of each of a task's networks.
        config: the bound, and whether it holds for all gradients together, for each network as a whole (as in the code
            of DINOv2) or for each tensor (as in that of DINO).
        norm: of all gradients together.
    """
    if config.clip is None:
        return
    parts = [[p.grad for p in network if p.grad is not None] for network in networks]
    gradients = [gradient for part in parts for gradient in part]
    if config.clip_by == "all":
        _scale_to(config.clip, gradients, norm)
    elif config.clip_by == "module":
        for part in parts:
            _scale_to(config.clip, part, get_total_norm(part))
    else:
        factors = torch._foreach_norm(gradients)
        torch._foreach_add_(factors, 1e-6)
        torch._foreach_reciprocal_(factors)
        torch._foreach_mul_(factors, config.clip)
        torch._foreach_clamp_max_(factors, 1.0)
        torch._foreach_mul_(gradients, factors)


def _scale_to(bound: float, gradients: list[Tensor], norm: Tensor) -> None:
    if gradients:
        torch._foreach_mul_(gradients, (bound / (norm + 1e-6)).clamp_max(1.0))


def load_moments(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Takes AdamW's moments from a saved state and nothing else: rates come from the schedule, and how the step is
    computed (fused or not) from the device that the run goes on with."""
    optimizer.load_state_dict({"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]})


class Ema:
    """An exponential moving average of a model's weights, evaluated and exported in their place.

    Args:
        model: the model that is trained; it stays the caller's.
        decay: share of the average that stays at each step, in [0, 1). At first less stays, min(decay, (1 + t) /
            (10 + t)) after t steps, so that a short run's average forgets the random start.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.source = model
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    def update(self, step: int) -> None:
        """Moves the average towards the model after `step` earlier updates."""
        update_average(self.model, self.source, min(self.decay, (1 + step) / (10 + step)))
