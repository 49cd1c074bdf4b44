"""The unfinished work on a table of embeddings: parts in a hidden folder beside it, which no kill takes away."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from synoptic.apps.table import BLOCK, Made, write_table
from synoptic.files import sole_writer, write_atomically

SECONDS = 30  # of work that a kill takes away at most


@contextmanager
def parts_of(out: Path, made: Made, anew: bool = False) -> Iterator[Parts]:
    """Holds the unfinished work on a table for this process; what is begun is kept if it fails.

    Args:
        out: the table.
        made: what it is made with.
        anew: throws away what an earlier process has left.
    Raises:
        ValueError: another process works on it.
        KeyboardInterrupt: once what was begun is kept.
    """
    folder = out.with_name(f".{out.name}.parts")
    with sole_writer(folder):
        parts = Parts(folder, made)
        if anew:
            parts.clear()
        try:
            yield parts
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; what was done is kept, the same command goes on with it") from None
        finally:
            parts.flush()
            if not parts.paths():
                shutil.rmtree(folder)


class Parts:
    """Rows that wait for the end of the work, in files of their own.

    Args:
        folder: of the files.
        made: what the table is made with.
    """

    def __init__(self, folder: Path, made: Made):
        self._folder, self._made = folder, made
        self._rows: list[pa.Table] = []
        self._since = time.monotonic()

    def paths(self) -> list[Path]:
        """The files, in the order in which they came."""
        return sorted(self._folder.glob("[0-9]*.parquet"))

    def add(self, rows: pa.Table) -> None:
        """Keeps some rows, at once or a little later."""
        self._rows.append(rows)
        if time.monotonic() - self._since > SECONDS or sum(part.nbytes for part in self._rows) > BLOCK:
            self.flush()

    def flush(self) -> None:
        """Writes what waits."""
        if self._rows:
            last = max((int(path.stem) for path in self.paths()), default=-1)
            path = self._folder / f"{last + 1:08d}.parquet"
            write_atomically(path, lambda file: write_table(file, self._rows, self._made))
        self._rows, self._since = [], time.monotonic()

    def clear(self) -> None:
        """Throws all away."""
        self._rows = []
        for path in self.paths():
            path.unlink()
