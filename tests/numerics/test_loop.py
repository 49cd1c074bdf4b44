"""The loop: what a step computes, and what it tells."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toy_run import CONFIG, ToyLoader, ToyTask, assert_equal, final_state, metrics_without_times, score

from synoptic.config import CheckpointConfig, OptimConfig
from synoptic.engine import optim
from synoptic.engine.loop import best_model, train, trial
from synoptic.engine.stopping import NonFiniteLoss
from synoptic.methods.base import ParamGroup, Task, split_by_decay
from synoptic.types import Batch


class Linear(Task):
    """One matrix, whose step can be written down."""

    def __init__(self, parts: int = 1):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 12, dtype=torch.float64))
        self.passes = parts

    def prepare(self, batch: Batch, seed: int) -> Batch:
        return replace(batch, images=batch.images.double().flatten(1) / 255)

    def losses(self, batch: Batch, progress: float) -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(self.passes):  # the same loss as several, each with a graph of its own
            loss = nn.functional.cross_entropy(batch.images @ self.weight.T, batch.labels) / self.passes
            yield {"loss": loss, "part": loss.detach()}

    def exported(self) -> nn.Module:
        return self

    def parameter_groups(self) -> list[ParamGroup]:
        return split_by_decay(self.named_parameters())


def run_linear(out: Path, *, size: int = 10, parts: int = 1, **changes) -> tuple[torch.Tensor, list[dict]]:
    config = replace(CONFIG, batch=size, accumulate=1, optim=OptimConfig(lr=0.1, clip=0.5), log_every=1, steps=5)
    task = Linear(parts)
    train(task, ToyLoader(size), replace(config, **changes), out)
    return task.weight.detach(), metrics_without_times(out)


def test_a_step_is_the_step_written_out(tmp_path):
    """Mean loss, clipping by the norm of all gradients, AdamW with the scheduled rate and decay: in float64."""
    weight, lines = run_linear(tmp_path)
    task = Linear()
    reference = torch.optim.AdamW([task.weight], betas=(0.9, 0.999), foreach=False, fused=False)
    for step, batch in enumerate(ToyLoader(10).batches(0, 5)):
        terms = next(task.losses(task.prepare(batch, 0), 0.0))
        task.zero_grad()
        terms["loss"].backward()
        norm = task.weight.grad.norm()
        task.weight.grad *= min(1.0, 0.5 / norm)
        share = (step + 0.5) / 5
        lr = 0.1 * 0.5 * (1 + np.cos(np.pi * (share - 0.1) / 0.9)) if share >= 0.1 else share / 0.1 * 0.1
        reference.param_groups[0] |= {"lr": lr, "weight_decay": 0.05}
        reference.step()
        assert lines[step]["loss"] == pytest.approx(terms["loss"].item(), rel=1e-6)
        assert lines[step]["grad_norm"] == pytest.approx(norm.item(), rel=1e-6)
        assert lines[step]["lr"] == pytest.approx(lr, rel=1e-6)
    torch.testing.assert_close(weight, task.weight.detach(), rtol=1e-5, atol=1e-7)  # clip adds 1e-6 to the norm


@pytest.mark.parametrize(
    ("clip_by", "expected"),
    [
        ("tensor", [[0.6, 0.8], [0.3, 0.4], [1.0, 0.0]]),
        ("module", [[0.6, 0.8], [0.0597, 0.0796], [0.9950, 0.0]]),
        ("all", [[0.4233, 0.5644], [0.0423, 0.0564], [0.7055, 0.0]]),
    ],
)
def test_gradients_are_clipped_together_by_network_or_by_tensor(clip_by, expected):
    """Norms 5 alone, 0.5 and 5 in one network, with a bound of 1; a parameter that stands still has no gradient."""
    alone, small, large, still = (torch.nn.Parameter(torch.zeros(2)) for _ in range(4))
    alone.grad, small.grad, large.grad = (torch.tensor(g) for g in ([3.0, 4.0], [0.3, 0.4], [5.0, 0.0]))
    norm = torch.cat([alone.grad, small.grad, large.grad]).norm()
    optim.clip([[alone], [small, large], [still]], OptimConfig(clip=1.0, clip_by=clip_by), norm)
    found = torch.stack([alone.grad, small.grad, large.grad])
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("accumulate", "parts"), [(2, 1), (4, 1), (10, 1), (1, 3), (3, 2)])
def test_accumulation_and_several_losses_change_nothing(tmp_path, accumulate, parts):
    """Also where the parts of a batch of 10 are of different sizes."""
    whole, lines = run_linear(tmp_path / "whole")
    cut, cut_lines = run_linear(tmp_path / "cut", accumulate=accumulate, parts=parts)
    torch.testing.assert_close(cut, whole, rtol=1e-9, atol=1e-12)
    for line, cut_line in zip(lines, cut_lines, strict=True):
        assert cut_line["loss"] == pytest.approx(line["loss"], rel=1e-8)
        assert cut_line["part"] == pytest.approx(line["loss"], rel=1e-8)
        assert cut_line["grad_norm"] == pytest.approx(line["grad_norm"], rel=1e-8)


def test_without_clipping_the_norm_is_reported_all_the_same(tmp_path):
    _, lines = run_linear(tmp_path, optim=OptimConfig(lr=0.1, clip=None))
    assert all(line["grad_norm"] > 0 for line in lines)


def test_the_order_of_calls(tmp_path):
    task = ToyTask()
    train(task, ToyLoader(), replace(CONFIG, steps=3), tmp_path)
    expected = [
        (call, step / 3) for step in range(3) for call in ("losses", "losses", "before", "after")
    ]  # two losses: the batch comes in two parts
    assert task.seen == expected


def test_metrics_are_means_over_their_interval(tmp_path, uninterrupted):
    every_step, every_fifth = tmp_path / "one", uninterrupted
    train(ToyTask(), ToyLoader(), replace(CONFIG, log_every=1), every_step, score)
    fine = {line["step"]: line for line in metrics_without_times(every_step) if "loss" in line}
    coarse = {line["step"]: line for line in metrics_without_times(every_fifth) if "loss" in line}
    assert list(fine) == list(range(1, 25))
    assert list(coarse) == [1, 5, 10, 15, 20, 24]
    assert coarse[10]["loss"] == pytest.approx(np.mean([fine[step]["loss"] for step in range(6, 11)]), rel=1e-6)
    odd = [fine[step]["odd"] for step in range(6, 11) if "odd" in fine[step]]
    assert len(odd) == 3
    assert coarse[10]["odd"] == pytest.approx(np.mean(odd), rel=1e-6)


def test_bf16_computes_in_half_precision_and_keeps_full_weights(tmp_path):
    seen = []

    class Watched(ToyTask):
        def losses(self, batch, progress):
            seen.append((batch.images.dtype, self.net(batch.images).dtype, torch.is_autocast_enabled("cpu")))
            yield from super().losses(batch, progress)

        def before_step(self, progress):
            seen.append(torch.is_autocast_enabled("cpu"))

    task = Watched()
    train(task, ToyLoader(), replace(CONFIG, precision="bf16", accumulate=1, steps=1), tmp_path)
    assert seen == [(torch.float32, torch.bfloat16, True), False]
    assert {parameter.dtype for parameter in task.parameters()} == {torch.float32}


# Evaluation and export


def test_evaluation_sees_the_model_at_rest_and_disturbs_nothing(tmp_path):
    seen = []

    def watch(model: nn.Module) -> dict[str, float]:
        seen.append((model.training, torch.is_grad_enabled()))
        return score(model)

    config = replace(CONFIG, optim=OptimConfig(lr=1e-2))
    task = ToyTask()
    task.net[3].eval()  # a part that stays in evaluation mode on purpose
    original = task.train
    task.train = lambda mode=True: (original(mode), task.net[3].eval())[0]
    train(task, ToyLoader(), config, tmp_path / "often", watch)
    assert seen == [(False, False)] * 4  # steps 7, 14, 21 and the last
    assert task.net[2].training
    assert not task.net[3].training

    never = ToyTask()
    never.train = lambda mode=True: (nn.Module.train(never, mode), never.net[3].eval())[0]
    train(never, ToyLoader(), config, tmp_path / "never")
    assert_equal(task.state_dict(), never.state_dict())


def test_the_best_model_is_the_one_that_scored_best(uninterrupted):
    state = final_state(uninterrupted)
    evaluations = {
        line["step"]: line["evaluation"] for line in metrics_without_times(uninterrupted) if "loss" not in line
    }
    best = max(evaluations, key=lambda step: evaluations[step]["knn"])
    assert best != 24, "else this test shows nothing"
    assert (state["best"]["step"], state["best"]["metric"]) == (best, "knn")
    assert state["best"]["scores"] == pytest.approx(evaluations[best])
    assert state["best"]["score"] == state["best"]["scores"]["knn"]
    model = best_model(ToyTask(), CONFIG, uninterrupted)
    assert score(model)["knn"] == state["best"]["score"], "the average of the weights, as it was judged"
    assert not model.training


def test_without_an_average_the_model_itself_is_exported(tmp_path):
    config = replace(CONFIG, optim=OptimConfig(lr=1e-2), checkpoint=CheckpointConfig())
    task = ToyTask()
    result = train(task, ToyLoader(), config, tmp_path, score)
    assert result["best"] is None
    fresh = ToyTask()
    assert best_model(fresh, config, tmp_path) is fresh.net
    assert_equal(fresh.net.state_dict(), task.net.state_dict())


def test_an_unknown_metric_is_told(tmp_path, capsys, caplog):
    config = replace(CONFIG, checkpoint=CheckpointConfig(metric="kn"))
    result = train(ToyTask(), ToyLoader(), config, tmp_path, score)
    assert result["best"] is None
    assert "checkpoint.metric=kn is not among the scores (knn, chance)" in (tmp_path / "train.log").read_text()


# Numbers that break


class Breaking(ToyTask):
    """Gives a term that is not finite in one step."""

    def __init__(self, step: int, term: str):
        super().__init__()
        self.step, self.term = step, term

    def losses(self, batch, progress):
        for terms in super().losses(batch, progress):
            if round(progress * 24) + 1 == self.step:
                if self.term == "grad_norm":  # a finite loss with an infinite gradient
                    terms["loss"] = terms["loss"] + 0.0 * (terms["loss"] * 0).sqrt()
                else:
                    terms[self.term] = terms[self.term] * float("inf")
            yield terms


@pytest.mark.parametrize("term", ["loss", "cross_entropy", "grad_norm"])
def test_a_non_finite_term_stops_the_run(tmp_path, term):
    config = replace(CONFIG, log_every=20, optim=OptimConfig(lr=1e-2, clip=None))
    with pytest.raises(NonFiniteLoss) as raised:
        train(Breaking(10, term), ToyLoader(), config, tmp_path, score)
    message = str(raised.value)
    assert message.startswith("step 10: ")
    assert term in message.split(" not finite")[0]
    assert "9/0.png, 9/1.png, 9/2.png and 3 more" in message
    assert "step_00000008.pt" in message
    assert message.endswith("try a lower optim.lr (now 0.01), with overwrite=true or another out=")
    assert "\n" not in message
    assert message in (tmp_path / "train.log").read_text()
    assert json.loads((tmp_path / "non_finite.json").read_text())["files"] == ToyLoader().names(9)
    state = final_state(tmp_path)
    assert state["step"] == 8, "nothing was saved after the step that broke, though a checkpoint was due at 12"
    assert all(value.isfinite().all() for value in state["task"].values())
    train(ToyTask(), ToyLoader(), config, tmp_path, score)  # goes on once the cause is gone
    assert final_state(tmp_path)["step"] == 24


def test_a_run_that_breaks_before_any_checkpoint(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"step 1: .*nothing was saved yet; try .*\(now 0.01\) or precision=fp32$"):
        train(Breaking(1, "loss"), ToyLoader(), replace(CONFIG, precision="bf16"), tmp_path, score)
    assert not list((tmp_path / "checkpoints").glob("*.pt"))


def test_too_large_a_batch_is_told_with_its_mend(tmp_path):
    class Large(ToyTask):
        def __init__(self, first: int):
            super().__init__()
            self.first = first

        def losses(self, batch, progress):
            if round(progress * 24) >= self.first:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            yield from super().losses(batch, progress)

    mend = "out of memory with batch=6, accumulate=2: raise accumulate or lower batch"
    with pytest.raises(ValueError, match=f"^{mend}$"):
        train(Large(0), ToyLoader(), CONFIG, tmp_path, score)
    with pytest.raises(ValueError, match=f"^{mend}, with overwrite=true or another out=$"):
        train(Large(9), ToyLoader(), CONFIG, tmp_path, score)
    with pytest.raises(ValueError, match=f"^{mend}$"):
        trial(Large(0), ToyLoader(), CONFIG, "cpu")


def test_a_model_too_large_for_the_device_is_told_so_too(tmp_path, monkeypatch):
    def full(self, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ToyTask, "to", full)
    with pytest.raises(
        ValueError, match=r"^out of memory with batch=6, accumulate=2: raise accumulate or lower batch$"
    ):
        train(ToyTask(), ToyLoader(), CONFIG, tmp_path)


# The host does not wait for the device


def test_the_host_reads_nothing_from_the_device_but_at_log_lines(tmp_path, monkeypatch):
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, *args, name=name, original=original, **options: (
                reads.append(name),
                original(self, *args, **options),
            )[1],
        )
    config = replace(CONFIG, log_every=6, checkpoint_every=100, evaluate_every=100)
    train(ToyTask(), ToyLoader(), config, tmp_path)
    # Steps 1, 6, 12, 18, 24, each with two sets of terms, those of even and of odd steps (the first step: one).
    assert reads == ["tolist"] * 9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_step_does_not_synchronise(tmp_path):
    class Strict(ToyLoader):
        def batches(self, start, stop):
            for batch in super().batches(start, stop):
                warm = int(batch.position[0]) >= 2 * CONFIG.batch  # the first steps allocate
                torch.cuda.set_sync_debug_mode("error" if warm else "default")
                yield replace(batch, images=batch.images.pin_memory())
            torch.cuda.set_sync_debug_mode("default")

    loader = Strict()
    config = replace(CONFIG, log_every=100, checkpoint_every=100, evaluate_every=100)
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):  # the last step reads the metrics
            train(ToyTask(), loader, config, tmp_path, device="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loader.asked[-1] == CONFIG.steps - 1, "a step before the last one waited for the device"
