"""Recomputation and compilation change how blocks are computed, and nothing of what comes out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ssl_processes import OF_METHODS, SHARED, crops_of
from torch import nn

from synoptic.config import from_dict
from synoptic.data.sources import Source
from synoptic.engine.acceleration import accelerate
from synoptic.methods import get_method
from synoptic.types import Batch


def task_of(**values: Any) -> Any:
    recipe = get_method("dinov2")
    keys = {**SHARED, **OF_METHODS["dinov2"], "patch_bottleneck": 8, **values}
    config: Any = recipe.resolve(from_dict(recipe.config, keys, "test"), 64)
    torch.manual_seed(0)
    task: Any = recipe.build(replace(config, device="cpu"), Source(Path("p"), [Path("a.jpg")]))
    task = task.double().train()
    task.multi_crop = crops_of
    accelerate(task, replace(config, device="cpu"))
    return task


def gradients(task: Any) -> dict[str, torch.Tensor]:
    position = torch.arange(8)
    batch = task.prepare(Batch(images=torch.zeros(8, 1), position=position), 0)
    torch.manual_seed(3)  # what stochastic depth draws
    (terms,) = task.losses(batch, 0.5)
    terms["loss"].backward()
    found = {name: parameter.grad for name, parameter in task.named_parameters() if parameter.grad is not None}
    return {"loss": terms["loss"].detach(), **found}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        scale = max(float(tensor.abs().max()), 1e-12)
        assert float((tensor - other[name]).abs().max()) <= tolerance * scale, name


def test_recomputed_blocks_have_the_gradients_of_kept_ones() -> None:
    """With stochastic depth, whose draws are repeated."""
    assert_close(gradients(task_of(drop_path=0.4)), gradients(task_of(drop_path=0.4, recompute=True)), 1e-12)


def test_recomputation_keeps_less() -> None:
    """Counts what the backward pass holds on to."""

    def kept(recompute: bool) -> int:
        task, held = task_of(recompute=recompute), 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal held
            held += tensor.numel()
            return tensor

        batch = task.prepare(Batch(images=torch.zeros(8, 1), position=torch.arange(8)), 0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            next(task.losses(batch, 0.5))
        return held

    assert kept(True) < 0.6 * kept(False)


def test_names_of_weights_stay() -> None:
    plain, recomputed = task_of(), task_of(recompute=True)
    assert plain.state_dict().keys() == recomputed.state_dict().keys()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    yield
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("drop_path", [0.0, 0.4])
def test_compiled_blocks_are_those_that_were_written(fresh_compiler: None, recompute: bool, drop_path: float) -> None:
    """Several sizes of crops, teacher and student, in float64."""
    compiled = task_of(compile=True, recompute=recompute, drop_path=drop_path)
    assert_close(gradients(task_of(drop_path=drop_path)), gradients(compiled), 1e-9)
    assert compiled.state_dict().keys() == task_of().state_dict().keys()


def test_without_a_compiler_compilation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="compile=true: on a CPU that needs a C\\+\\+ compiler"):
        task_of(compile=True)


def test_nothing_is_done_unasked() -> None:
    blocks: list[nn.Module] = list(task_of().shard_units())
    assert blocks and not any("forward" in vars(block) for block in blocks)
