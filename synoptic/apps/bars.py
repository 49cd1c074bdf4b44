"""Progress bars on a terminal: those of verbs, and of files that are fetched, whatever verb wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from synoptic.weights.downloads import watched


@cache
def bars_console() -> Console:
    """The console of all bars, so that those of a verb and of what it fetches do not draw over each other."""
    return Console(stderr=True)


@contextmanager
def bars(*names: str) -> Iterator[list[Callable[[int, int], None]]]:
    """Progress bars on a terminal, nothing elsewhere: each to be told how many of how many are done, and shown then."""
    console = bars_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as shown:

        def teller(task: TaskID) -> Callable[[int, int], None]:
            return lambda done, total: shown.update(task, completed=done, total=total, visible=True)

        yield [teller(shown.add_task(name, total=None, visible=False)) for name in names]


@contextmanager
def bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """The one of `bars`."""
    with bars(name) as (only,):
        yield only


@contextmanager
def fetching_bars() -> Iterator[None]:
    """Shows on a terminal how much of each file is there, while it is fetched."""
    console = bars_console()
    columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    shown = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    tasks: dict[str, TaskID] = {}

    def watch(name: str, done: int, total: int | None) -> None:
        if name not in tasks:
            shown.start()
            tasks[name] = shown.add_task(name, total=total)
        shown.update(tasks[name], completed=done)
        if done == total:
            shown.remove_task(tasks.pop(name))
            shown.stop()

    try:
        with watched(watch):
            yield
    finally:
        if tasks:
            shown.stop()
