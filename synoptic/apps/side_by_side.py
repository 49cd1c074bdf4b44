"""Commands that run as children of this process, several at once, their progress shown together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

LOOK_EVERY = 0.5  # seconds between two looks at the children
LINE_EVERY = 10.0  # seconds between two plain lines of one child, where there is no terminal
PATIENCE = 60.0  # seconds that children have to save what they did
LAST_LINES = 15  # of a failed child's output are shown


@dataclass(frozen=True)
class Progress:
    """How far a child is.

    Attributes:
        done: of `total`.
        total: 0 where that is unknown.
        text: what else is worth showing.
    """

    done: int
    total: int
    text: str = ""


@dataclass(frozen=True)
class Job:
    """A child to run.

    Attributes:
        name: told to the user.
        words: the module to run and its arguments.
        look: how far it is, by what it wrote so far.
        after: names of jobs that must have ended before it begins.
    """

    name: str
    words: tuple[str, ...]
    look: Callable[[], Progress]
    after: tuple[str, ...] = ()


def run(jobs: Sequence[Job], at_once: int, tick: Callable[[], None] = lambda: None) -> None:
    """Runs jobs, `at_once` of them at a time, until all are done.

    When one fails, or this process is asked to stop (SIGINT, SIGTERM), the others are asked to stop too, and are
    waited for while they save; asked a second time, they are killed.

    Args:
        tick: called at each look at the children.
    Raises:
        ValueError: a job failed by the user's mistake, or was killed.
        RuntimeError: a job failed otherwise; the message holds its last lines.
        KeyboardInterrupt: this process was asked to stop.
    """
    waiting, running = list(jobs), list[_Child]()
    console = Console(stderr=True)
    with _terminated_as_interrupted(), _display(console, jobs) as show:
        try:
            while waiting or running:
                while len(running) < at_once and (job := _ready(waiting, running)):
                    waiting.remove(job)
                    running.append(_Child(job))
                time.sleep(LOOK_EVERY)
                ended = [child for child in running if child.process.poll() is not None]
                for child in running:
                    show(child.job, child.process.returncode == 0)
                for child in ended:
                    running.remove(child)
                    child.check()
                tick()
        except KeyboardInterrupt:
            console.print("stopping, while what was done is saved; once more stops at once", soft_wrap=True)
            raise
        finally:
            _stop(running)


def _ready(waiting: Sequence[Job], running: Sequence[_Child]) -> Job | None:
    """The first job that waits for none of the others."""
    undone = {job.name for job in (*waiting, *(child.job for child in running))}
    return next((job for job in waiting if undone.isdisjoint(job.after)), None)


class _Child:
    def __init__(self, job: Job):
        self.job = job
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the child)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "synoptic.apps.tethered", *job.words],
            stdin=subprocess.PIPE,  # its end tells the child that this process is gone
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches this process alone, which passes it on once
        )

    def signal(self, number: int) -> None:
        """To the child and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def check(self) -> None:
        """Raises if the child failed."""
        code = self.process.returncode
        if code == 0:
            return
        if code < 0:
            name = signal.Signals(-code).name
            raise ValueError(f"{self.job.name}: was killed ({name}), as happens when memory runs out")
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").rstrip().splitlines() or ["it said nothing"]
        if code == 2:
            raise ValueError(f"{self.job.name}: {lines[-1].removeprefix('synoptic: ')}")
        raise RuntimeError("\n".join([f"{self.job.name} failed (exit code {code})", *lines[-LAST_LINES:]]))


def _stop(children: Sequence[_Child]) -> None:
    for child in children:
        child.signal(signal.SIGINT)
    deadline = time.monotonic() + PATIENCE
    try:
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(deadline - time.monotonic(), 0))
    finally:
        for child in children:
            child.signal(signal.SIGKILL)
            child.process.wait()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


Show = Callable[[Job, bool], None]


@contextmanager
def _display(console: Console, jobs: Sequence[Job]) -> Iterator[Show]:
    """How a job's progress is shown: as a live line each on a terminal, else as plain lines now and then."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield _plain_lines(console)
        return
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[text]}", style="dim"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console) as bars:
        rows = {job.name: bars.add_task(job.name, total=None, start=False, visible=False, text="") for job in jobs}

        def show(job: Job, done: bool) -> None:
            progress, row = job.look(), rows[job.name]
            bars.start_task(row)
            total = progress.total or (1 if done else None)
            bars.update(
                row, total=total, completed=total if done else progress.done, text=_told(progress), visible=True
            )

        yield show


def _plain_lines(console: Console) -> Show:
    told: dict[str, tuple[float, str]] = {}

    def show(job: Job, done: bool) -> None:
        now, text = time.monotonic(), _told(job.look())
        at, before = told.get(job.name, (now, ""))
        if done or (now - at > LINE_EVERY and text != before):
            console.print(Text(f"{job.name:8}  {text}  {'done' if done else ''}".rstrip()), soft_wrap=True)
            at, before = now, text
        told[job.name] = (at, before)

    return show


def _told(progress: Progress) -> str:
    counted = f"{progress.done}/{progress.total}" if progress.total else ""
    return "  ".join(part for part in (counted, progress.text) if part)
