"""The training loop, the same for every method."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from synoptic.config import TrainConfig
from synoptic.engine import checkpoint, optim
from synoptic.engine.acceleration import accelerate
from synoptic.engine.distributed import Replica, shared
from synoptic.engine.observe import Bystander, Meter, Observer, announce
from synoptic.engine.stopping import Interrupted, NonFiniteLoss, Worsened, stop_signal
from synoptic.machine import is_out_of_memory
from synoptic.methods.base import Phase, Task, first_step
from synoptic.types import ALONE, Batch, Group

Evaluate = Callable[[nn.Module], Mapping[str, float]]


class Loader(Protocol):
    """Batches that depend on nothing but the seed and the step."""

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """One batch an optimiser step, for steps start, ..., stop - 1."""
        ...

    def names(self, step: int) -> list[str]:
        """The files of that step's batch."""
        ...


def train(
    task: Task,
    loader: Loader,
    config: TrainConfig,
    out: Path | str,
    evaluate: Evaluate | None = None,
    device: torch.device | str = "cpu",
    group: Group = ALONE,
) -> dict[str, Any]:
    """Trains a task to its end, going on from the newest checkpoint in `out` where there is one.

    Args:
        task: the method; moved to `device`, and trained in place.
        loader: gives the batches.
        config: resolved, so without a None or "auto" in what the loop reads.
        out: the run folder, which the caller holds (`files.sole_writer`), its checkpoints being of this very run
            (`Checkpoints.claim`).
        evaluate: scores of the exported model in evaluation mode (or of the average of its weights), by name.
        device: where to train.
        group: the processes that train together. All of them call this, each with its own loader; the first alone
            writes and evaluates.

    Returns:
        "steps" and "seconds" of the run, as its last checkpoint tells them, "evaluation" (the last scores), "best" (see
        `checkpoint.best_of`).

    Raises:
        Collapsed: where the task finds itself learning nothing any more, and is to stop then.
        NonFiniteLoss: at the first look at the metrics after a term was not finite. Nothing is saved after it.
        Interrupted: after SIGINT or SIGTERM, with the state saved. A second signal stops at once.
        Worsened: where the model has become worse than it was at the start, by more than its task allows.
        ValueError: if the device's memory is too small, and where `out` holds a run and config.resume is "never".
    """
    with _memory_told(config, Path(out)):
        run = _Run(task, config, Path(out), torch.device(device), group)
        done = run.restore()
        if done < run.steps:
            accelerate(task, config)
            with _observer(run, done) as observer:
                _loop(run, loader, evaluate, observer, done)
    if done == run.steps and run.first:
        announce(f"{out}: this run is finished ({done} steps)")
    return {"steps": run.steps, "seconds": run.seconds, "evaluation": run.scores, "best": run.best}


def _observer(run: _Run, done: int) -> Observer | Bystander:
    if not run.first:
        return Bystander()
    return Observer(run.out, run.steps, run.config.batch, done, run.seconds)


def _loop(run: _Run, loader: Loader, evaluate: Evaluate | None, observer: Observer | Bystander, done: int) -> None:
    config = run.config
    if done:
        observer.say(f"going on after step {done} of {run.steps}")
    elif evaluate and run.task.largest_fall is not None:
        run.baseline = run.judged(evaluate)
        observer.evaluation(0, run.baseline)
    stopping = False
    with stop_signal() as stop:
        for batch in observer.batches(loader.batches(done, run.steps)):
            run.meter.add(done, run.step(batch, done))
            done += 1
            last = done == run.steps
            logs = last or done == 1 or done % config.log_every == 0
            evaluates = last or done % run.evaluate_every == 0
            saves = last or done % run.checkpoint_every == 0
            stopping = run.agrees(stop.is_set, looks=logs or evaluates or saves)  # a later signal is for the next step
            saves |= stopping
            if logs or evaluates or saves:  # nothing else waits for the device
                terms = run.read_terms(loader)
            if logs:
                run.meter.reset()
                observer.metrics(done, terms, optim.rates(run.task, config.optim, done - 1, run.steps))
                observer.diagnosis(done, run.task.diagnose(terms, run.scores, done / run.steps))
            observer.tick(done)
            if evaluates and evaluate:
                with observer.pause():
                    saves |= run.evaluate(evaluate, done)
                observer.evaluation(done, run.scores)
                run.check_fall(done)
            if saves:
                with observer.pause():
                    run.save(done, observer.seconds)
                observer.flush()
            if stopping:
                break
        if done == run.steps and (below := run.below_start()):
            observer.say(below)
        if stopping:
            raise Interrupted(f"stopped and saved after step {done}; {_way_on(config)}")


@contextmanager
def _memory_told(config: TrainConfig, out: Path) -> Iterator[None]:
    """Says what to do where the memory of the device is too small."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        setting = f"batch={config.batch}, accumulate={config.accumulate}"
        mend = f"raise accumulate or lower batch{_beside_a_change(out)}"
        raise ValueError(f"out of memory with {setting}: {mend}") from error


def _beside_a_change(out: Path) -> str:
    """What a changed setting takes besides: a run that has checkpoints does not go on under another one."""
    return ", with overwrite=true or another out=" if any((out / "checkpoints").glob("step_*.pt")) else ""


def _way_on(config: TrainConfig) -> str:
    """How to go on with a run: by the command that began it, less what would throw the run away or refuse it."""
    hindering = {"overwrite=true": config.overwrite, "resume=never": config.resume == "never"}
    less = " and ".join(key for key, given in hindering.items() if given)
    return f"the same command{f' without {less}' if less else ''} goes on from there"


def trial(
    task: Task, loader: Loader, config: TrainConfig, device: torch.device | str, steps: int = 3
) -> dict[str, Any]:
    """Some steps of each phase of a run that leave nothing behind but a trained task: what they take, and where the
    losses start.

    Returns:
        "seconds" (for each of the task's phases the median of a step, the first left out where there are more),
        "losses" (terms of the first step).
    """
    with tempfile.TemporaryDirectory() as folder, _memory_told(config, Path(folder)):
        run = _Run(task, config, Path(folder), torch.device(device))
        accelerate(task, config)
        losses: dict[str, float] = {}
        found = []
        bounds = [first_step(phase.start, run.steps) for phase in task.phases]
        for start, end in pairwise((*bounds, run.steps)):
            seconds = []
            for step, batch in enumerate(loader.batches(start, min(start + steps, end)), start):
                begun = time.perf_counter()
                terms = {name: float(value) for name, value in run.step(batch, step).items()}  # waits for the device
                seconds.append(time.perf_counter() - begun)
                losses = losses or terms
            found.append(statistics.median(seconds[1:] or seconds or [0.0]))  # of a run of one step a phase has none
    return {"seconds": found, "losses": losses}


def best_model(task: Task, config: TrainConfig, out: Path | str) -> nn.Module:
    """What a run is exported as: the model, or the average of its weights, of its best checkpoint, which is loaded."""
    run = _Run(task, config, Path(out), next(task.parameters()).device)
    run.load(checkpoint.load(run.checkpoints.best()))
    return task.finished(run.model())


class _Run:
    """The state of a run: what a checkpoint keeps, and what changes it."""

    def __init__(self, task: Task, config: TrainConfig, out: Path, device: torch.device, group: Group = ALONE):
        assert config.steps and config.checkpoint_every and config.evaluate_every, "resolved when the run is built"
        check_parts(config, group.size)
        self.steps = config.steps
        self.half = {"fp32": False, "bf16": True}[config.precision]
        self.checkpoint_every, self.evaluate_every = config.checkpoint_every, config.evaluate_every
        self.task = task.to(device).train()
        self.task.group = self.group = group
        self.first = group.rank == 0
        self.replica = Replica(task, group)
        self.config = config
        self.out = out
        self.device = device
        self.optimizer = optim.build_optimizer(task, config.optim)
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        trained = {id(parameter) for parameter in self.parameters}
        self.networks = [[p for p in network.parameters() if id(p) in trained] for network in task.networks()]
        self.ema = optim.Ema(task.exported(), config.optim.ema) if config.optim.ema is not None else None
        task.averages = (self.ema.model,) if self.ema else ()
        self.meter = Meter(device)
        self.checkpoints = checkpoint.Checkpoints(out / "checkpoints", config.checkpoint.keep)
        self.best: Mapping[str, Any] | None = None
        self.scores: dict[str, float] = {}
        self.baseline: dict[str, float] = {}  # scores before the first step
        self.seconds = 0.0  # until the newest checkpoint

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One optimiser step; returns the reported terms, with "grad_norm" before clipping."""
        config = self.config
        progress = step / self.steps
        _seed(config.seed, step, self.group.rank, self.device)
        rates = optim.rates(self.task, config.optim, step, self.steps)
        optim.set_rates(self.optimizer, **rates, progress=progress)
        terms: dict[str, Tensor] = {}
        parts = batch.split(1 if self.task.whole_batches else config.accumulate)
        for number, part in enumerate(parts, start=1):
            share = len(part) / len(batch)
            # Draws are made on the host from the position: reading it back from the device would wait for the device.
            part = self.task.prepare(replace(part.to(self.device), position=part.position), config.seed)
            for name, value in self.backward(part, progress, share, last=number == len(parts)).items():
                terms[name] = terms[name] + value if name in terms else value
        self.task.before_step(progress)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        terms["grad_norm"] = get_total_norm(gradients)
        optim.clip(self.networks, config.optim, terms["grad_norm"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.task.after_step(progress)
        if self.ema:
            self.ema.update(step)
        return terms

    def backward(self, batch: Batch, progress: float, share: float, last: bool) -> dict[str, Tensor]:
        """Adds the gradients of a part of a batch; returns its reported terms, as its share of the whole.

        Losses are computed in half precision where the run is; backward belongs outside of that. What processes find
        is averaged with the last gradients of the last part.
        """
        losses = iter(self.task.losses(batch, progress))
        terms: dict[str, Tensor] = {}
        for turn in range(1, self.task.passes + 1):
            with nullcontext() if last and turn == self.task.passes else self.replica.apart():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                    found = self.replica(losses)
                (found["loss"] * share).backward()
            for name, value in found.items():
                value = value.detach() * share
                terms[name] = terms[name] + value if name in terms else value
        return terms

    def agrees(self, asked: Callable[[], bool], looks: bool) -> bool:
        """Whether any process was asked to stop. Several on GPUs find out where they wait for the device anyway."""
        if self.group.size == 1:
            return asked()
        return (looks or self.device.type == "cpu") and bool(
            self.group.sum(torch.tensor(float(asked()), device=self.device))
        )

    def read_terms(self, loader: Loader) -> dict[str, float]:
        """The means of the reported terms; raises if one was not finite."""
        means, bad = self.meter.read(self.group)
        if not bad:
            return means
        step = min(bad.values())
        terms = [name for name, first in bad.items() if first == step]
        saved = self.checkpoints.steps()
        kept = f"{self.checkpoints.path(saved[-1])} is the last good checkpoint" if saved else "nothing was saved yet"
        lower = f"a lower optim.lr (now {self.config.optim.lr:g}){' or precision=fp32' if self.half else ''}"
        advice = f"{kept}; try {lower}{_beside_a_change(self.out)}"
        record = self.out / "non_finite.json"
        raise NonFiniteLoss(step + 1, terms, loader.names(step), advice, record, write=self.first)

    def model(self) -> nn.Module:
        return self.ema.model if self.ema else self.task.exported()

    def evaluate(self, evaluate: Evaluate, step: int) -> bool:
        """Takes the scores of the model after `step` steps; says whether they are the best so far in this phase, since
        a model of an earlier one has not learned what belongs to it."""
        self.scores = self.judged(evaluate)
        before = self.best
        rival = before if before is None or self._phase(before["step"]) is self._phase(step) else None
        self.best = checkpoint.best_of(rival, step, self.scores, self.config.checkpoint.metric)
        return self.best is not before

    def _phase(self, step: int) -> Phase:
        """The phase of the last of so many steps."""
        return self.task.phase((step - 1) / self.steps)[0]

    def judged(self, evaluate: Evaluate) -> dict[str, float]:
        """The scores of the model as it is, which the first process finds."""
        if not self.first:
            return shared({}, self.group)
        model = self.model()
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        with torch.no_grad():
            scores = {name: float(score) for name, score in evaluate(model).items()}
        for module, mode in modes:
            module.training = mode
        return shared(scores, self.group)

    def check_fall(self, step: int) -> None:
        """Stops a run whose model has become worse than the one it began with, by more than its task allows."""
        name, allowed = self.config.checkpoint.metric or "rankme", self.task.largest_fall
        if allowed is None or name not in self.baseline or name not in self.scores:
            return
        before, now = self.baseline[name], self.scores[name]
        if not now >= (1.0 - allowed) * before:
            raise Worsened(name, before, now, step, allowed)

    def below_start(self) -> str | None:
        """A warning where the best model is worse than the one the run began with."""
        if self.best is None or not self.best["score"] < self.baseline.get(self.best["metric"], -math.inf):
            return None
        metric, score, before = self.best["metric"], self.best["score"], self.baseline[self.best["metric"]]
        return (
            f"warning: the best model of this run ({metric} {score:.3f}, step {self.best['step']}) is below the "
            f"weights that it began with ({before:.3f}); try a lower optim.lr or a longer head_warmup"
        )

    def save(self, step: int, seconds: float) -> None:
        meter = self.meter.state(self.group)
        if not self.first:
            return
        self.seconds = seconds
        state = {
            "step": step,
            "seconds": seconds,
            "task": self.task.state_dict(),
            "memory": self.task.memory(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.model.state_dict() if self.ema else None,
            "meter": meter,
            "scores": self.scores,
            "baseline": self.baseline,
            "best": self.best,
        }
        self.checkpoints.save(state)

    def restore(self) -> int:
        """Goes back to the newest checkpoint; returns the steps done."""
        state = self.checkpoints.latest() if self.first else None
        step = shared(state["step"] if state else None, self.group)
        if step is None:
            return 0
        if self.config.resume == "never":
            raise ValueError(f"{self.out}: holds a run; resume=auto goes on with it, overwrite=true throws it away")
        self.load(state or checkpoint.load(self.checkpoints.path(step)))
        if self.best and not self.checkpoints.path(self.best["step"]).exists():
            self.best = None  # it gave way to a better one, which was damaged since
        if self.first:
            self.checkpoints.tidy(self.best)
        return step

    def load(self, state: Mapping[str, Any]) -> None:
        self.task.load_state_dict(state["task"])
        self.task.recall(state["memory"])
        optim.load_moments(self.optimizer, state["optimizer"])
        if self.ema:
            self.ema.model.load_state_dict(state["ema"])
        self.meter.load(state["meter"], self.group)
        self.scores, self.baseline = state["scores"], state["baseline"]
        self.best, self.seconds = state["best"], state["seconds"]


def check_parts(config: TrainConfig, processes: int) -> None:
    """Sees to it that a batch can be cut over processes and into parts.

    Raises:
        ValueError: if it cannot.
    """
    if config.batch % processes:
        near = max(config.batch // processes, 1) * processes
        raise ValueError(f"batch={config.batch}: devices={processes} cannot share it evenly; the nearest is {near}")
    if config.accumulate > config.batch // processes:
        beside = f" for each of devices={processes}" if processes > 1 else ""
        raise ValueError(f"accumulate={config.accumulate}: more parts than pictures in batch={config.batch}{beside}")


def _seed(seed: int, step: int, rank: int, device: torch.device) -> None:
    """What dropout and drop path draw depends on the step and the process alone, so that resuming repeats it."""
    entropy = [seed, step, rank] if rank else [seed, step]
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(state)  # torch.manual_seed asks after every kind of device, each step anew
    if device.type == "cuda":
        torch.cuda.manual_seed_all(state)
