"""Commands that run as children of this process and never outlive it.

The parent holds the other end of a child's standard input. When that closes, because the parent ended in whatever way,
the child ends with all that it started. What it was writing then, it writes atomically, so nothing breaks. In the child
this is ``python -m synoptic.children MODULE [WORDS]``.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

PATIENCE = 60.0  # seconds that children have to save what they did
LAST_LINES = 15  # of a failed child's output are shown


class Child:
    """A running module.

    Args:
        name: told to the user; "" for a child that needs none.
        words: the module and its arguments.
        environment: variables beside those of this process.
        heard: whether what it writes to its standard error goes to this process's; else it is kept with its output.
    """

    def __init__(
        self, name: str, words: Sequence[str], environment: Mapping[str, str] | None = None, heard: bool = False
    ):
        self.name = name
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the child)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "synoptic.children", *words],
            stdin=subprocess.PIPE,  # its end tells the child that this process is gone
            stdout=self._output,
            stderr=None if heard else subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches this process alone, which passes it on once
            env={**os.environ, **(environment or {})},
        )

    def signal(self, number: int) -> None:
        """To the child and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def check(self) -> None:
        """Raises if the child failed.

        Raises:
            ValueError: by the user's mistake, or since it was killed.
            KeyboardInterrupt: it was asked to stop, by another than this process.
            RuntimeError: otherwise; the message holds its last lines.
        """
        code = self.process.returncode
        named = f"{self.name}: " if self.name else ""
        if code == 0:
            return
        if code < 0:
            name = signal.Signals(-code).name
            raise ValueError(f"{named or 'a process '}was killed ({name}), as happens when memory runs out")
        lines = self.said() or ["it said nothing"]
        if code == 130:
            raise KeyboardInterrupt(lines[-1])
        if code == 2:
            raise ValueError(f"{named}{lines[-1].removeprefix('synoptic: ')}")
        raise RuntimeError("\n".join([f"{self.name or 'a process'} failed (exit code {code})", *lines[-LAST_LINES:]]))

    def said(self) -> list[str]:
        """The lines of what it wrote so far."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace").rstrip().splitlines()


def stop(children: Sequence[Child], patience: float = PATIENCE) -> None:
    """Asks children to end, waits so many seconds while they save what they did, and kills those that do not end."""
    for child in children:
        child.signal(signal.SIGINT)
    deadline = time.monotonic() + patience
    try:
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(deadline - time.monotonic(), 0))
    finally:
        for child in children:
            child.signal(signal.SIGKILL)
            child.process.wait()


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Runs the module that the first word names, with the other words, while the parent lives."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
