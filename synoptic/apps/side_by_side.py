"""Commands that run as children of this process, several at once, their progress shown together."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from synoptic.children import Child, stop, terminated_as_interrupted

LOOK_EVERY = 0.5  # seconds between two looks at the children
LINE_EVERY = 10.0  # seconds between two plain lines of one child, where there is no terminal


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
    waiting, running = list(jobs), dict[str, Child]()
    console = Console(stderr=True)
    with terminated_as_interrupted(), _display(console, jobs) as show:
        try:
            while waiting or running:
                while len(running) < at_once and (job := _ready(waiting, running)):
                    waiting.remove(job)
                    running[job.name] = Child(job.name, job.words)
                time.sleep(LOOK_EVERY)
                ended = [name for name, child in running.items() if child.process.poll() is not None]
                for job in jobs:
                    if job.name in running:
                        show(job, running[job.name].process.returncode == 0)
                for name in ended:
                    running.pop(name).check()
                tick()
        except KeyboardInterrupt:
            console.print("stopping, while what was done is saved; once more stops at once", soft_wrap=True)
            raise
        finally:
            stop(list(running.values()))


def _ready(waiting: Sequence[Job], running: Collection[str]) -> Job | None:
    """The first job that waits for none of the others."""
    undone = {*(job.name for job in waiting), *running}
    return next((job for job in waiting if undone.isdisjoint(job.after)), None)


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
