"""AdamW's groups, the schedules and the average of the weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from synoptic.config import OptimConfig
from synoptic.engine import optim
from synoptic.methods.base import ParamGroup, Phase, Task
from synoptic.models.vit import ViT, vit_config

shares = st.floats(0.0, 1.0)


class Small(Task):
    """A matrix and a vector."""

    def __init__(self, groups: list[ParamGroup] | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(4, 3))
        self.vector = nn.Parameter(torch.randn(4))
        self.groups = groups

    def parameter_groups(self) -> list[ParamGroup]:
        return self.groups if self.groups is not None else super().parameter_groups()


@given(shares, shares, shares)
def test_schedule_stays_between_its_ends(progress, warmup, final):
    value = optim.schedule(progress, warmup, final)
    assert 0.0 <= value <= 1.0 + 1e-12
    if progress >= warmup:
        assert value >= final - 1e-12


@given(st.floats(0.01, 0.99), shares)
def test_schedule_rises_to_one_and_falls_to_its_end(warmup, final):
    rising = [optim.schedule(warmup * step / 10, warmup, final) for step in range(11)]
    falling = [optim.schedule(warmup + (1 - warmup) * step / 10, warmup, final) for step in range(11)]
    assert rising[:10] == pytest.approx([step / 10 for step in range(10)])
    assert falling[0] == pytest.approx(1.0)
    assert falling[5] == pytest.approx((1 + final) / 2)
    assert falling[10] == pytest.approx(final)
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_schedule_with_no_warmup_or_nothing_else(warmup):
    assert optim.schedule(1.0 - warmup, 0.0, 0.0) == pytest.approx(warmup)
    assert optim.schedule(1.0, 1.0, 0.0) == 1.0


@given(st.integers(1, 500), shares)
def test_no_step_has_a_rate_of_zero(steps, warmup):
    """Not even the first of a warm-up or the last of a cosine to zero: a run of one step trains."""
    config = OptimConfig(lr=1.0, warmup=warmup, final_lr=0.0)
    assert all(optim.rates(Task(), config, step, steps)["lr"] > 0.0 for step in range(steps))


def test_each_phase_runs_through_the_whole_schedule_at_its_own_rate():
    task = Task()
    task.phases = (Phase(), Phase(0.6, lr_scale=0.5))
    config = OptimConfig(lr=1.0, warmup=0.5, weight_decay=0.1, final_weight_decay=0.9)
    whole = [optim.rates(Task(), config, step, 60) for step in range(60)]
    short = [optim.rates(Task(), config, step, 40) for step in range(40)]
    phased = [optim.rates(task, config, step, 100) for step in range(100)]
    assert [rates["lr"] for rates in phased[:60]] == pytest.approx([rates["lr"] for rates in whole])
    assert [rates["lr"] for rates in phased[60:]] == pytest.approx([0.5 * rates["lr"] for rates in short])
    decays = [rates["weight_decay"] for rates in (*whole, *short)]
    assert [rates["weight_decay"] for rates in phased] == pytest.approx(decays)


def test_weight_decay_is_constant_or_ends_on_a_cosine():
    assert optim.weight_decay(OptimConfig(weight_decay=0.04), 0.7) == 0.04
    dino = OptimConfig(weight_decay=0.04, final_weight_decay=0.4)
    assert [optim.weight_decay(dino, at) for at in (0.0, 0.5, 1.0)] == pytest.approx([0.04, 0.22, 0.4])


def test_decay_shrinks_matrices_alone():
    task = Small()
    before = {name: value.detach().clone() for name, value in task.named_parameters()}
    optimizer = optim.build_optimizer(task, OptimConfig(lr=0.1))
    optim.set_rates(optimizer, lr=0.1, weight_decay=0.5)
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(task.matrix, before["matrix"] * (1 - 0.1 * 0.5))
    assert torch.equal(task.vector, before["vector"])


def test_groups_scale_the_rate():
    task = Small()
    task.groups = [ParamGroup("a", [task.matrix], lr_scale=0.25), ParamGroup("b", [task.vector], decay=False)]
    optimizer = optim.build_optimizer(task, OptimConfig(lr=1.0))
    optim.set_rates(optimizer, lr=0.1, weight_decay=0.5)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        ("a", pytest.approx(0.025), 0.5),
        ("b", pytest.approx(0.1), 0.0),
    ]


def test_every_trainable_parameter_is_in_exactly_one_group():
    task = Small()
    task.groups = [ParamGroup("a", [task.matrix])]
    with pytest.raises(AssertionError, match=r"in no group: \['vector'\]"):
        optim.build_optimizer(task, OptimConfig(lr=1.0))
    task.vector.requires_grad_(False)
    optim.build_optimizer(task, OptimConfig(lr=1.0))
    task.groups = [ParamGroup("a", [task.matrix]), ParamGroup("b", [task.matrix])]
    with pytest.raises(AssertionError, match="in two groups"):
        optim.build_optimizer(task, OptimConfig(lr=1.0))


def test_the_optimizer_takes_the_steps_of_the_paper():
    """Against AdamW written out in float64 (arXiv 1711.05101, algorithm 2, with decay times rate as PyTorch has it)."""
    task = Small().double()
    optimizer = optim.build_optimizer(task, OptimConfig(lr=1.0, betas=(0.8, 0.9)))
    weight = task.matrix.detach().clone()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, 6):
        gradient = torch.randn_like(weight)
        task.matrix.grad = gradient.clone()
        optim.set_rates(optimizer, lr=0.1 / step, weight_decay=0.3)
        optimizer.step()
        weight = weight * (1 - 0.1 / step * 0.3)
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        weight -= 0.1 / step * (first / (1 - 0.8**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-8)
        torch.testing.assert_close(task.matrix.detach(), weight, rtol=1e-9, atol=1e-12)


def test_the_fused_step_is_the_plain_step_for_a_convolutional_vit():
    """Convolution gradients may come in another memory order than the weights; a fused kernel must not mix them up."""
    torch.manual_seed(0)
    vit = ViT(vit_config("vit_mini16", width=48, depth=1, hidden=96, image_size=32))
    task = Small()
    task.vit = vit
    plain = {name: value.detach().clone().requires_grad_() for name, value in vit.named_parameters()}
    optimizer = optim.build_optimizer(task, OptimConfig(lr=1e-2))
    reference = torch.optim.AdamW(plain.values(), lr=1e-2, weight_decay=0.05, foreach=False, fused=False)
    optim.set_rates(optimizer, lr=1e-2, weight_decay=0.05)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.05
    for _ in range(3):
        vit(torch.rand(2, 3, 32, 32)).summary.square().sum().backward()
        for name, value in vit.named_parameters():
            plain[name].grad = None if value.grad is None else value.grad.clone()
        optimizer.step()
        reference.step()
        optimizer.zero_grad()
    for name, value in vit.named_parameters():
        torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=1e-6)


def test_moments_come_back_and_nothing_else():
    task = Small()
    optimizer = optim.build_optimizer(task, OptimConfig(lr=1.0))
    for parameter in task.parameters():
        parameter.grad = torch.randn_like(parameter)
    optim.set_rates(optimizer, 0.1, 0.1)
    optimizer.step()
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        group["fused"], group["lr"] = False, 7.0  # as if saved on a machine where the step is computed otherwise
    other = optim.build_optimizer(Small(), OptimConfig(lr=1.0))
    optim.set_rates(other, 0.2, 0.2)
    optim.load_moments(other, saved)
    assert all(group["fused"] and group["lr"] == 0.2 for group in other.param_groups)
    for key, state in saved["state"].items():
        for name, value in state.items():
            assert torch.equal(other.state_dict()["state"][key][name], value)


def test_ema_is_the_average_it_says():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = optim.Ema(model, 0.9)
    expected = model[0].weight.detach().clone()
    for step in range(200):
        with torch.no_grad():
            model[0].weight.normal_()
            model[1].running_mean.fill_(float(step))
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(ema.model[0].weight, expected)
    assert ema.model[1].running_mean.tolist() == [199.0, 199.0]
    assert not ema.model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_ema_leaves_the_random_start_behind_within_a_short_run():
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 100.0)
    ema = optim.Ema(model, 0.9999)
    nn.init.constant_(model.weight, 0.0)
    for step in range(100):
        ema.update(step)
    assert ema.model.weight.item() < 1.0
    assert math.isclose(ema.decay, 0.9999)
