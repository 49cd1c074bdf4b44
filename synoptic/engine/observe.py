"""What a run tells: a progress line, `train.log`, `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text
from torch import Tensor

from synoptic.files import write_text
from synoptic.types import ALONE, Batch, Group

LINE_EVERY = 5.0  # seconds between two plain lines, so that a short step does not flood a log
TICK_EVERY = 0.5  # seconds between two looks of the live line

package_log = logging.getLogger("synoptic")


def announce(message: str) -> None:
    """One line on the terminal, outside of any run."""
    Console(stderr=True).print(Text(message), soft_wrap=True)


class Meter:
    """Sums of the reported terms, kept on the device: the host waits for it once a reading, not once a step."""

    NEVER = 2**53  # a step that no run reaches, exact in float64

    def __init__(self, device: torch.device):
        self._device = device
        self._sums: dict[tuple[str, ...], Tensor] = {}  # (3, n) float64 by names: sum, count, first non-finite step

    def add(self, step: int, terms: Mapping[str, Tensor]) -> None:
        """Adds one step's scalars. Steps may report different terms; each is averaged over those that report it."""
        names = tuple(terms)
        scalars = [value.detach().to(self._device, torch.float64, non_blocking=True) for value in terms.values()]
        if names not in self._sums:
            self._sums[names] = torch.zeros(3, len(names), dtype=torch.float64, device=self._device)
            self._sums[names][2] = self.NEVER
        sums, counts, bad = self._sums[names]
        values = torch.stack(scalars)
        sums += values
        counts += 1
        torch.minimum(bad, torch.where(values.isfinite(), float(self.NEVER), float(step)), out=bad)

    def read(self, group: Group = ALONE) -> tuple[dict[str, float], dict[str, int]]:
        """The mean of every term since the last reset, and the first step of every term that was not finite.

        Of several processes, the means are over all of them.
        """
        totals: dict[str, list[float]] = {}
        for names, table in self._sums.items():
            for name, (value, count, bad) in zip(names, _merged(table, group).T.tolist(), strict=True):
                before = totals.get(name, [0.0, 0.0, self.NEVER])
                totals[name] = [before[0] + value, before[1] + count, min(before[2], bad)]
        means = {name: value / count for name, (value, count, _) in totals.items()}
        return means, {name: int(bad) for name, (_, _, bad) in totals.items() if bad < self.NEVER}

    def reset(self) -> None:
        self._sums.clear()

    def state(self, group: Group = ALONE) -> list[tuple[list[str], Tensor]]:
        """What a checkpoint keeps, so that a run's metrics do not depend on where it was interrupted: what all
        processes have seen."""
        return [(list(names), _merged(table, group)) for names, table in self._sums.items()]

    def load(self, state: list[tuple[list[str], Tensor]], group: Group = ALONE) -> None:
        """Goes back to a state, which holds what all processes have seen, and of which the first takes all."""
        self._sums = {tuple(names): table.to(self._device) for names, table in state}
        if group.rank:
            for table in self._sums.values():
                table[:2] = 0.0
                table[2] = self.NEVER


def _merged(table: Tensor, group: Group) -> Tensor:
    """The table (3, n) of all processes together."""
    tables = group.gather(table[None])  # (processes, 3, n)
    return torch.cat((tables[:, :2].sum(0), tables[:, 2:].amin(0)))


class Observer:
    """Writes down one part of a run, from the start or a checkpoint to the end or the next interruption.

    Args:
        out: the run folder. Lines of `metrics.jsonl` after `done` steps are removed: those steps are repeated.
        steps: steps of the whole run.
        batch: pictures a step.
        done: steps done before this part.
        seconds: seconds they took.
        console: the terminal; by default standard error.
    """

    def __init__(
        self, out: Path, steps: int, batch: int, done: int = 0, seconds: float = 0.0, console: Console | None = None
    ):
        self._out = out
        self._steps = steps
        self._batch = batch
        self._console = console or Console(stderr=True)
        self._before = seconds
        self._begun = self._mark = time.perf_counter()
        self._marked = done  # steps done at the mark
        self._waited = 0.0  # seconds since the mark
        self._paused = 0.0
        self._all_paused = 0.0
        self._recent: deque[tuple[int, float]] = deque(maxlen=9)  # steps and seconds of the last intervals
        self._text = ""
        self._line_at = self._tick_at = -math.inf

    def __enter__(self) -> Observer:
        self._out.mkdir(parents=True, exist_ok=True)
        cut_metrics(self._out / "metrics.jsonl", self._marked)
        self._metrics = (self._out / "metrics.jsonl").open("a", buffering=1)  # line by line, for those who follow
        from torch.utils.tensorboard import SummaryWriter  # here, since it is slow to import

        self._board = SummaryWriter(str(self._out), purge_step=self._marked + 1)
        self._open_logs()
        self._mark = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._log(f"{type(error).__name__}: {error}")
        if isinstance(error, ValueError):  # the run stopped itself, which whoever reads its numbers should know
            self._write({"step": self._marked, "stopped": str(error)})
        self._close_logs()
        self._board.close()
        self._metrics.close()

    def _open_logs(self) -> None:
        """What the library logs goes to `train.log`, and to the terminal, above the live line."""
        self._file = logging.FileHandler(self._out / "train.log")
        self._file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._level = package_log.level
        package_log.setLevel(logging.INFO)
        self._handlers: list[logging.Handler] = [self._file]
        if not package_log.hasHandlers():
            self._handlers.append(_ConsoleHandler(self._console))
        for handler in self._handlers:
            package_log.addHandler(handler)
        terminal = self._console.file.isatty() and not self._console.is_dumb_terminal
        self._live = Live(console=self._console, auto_refresh=False) if terminal else None
        self._diverted = [
            handler
            for handler in logging.getLogger().handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
        ]
        if self._live:
            self._live.start()  # puts a stream of its own in the place of sys.stderr
            self._divert()

    def _close_logs(self) -> None:
        if self._live:
            self._live.stop()
            self._divert()
        for handler in self._handlers:
            package_log.removeHandler(handler)
            handler.close()
        package_log.setLevel(self._level)

    def _divert(self) -> None:
        for handler in self._diverted:
            handler.setStream(sys.stderr)

    @property
    def seconds(self) -> float:
        """Seconds the run has taken so far, over all its parts."""
        return self._before + time.perf_counter() - self._begun

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, with the time measured that is spent waiting for them."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves what happens inside (evaluation, saving) out of the training speed."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def tick(self, step: int) -> None:
        """Renews the live line between two lines of metrics, where steps are slow."""
        if self._live and time.perf_counter() - self._tick_at > TICK_EVERY:
            self._show(step)

    def metrics(self, step: int, terms: Mapping[str, float], rates: Mapping[str, float]) -> None:
        """Writes the means of the terms since the last call, the rates of the last step, and the speed.

        Args:
            step: steps done.
            terms: means by name, "loss" first; those with a slash are kept, and not told in the line.
            rates: learning rate and weight decay by name.
        """
        now = time.perf_counter()
        spent = max(now - self._mark - self._paused, 1e-9)
        steps = max(step - self._marked, 1)
        speed = {"images_per_second": steps * self._batch / spent, "data_wait": min(self._waited / spent, 1.0)}
        self._recent.append((steps, spent))
        self._all_paused += self._paused
        self._mark, self._marked, self._waited, self._paused = now, step, 0.0, 0.0

        self._write({"step": step, **terms, **rates, **speed, "seconds": self.seconds})
        for name, value in {**terms, **rates, **speed}.items():
            self._board.add_scalar(f"train/{name}", value, step)
        self._text = "  ".join(
            [
                *(f"{name} {value:.4g}" for name, value in terms.items() if name != "grad_norm" and "/" not in name),
                f"lr {rates['lr']:.2e}",
                f"{speed['images_per_second']:.0f} images/s",
                f"wait {speed['data_wait']:.0%}",
            ]
        )
        if self._live:
            self._show(step)
        if now - self._line_at > LINE_EVERY or step == self._steps:
            self._line_at = now
            self._plain(self._line(step))

    def evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Writes the scores of a validation after `step` steps."""
        self._write({"step": step, "evaluation": {name: _number(score) for name, score in scores.items()}})
        for name, score in scores.items():
            self._board.add_scalar(f"evaluation/{name}", score, step)
        self.say(f"step {step}/{self._steps}  " + "  ".join(f"{name} {score:.4f}" for name, score in scores.items()))

    def diagnosis(self, step: int, found: object | None) -> None:
        """Tells what is wrong with the learning after `step` steps, where anything is."""
        if found is not None:
            self._write({"step": step, "diagnosis": str(found)})
            self.say(f"warning: {found}")

    def say(self, message: str) -> None:
        """One line for the user, on the terminal and in `train.log`."""
        self._console.print(Text(message), soft_wrap=True)
        self._log(message)

    def flush(self) -> None:
        """Hands TensorBoard's events to the system, as at each checkpoint."""
        self._board.flush()

    def _line(self, step: int) -> str:
        parts = (f"step {step}/{self._steps}", self._text, f"left {_clock(self._left(step))}")
        return "  ".join(part for part in parts if part)

    def _left(self, step: int) -> float:
        """Seconds to the end at the recent speed, evaluation and saving taking the share of time they took so far."""
        recent = list(self._recent)[1:] or list(self._recent)  # the very first interval holds the loader's start
        if not recent:
            return math.nan
        steps, seconds = (sum(column) for column in zip(*recent, strict=True))
        total = self._mark - self._begun
        return (self._steps - step) * seconds / steps * total / max(total - self._all_paused, 1e-9)

    def _show(self, step: int) -> None:
        assert self._live is not None
        self._tick_at = time.perf_counter()
        self._live.update(Text(self._line(step)), refresh=True)

    def _plain(self, line: str) -> None:
        if not self._live:
            self._console.print(Text(line), soft_wrap=True)
        self._log(line)

    def _log(self, message: str) -> None:
        record = package_log.makeRecord("synoptic", logging.INFO, "", 0, message, (), None)
        self._file.handle(record)

    def _write(self, values: Mapping[str, Any]) -> None:
        rounded = {name: _number(value) if isinstance(value, float) else value for name, value in values.items()}
        self._metrics.write(json.dumps(rounded, allow_nan=False) + "\n")


class Bystander:
    """Stands where the Observer stands in the first of several processes, and writes nothing."""

    seconds = 0.0

    def __enter__(self) -> Bystander:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return batches

    def pause(self) -> AbstractContextManager[None]:
        return nullcontext()

    def metrics(self, step: int, terms: Mapping[str, float], rates: Mapping[str, float]) -> None:
        pass

    def tick(self, step: int) -> None:
        pass

    def evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        pass

    def diagnosis(self, step: int, found: object | None) -> None:
        pass

    def say(self, message: str) -> None:
        pass

    def flush(self) -> None:
        pass


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last one that a killed process left half-written is not among them."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def cut_metrics(path: Path, done: int) -> None:
    """Removes what was written after `done` steps, since it will be written again."""
    kept = "".join(json.dumps(line) + "\n" for line in read_metrics(path) if line["step"] <= done)
    if path.exists():
        write_text(path, kept)


class _ConsoleHandler(logging.Handler):
    """Shows what any part of the library logs, above the live line."""

    def __init__(self, console: Console):
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(Text(self.format(record)), soft_wrap=True)


def _number(value: float) -> float | None:
    """Nine significant digits tell every float32 apart; JSON knows no infinity."""
    return float(f"{value:.9g}") if math.isfinite(value) else None


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
