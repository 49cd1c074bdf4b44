"""Continuing from given weights: the backbone is theirs, a new head learns alone first, a fall stops the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_tasks import backward, batch_of, config_of, source_of

from synoptic.engine import optim
from synoptic.engine.loop import train
from synoptic.engine.stopping import Worsened
from synoptic.methods import get_method
from synoptic.models.vit import ViT, vit_config
from synoptic.predict import VisionModel, load
from synoptic.types import Preprocess

HEADS = {"prototypes": 16, "head_hidden": 16, "bottleneck": 8}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of no named architecture, with registers."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("given") / "weights"
    vit = ViT(vit_config("vit_nano8", image_size=32, depth=2, registers=2, layer_scale=0.1))
    VisionModel(vit, Preprocess(32), "given").save(folder)
    return folder


def task_of(method: str, given: Path, **values: Any) -> Any:
    torch.manual_seed(0)
    config = config_of(method, **{"init": str(given), **HEADS, **values})
    return get_method(method).build(config, source_of()).train()


@pytest.mark.parametrize("method", ["dino", "dinov2"])
def test_student_and_teacher_begin_as_the_given_model(method: str, given: Path) -> None:
    task = task_of(method, given)
    images = torch.rand(2, 3, 32, 32)
    expected = load(given, "cpu").model(images)
    for backbone in (task.student.backbone.eval(), task.exported()):
        answer = backbone(images)
        assert torch.equal(answer.summary, expected.summary) and torch.equal(answer.patches, expected.patches)
    assert task.student.backbone.config.registers == 2
    backward(task.train(), batch_of(4))


def test_the_head_learns_alone_then_the_backbone_wakes(given: Path) -> None:
    task = task_of("dino", given, head_warmup=0.3, optim={"lr": 1.0, "warmup": 0.2})
    optimizer = optim.build_optimizer(task, task.config.optim)
    of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    backbone, head = of[id(task.student.backbone.norm.weight)], of[id(task.student.head.mlp[0].bias)]
    rates = []
    for progress in (0.0, 0.29, 0.3, 0.4, 0.5, 0.9):
        optim.set_rates(optimizer, 1.0, 0.1, progress)
        rates.append((backbone["lr"], head["lr"]))
    assert [head for _, head in rates] == [1.0] * 6
    assert [lr for lr, _ in rates] == pytest.approx([0.0, 0.0, 0.0, 0.5, 1.0, 1.0])
    assert len(of) == sum(parameter.requires_grad for parameter in task.student.parameters())


def test_a_backbone_that_stands_still_stays_as_given(given: Path) -> None:
    task = task_of("dino", given, head_warmup=0.9)
    optimizer = optim.build_optimizer(task, task.config.optim)
    before = [parameter.clone() for parameter in task.student.backbone.parameters()]
    head = task.student.head.mlp[0].weight.clone()
    optim.set_rates(optimizer, 0.1, 0.5, 0.5)
    backward(task, batch_of(4))
    task.before_step(0.5)
    optimizer.step()
    assert all(map(torch.equal, before, task.student.backbone.parameters()))
    assert not torch.equal(head, task.student.head.mlp[0].weight)
    known = {id(parameter) for parameter in optimizer.state}
    assert not known & set(map(id, task.student.backbone.parameters())), "no moments of what a new head asked of it"
    backward(task, batch_of(4))
    task.before_step(0.95)
    assert all(parameter.grad is not None for parameter in task.student.backbone.parameters())


class _Batches:
    def batches(self, start: int, stop: int) -> Any:
        return (batch_of(4, start=4 * step) for step in range(start, stop))

    def names(self, step: int) -> list[str]:
        return []


@pytest.mark.parametrize(("scores", "stops"), [((0.8, 0.79, 0.75), False), ((0.8, 0.7, 0.9), True)])
def test_a_fall_below_the_start_stops_the_run(given: Path, tmp_path: Path, scores: Any, stops: bool) -> None:
    task = task_of("dino", given, evaluate_every=5, max_drop=0.1, precision="fp32")
    told = iter(scores)
    run = lambda: train(task, _Batches(), task.config, tmp_path, lambda model: {"rankme": next(told)})  # noqa: E731
    if not stops:
        assert run()["evaluation"] == {"rankme": 0.75}
        return
    with pytest.raises(
        Worsened, match=r"stopped after step 5: rankme fell from 0.800 at the start to 0.700, .*max_drop"
    ):
        run()


def test_weights_without_a_transformer_and_other_bands_are_refused(given: Path) -> None:
    with pytest.raises(ValueError, match="there is no model 'nothing'"):
        task_of("dino", Path("nothing"))
    with pytest.raises(ValueError, match="reads 3 bands, not channels=4"):
        task_of("dino", given, channels=4)


def test_what_was_given_belongs_to_the_run(given: Path) -> None:
    assert set(task_of("dino", given).facts()) == {"init.weights"}


@pytest.mark.parametrize(("best", "warns"), [(0.79, True), (0.81, False)])
def test_a_run_that_ends_below_its_start_says_so(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], best: float, warns: bool
) -> None:
    task = task_of("dino", given, evaluate_every=5, max_drop=0.1, precision="fp32", checkpoint={"metric": "knn"})
    told = iter((0.8, best, 0.75))
    train(task, _Batches(), task.config, tmp_path, lambda model: {"knn": next(told)})
    said = capsys.readouterr().err
    assert ("warning: the best model of this run (knn 0.790, step 5) is below the weights" in said) == warns
