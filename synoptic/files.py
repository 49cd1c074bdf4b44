"""Files that a killed process never leaves half-written, and folders that belong to one process at a time."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"

_held: set[Path] = set()  # by threads of this process, among which the system's lock makes no difference
_holding = threading.Lock()


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replaces `path` by what `write` puts into the file it is handed; whatever happens, `path` is old or new, whole.

    The file and its folder are synchronised to disk before this returns, so that a power cut loses neither.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Writes a text atomically; a file that holds it already is left untouched."""
    content = text.encode()
    if not (path.is_file() and path.read_bytes() == content):
        write_atomically(path, lambda file: file.write(content))


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a file that should be small.

    Raises:
        OSError: it cannot be read.
        ValueError: it has more than `most` bytes.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content


def cache_folder(kind: str) -> Path:
    """Where files lie that can be made again: `$XDG_CACHE_HOME/synoptic/KIND`, by default in `~/.cache`."""
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "synoptic" / kind


def check_file(path: Path) -> None:
    """Sees to it that a file can be written, before work is done for it; makes its folder.

    Raises:
        ValueError: it cannot, told as the key `out`.
    """
    if path.is_dir():
        raise ValueError(f"out={path}: is a folder; give a file")
    _try_writing("out", path, path.parent)


def check_folder(path: Path, key: str = "out") -> None:
    """Sees to it that files can be written into a folder, before work is done for them; makes it.

    Raises:
        ValueError: they cannot, told as the key.
    """
    if path.is_file():
        raise ValueError(f"{key}={path}: is a file; give a folder")
    _try_writing(key, path, path)


def _try_writing(key: str, told: Path, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{key}={told}: cannot be written ({error.strerror}); give another place") from None


def is_ours(path: Path) -> bool:
    """Whether a file is a lock, or what a killed process left half-written: nothing that anyone would miss."""
    return path.name == LOCK or (path.name.startswith(".") and path.name.endswith(".tmp"))


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Holds a folder, made if missing, for this process until it leaves or dies.

    Raises:
        ValueError: if another process, or another thread of this one, holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder.resolve()
    with _holding:
        if place in _held:
            raise _taken(folder)
        _held.add(place)
    try:
        with (folder / LOCK).open("w") as file:
            lock(file, folder)
            yield
    finally:
        _held.discard(place)


def lock(file: IO[Any], place: Path) -> None:
    """Holds an open file for this process until it closes it or dies; on Windows not.

    Args:
        file: opened to be written.
        place: told where another process holds it.
    Raises:
        ValueError: if one does.
    """
    if sys.platform == "win32":
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which reading processes would inherit
    except (BlockingIOError, PermissionError):
        raise _taken(place) from None


def _taken(place: Path) -> ValueError:
    return ValueError(f"{place}: another process is writing there; wait for its end or choose another out=")
