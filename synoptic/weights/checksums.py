"""Checksums of a folder's files, in a list that `sha256sum -c SHA256SUMS` reads too.

They guard against files that were cut, mixed up or changed one by one. Whoever can change all files can write a new
list, too: then only the list's own SHA-256 helps, had from the maker by another way.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from synoptic.files import cache_folder, read_bounded, write_text

log = logging.getLogger(__name__)

SUMS = "SHA256SUMS"
LARGEST = 1 << 20  # bytes of a list; one of ours has some hundred
SETTLED = 2.0  # seconds; a change soon after another may leave the times of a file as they are
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\]+)")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """The SHA-256 of a file, which is hashed when it is first seen and after every change."""
    return remembered(path, "sha256", sha256_of)


def remembered(path: Path, what: str, find: Callable[[Path], str], since: tuple[str, bool] | None = None) -> str:
    """What is found out about a file's content, which is looked for when it is first seen and after every change.

    To read all of a file takes as long as loading it, or longer. So what was found is kept in the user's cache, with
    what a change does not leave as it was: size, place on the disk, and two times, the second of which programs cannot
    set.

    Args:
        path: the file.
        what: tells apart what may be found out about it; letters and digits.
        find: the file -> a word without spaces. What it raises is not kept.
        since: `file_state` of before what `find` looks at was read, where that was earlier.
    """
    note = cache_folder("checksums") / hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    note = note.with_suffix("" if what == "sha256" else f".{what}")
    state, settled = since or file_state(path)
    try:
        seen, _, found = note.read_text(encoding="utf-8").rpartition(" ")
        if seen == state and found:
            return found
    except (OSError, ValueError):  # none, or damaged
        pass
    found = find(path)
    if settled and file_state(path)[0] == state:
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            write_text(note, f"{state} {found}")
        except OSError as error:
            log.info("%s cannot be written (%s), so %s is read again next time", note.parent, error.strerror, path)
    return found


def file_state(path: Path) -> tuple[str, bool]:
    """What tells a file from what it was before, and whether it is old enough for another change to show in it."""
    stat = path.stat()
    state = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return " ".join(map(str, state)), time.time() - max(stat.st_mtime, stat.st_ctime) > SETTLED


def write_sums(folder: Path) -> None:
    """Writes the checksums of all files of a folder, which holds no folders."""
    names = sorted(path.name for path in folder.iterdir() if path.name != SUMS)
    (folder / SUMS).write_text("".join(f"{sha256_of(folder / name)}  {name}\n" for name in names), encoding="utf-8")


def read_sums(folder: Path) -> dict[str, str]:
    """File name -> SHA-256, as the list of a folder says.

    Raises:
        ValueError: the list is missing or damaged.
    """
    path = folder / SUMS
    try:
        text = read_bounded(path, LARGEST).decode("utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}), so the weights folder is not whole") from None
    except ValueError as error:
        raise ValueError(f"{path}: damaged list of checksums ({error})") from None
    lines = [_LINE.fullmatch(line) for line in text.split("\n")[:-1]]
    found = [line.groups() for line in lines if line is not None]
    if len(found) < len(lines) or not text.endswith("\n"):
        raise ValueError(f"{path}: damaged list of checksums; a line is 64 hexadecimal digits, two spaces and a name")
    return {name: digest for digest, name in found}


@contextmanager
def verified(folder: Path, sums: Mapping[str, str], large: str) -> Iterator[None]:
    """Lets its block read a folder, and raises where a file is not the one that was saved.

    Small files are looked at before the block; the large one is hashed, if it has to be, in a thread of its own while
    the block reads it.

    Args:
        folder: where the files lie.
        sums: file name -> SHA-256, of every file that the block reads.
        large: the name of the large file.
    Raises:
        ValueError: naming the file that differs.
    """
    for name in sums:
        if name != large:
            _check(folder / name, _digest(folder / name, sha256_of), sums[name])
    with ThreadPoolExecutor(1) as beside:
        digest = beside.submit(_digest, folder / large, known_sha256)
        yield
        _check(folder / large, digest.result(), sums[large])


def _digest(path: Path, take: Callable[[Path], str]) -> str:
    try:
        return take(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}), so the weights folder is not whole") from None


def _check(path: Path, digest: str, expected: str) -> None:
    if digest != expected:
        raise ValueError(
            f"{path}: damaged, or changed since it was saved: its SHA-256 begins with {digest[:8]}, in {SUMS} with "
            f"{expected[:8]}; copy the folder anew, or, if the change is yours, write its SHA-256 there"
        )
