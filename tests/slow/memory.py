"""How much memory a process and all its children hold at the worst moment (Linux alone tells)."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

EVERY = 1.0  # seconds
PROCESSES = Path("/proc")


class Peak:
    """The most bytes seen so far; None where the system tells nothing.

    Pages that processes share count for each of them, so it is rather less in truth.
    """

    bytes: int | None = None


@contextmanager
def watched() -> Iterator[Peak]:
    """Watches this process and its children, and theirs, until it is left."""
    peak, ended = Peak(), threading.Event()
    if not (PROCESSES / "self" / "statm").is_file():
        yield peak
        return

    def watch() -> None:
        while True:
            peak.bytes = max(peak.bytes or 0, sum(_held(process) for process in _family(os.getpid())))
            if ended.wait(EVERY):
                break

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def _family(root: int) -> list[int]:
    children: dict[int, list[int]] = defaultdict(list)
    for entry in PROCESSES.iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it may end any time
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                children[int(parent)].append(int(entry.name))
    family = [root]
    for process in family:
        family += children[process]
    return family


def _held(process: int) -> int:
    with suppress(OSError):
        return int((PROCESSES / str(process) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
