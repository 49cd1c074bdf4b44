"""The loop: what a step computes, and that nothing of a run depends on where it was interrupted.

Run as a program, this file is such a run, which kills itself (see `killed_again_and_again`).
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from synoptic.config import CheckpointConfig, LoaderConfig, OptimConfig, TrainConfig
from synoptic.engine import checkpoint
from synoptic.engine.loop import best_model, train
from synoptic.engine.observe import read_metrics
from synoptic.engine.stopping import Interrupted, NonFiniteLoss
from synoptic.methods.base import ParamGroup, Task, split_by_decay
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

    def __init__(self, size: int = CONFIG.batch, tell: int | None = None):
        self.size = size
        self.tell = tell  # a pipe that takes a byte a batch
        self.asked: list[int] = []

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        for step in range(start, stop):
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


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    train(ToyTask(), ToyLoader(), CONFIG, out, score)
    return out


# Interruptions


def killed_again_and_again(out: Path, where: str) -> None:
    """Trains in child processes that are killed, each later than the one before, until one comes through.

    Args:
        where: "writing" kills at the n-th time that a file is put to disk or in its place; "anywhere" at any moment.
    """
    import torch._dynamo  # here, or every child would import what its optimizer needs
    import torch.utils.tensorboard

    torch.set_num_threads(1)
    chance = random.Random(0)
    for life in range(1000):
        heard, tell = os.pipe()
        child = os.fork()
        if not child:
            if where == "writing":
                die_at_write(1 + life)
            train(ToyTask(), ToyLoader(tell=tell), CONFIG, out, score)
            os._exit(0)
        os.close(tell)
        if where == "anywhere":
            steps = chance.randint(1, 8)
            if sum(len(os.read(heard, 1)) for _ in range(steps)) == steps:
                time.sleep(chance.uniform(0.0, 0.02))
                os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(heard)
        assert code in (0, -signal.SIGKILL), "the run failed by itself"
        if code == 0:
            print(life)
            return


def die_at_write(count: int) -> None:
    """Kills this process before, or after, the `count`-th change that it makes to a folder."""
    left = [count]
    for owner, name in ((os, "fsync"), (os, "replace"), (Path, "unlink")):
        original = getattr(owner, name)

        def wrapped(*args, original=original, **options):
            left[0] -= 1
            if left[0] == 0 and count % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*args, **options)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, wrapped)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("where", ["anywhere", "writing"])
def test_a_killed_run_ends_in_the_weights_of_an_uninterrupted_one(tmp_path, uninterrupted, where):
    result = subprocess.run(
        [sys.executable, __file__, str(tmp_path), where], capture_output=True, text=True, check=True, timeout=300
    )
    assert int(result.stdout) > 2, "it was killed at least three times"
    assert_same_run(tmp_path, uninterrupted)


class Interrupting(ToyTask):
    """Is sent signals in the middle of its n-th step."""

    def __init__(self, step: int, *signals: int):
        super().__init__()
        self.countdown, self.signals = step, signals

    def before_step(self, progress: float) -> None:
        self.countdown -= 1
        if self.countdown == 0:
            for number in self.signals:
                os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_says_how_to_go_on(tmp_path, uninterrupted, number):
    with pytest.raises(Interrupted, match="stopped and saved after step 10; the same command goes on from there"):
        train(Interrupting(10, number), ToyLoader(), CONFIG, tmp_path, score)
    assert "the same command goes on from there" in (tmp_path / "train.log").read_text()
    assert final_state(tmp_path)["step"] == 10
    loader = ToyLoader()
    train(ToyTask(), loader, CONFIG, tmp_path, score)
    assert loader.asked == list(range(10, 24))
    assert "going on after step 10 of 24" in (tmp_path / "train.log").read_text()
    assert_same_run(tmp_path, uninterrupted)


def test_interrupting_twice_stops_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt) as raised:
        train(Interrupting(10, signal.SIGINT, signal.SIGINT), ToyLoader(), CONFIG, tmp_path, score)
    assert not isinstance(raised.value, Interrupted)
    assert final_state(tmp_path)["step"] == 8


def test_an_interruption_in_the_last_step_is_not_forgotten(tmp_path, uninterrupted):
    with pytest.raises(Interrupted, match="after step 24"):
        train(Interrupting(24, signal.SIGINT), ToyLoader(), CONFIG, tmp_path, score)
    assert_same_run(tmp_path, uninterrupted)


def test_a_run_in_another_thread(tmp_path, uninterrupted):
    thread = threading.Thread(target=train, args=(ToyTask(), ToyLoader(), CONFIG, tmp_path, score))
    thread.start()
    thread.join()
    assert_same_run(tmp_path, uninterrupted)


def test_an_early_best_outlives_an_interruption(tmp_path):
    def falling(model: nn.Module) -> dict[str, float]:
        return {"knn": -float(model[2].num_batches_tracked)}

    with pytest.raises(Interrupted):
        train(Interrupting(10, signal.SIGINT), ToyLoader(), CONFIG, tmp_path, falling)
    result = train(ToyTask(), ToyLoader(), CONFIG, tmp_path, falling)
    assert result["best"]["step"] == 7
    assert checkpoint.Checkpoints(tmp_path / "checkpoints", 2).steps() == [7, 20, 24]
    assert best_model(ToyTask(), CONFIG, tmp_path)[2].num_batches_tracked == 14, "two parts a step"


def test_a_damaged_newest_checkpoint_costs_only_time(tmp_path, uninterrupted):
    with pytest.raises(Interrupted):
        train(Interrupting(10, signal.SIGINT), ToyLoader(), CONFIG, tmp_path, score)
    newest = tmp_path / "checkpoints" / "step_00000010.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    train(ToyTask(), ToyLoader(), CONFIG, tmp_path, score)
    (tmp_path / "checkpoints" / "step_00000010.damaged").unlink()
    assert_same_run(tmp_path, uninterrupted)


def test_a_best_that_is_gone_is_not_held_against_others(tmp_path):
    """As when a better one took its place, and was damaged since."""
    with pytest.raises(Interrupted):
        train(Interrupting(15, signal.SIGINT), ToyLoader(), CONFIG, tmp_path, lambda model: {"knn": 0.5})
    folder = tmp_path / "checkpoints"
    assert json.loads((folder / "best.json").read_text())["step"] == 7
    (folder / "step_00000007.pt").unlink()
    result = train(ToyTask(), ToyLoader(), CONFIG, tmp_path, lambda model: {"knn": 0.1})
    assert result["best"] == {"step": 21, "metric": "knn", "score": 0.1}


def test_a_finished_run_is_left_as_it_is(tmp_path, uninterrupted, capsys):
    loader = ToyLoader()
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.suffix in (".pt", ".jsonl")}
    result = train(ToyTask(), loader, CONFIG, uninterrupted, score)
    assert result["steps"] == 24
    assert result["evaluation"] == final_state(uninterrupted)["scores"]
    assert not loader.asked
    assert "this run is finished (24 steps)" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_settings_that_alter_the_weights_are_refused_in_a_resumed_run(tmp_path, uninterrupted):
    for changes, message in (({"seed": 9}, "seed=3, and now seed=9"), ({"resume": "never"}, "overwrite=true")):
        with pytest.raises(ValueError, match=message):
            train(ToyTask(), ToyLoader(), replace(CONFIG, **changes), uninterrupted, score)


def test_a_batch_is_not_cut_into_more_parts_than_pictures(tmp_path):
    with pytest.raises(ValueError, match="accumulate=7: more parts than pictures in batch=6"):
        train(ToyTask(), ToyLoader(), replace(CONFIG, accumulate=7), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What a step computes


class Linear(Task):
    """One matrix, whose step can be written down."""

    def __init__(self, parts: int = 1):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 12, dtype=torch.float64))
        self.parts = parts

    def prepare(self, batch: Batch, seed: int) -> Batch:
        return replace(batch, images=batch.images.double().flatten(1) / 255)

    def losses(self, batch: Batch, progress: float) -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(self.parts):  # the same loss as several, each with a graph of its own
            loss = nn.functional.cross_entropy(batch.images @ self.weight.T, batch.labels) / self.parts
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
            seen.append(torch.is_autocast_enabled("cpu"))

        def before_step(self, progress):
            seen.append(torch.is_autocast_enabled("cpu"))

    task = Watched()
    train(task, ToyLoader(), replace(CONFIG, precision="bf16", accumulate=1, steps=1), tmp_path)
    assert seen == [(torch.float32, torch.bfloat16, True), True, False]
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
    assert state["best"] == {"step": best, "metric": "knn", "score": pytest.approx(evaluations[best]["knn"])}
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
    assert "optim.lr" in message
    assert "\n" not in message
    assert message in (tmp_path / "train.log").read_text()
    assert json.loads((tmp_path / "non_finite.json").read_text())["files"] == ToyLoader().names(9)
    state = final_state(tmp_path)
    assert state["step"] == 8, "nothing was saved after the step that broke, though a checkpoint was due at 12"
    assert all(value.isfinite().all() for value in state["task"].values())
    train(ToyTask(), ToyLoader(), config, tmp_path, score)  # goes on once the cause is gone
    assert final_state(tmp_path)["step"] == 24


def test_a_run_that_breaks_before_any_checkpoint(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"step 1: .*nothing was saved yet"):
        train(Breaking(1, "loss"), ToyLoader(), CONFIG, tmp_path, score)
    assert not list((tmp_path / "checkpoints").glob("*.pt"))


def test_too_large_a_batch_is_told_with_its_mend(tmp_path):
    class Large(ToyTask):
        def losses(self, batch, progress):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    with pytest.raises(ValueError, match="out of memory with batch=6, accumulate=2: raise accumulate or lower"):
        train(Large(), ToyLoader(), CONFIG, tmp_path, score)


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


# With the real loader


def test_a_real_run_resumes_bitwise(tmp_path):
    """Files, loader, multi-crop and DINO, stopped in the middle."""
    from PIL import Image

    from synoptic.data.loader import Loader
    from synoptic.data.sources import open_source
    from synoptic.methods import dino
    from synoptic.models.vit import ViT, vit_config

    pictures = tmp_path / "pictures" / "train"
    pictures.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(draw.integers(0, 256, (40, 30 + number, 3), dtype=np.uint8)).save(pictures / f"{number}.png")
    raw = dino.DinoConfig(
        data=str(pictures.parent), out=str(tmp_path), size=32, batch=4, steps=8, prototypes=16, precision="fp32",
        head_hidden=16, bottleneck=8, checkpoint_every=3, log_every=3, evaluate_every=100, model="vit_mini16",
        loader=LoaderConfig(workers=0),
    )  # fmt: skip
    config = dino.resolve(raw, 10)

    def run(out: Path, stop: int | None = None) -> None:
        torch.manual_seed(0)
        vit = ViT(vit_config("vit_mini16", width=24, heads=2, depth=1, hidden=48, image_size=32, drop_path=0.2))
        task = dino.DinoTask(config, vit)
        if stop:
            before = task.before_step
            calls = iter(range(1, 100))

            def interrupt(progress: float) -> None:
                before(progress)
                if next(calls) == stop:
                    os.kill(os.getpid(), signal.SIGINT)

            task.before_step = interrupt
        source = open_source(config.data, "train")
        train(task, Loader(source, config.batch, config.seed, 64, config.loader), config, out)

    run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", stop=5)
    run(tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


if __name__ == "__main__":
    killed_again_and_again(Path(sys.argv[1]), sys.argv[2])
