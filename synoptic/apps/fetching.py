"""Progress bars: one console for all of them, and a bar for files that are fetched, whatever verb wants them."""

from __future__ import annotations

from collections.abc import Iterator
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
def fetching_bars() -> Iterator[None]:
    """Shows on a terminal how much of each file is there, while it is fetched."""
    console = bars_console()
    columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    tasks: dict[str, TaskID] = {}

    def watch(name: str, done: int, total: int | None) -> None:
        if name not in tasks:
            bars.start()
            tasks[name] = bars.add_task(name, total=total)
        bars.update(tasks[name], completed=done)
        if done == total:
            bars.remove_task(tasks.pop(name))
            bars.stop()

    try:
        with watched(watch):
            yield
    finally:
        if tasks:
            bars.stop()
