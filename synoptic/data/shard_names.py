"""Which files a name of shards means: `x-{000..009}.tar`, a glob, a folder that holds nothing else."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from synoptic.data.listing import expand
from synoptic.data.pictures import ARRAYS, EXTENSIONS

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # the compressed ones are refused when read
MOST = 1_000_000

_BRACES = re.compile(r"\{([^{}]*)\}")
_LAST_NUMBER = re.compile(r"\d+$")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_shard(path: Path) -> bool:
    """Whether a file's name is that of a tar archive."""
    return path.name.lower().endswith(ENDINGS)


def shards_in(folder: Path) -> list[Path]:
    """The shards of a folder that holds no pictures and no folders beside them, hidden ones aside."""
    with os.scandir(folder) as entries:
        seen = [entry for entry in entries if not entry.name.startswith(".")]
    endings = {os.path.splitext(entry.name)[1].lower() for entry in seen}
    if any(entry.is_dir() for entry in seen) or not endings.isdisjoint(EXTENSIONS | ARRAYS):
        return []
    return sorted(folder / entry.name for entry in seen if is_shard(Path(entry.name)))


def named_shards(spec: str) -> list[Path]:
    """The files that a pattern of shards names.

    Returns:
        Nothing where `spec` is no such pattern, or a file or folder of that very name.

    Raises:
        ValueError: none is there, or one of those counted up is missing.
    """
    if not is_shard(Path(spec)) or os.path.exists(expand(spec)):
        return []
    if "{" in spec:
        paths = braces(spec)
        gone = [path for path in paths if not path.is_file()]
        if gone:
            many = f"{len(gone)} of its {len(paths)} shards are" if len(gone) > 1 else "a shard is"
            raise ValueError(f"{spec}: {many} missing, {'such as ' if len(gone) > 1 else ''}{gone[0]}")
        return paths
    if not glob.has_magic(spec):
        return []
    paths = [Path(path) for path in sorted(glob.glob(str(expand(spec))))]
    if not paths:
        raise ValueError(f"no file matches {spec}")
    return paths


def braces(pattern: str) -> list[Path]:
    """The files that a pattern with braces means, as in a shell: {000..009} counts, {a,b} chooses.

    Raises:
        ValueError: something else is in the braces, or there are too many names.
    """
    names = list(islice(_expanded(pattern), MOST + 1))
    if len(names) > MOST:
        raise ValueError(f"{pattern}: means more than {MOST:,} shards")
    return [expand(name) for name in names]


def pattern_of(names: Sequence[str]) -> str:
    """The pattern that means these names of shards, as a user typed it before a shell made several words of it."""
    stems = [name.removesuffix(ENDINGS[0]) for name in names]
    first, last = (_LAST_NUMBER.search(stem) for stem in (stems[0], stems[-1]))
    if first and last and int(first[0]) < int(last[0]):
        counted = f"{stems[0][: first.start()]}{{{first[0]}..{last[0]}}}{ENDINGS[0]}"
        if list(islice(_expanded(counted), len(names) + 1)) == list(names):
            return counted
    return f"{{{','.join(stems)}}}{ENDINGS[0]}"


def _expanded(pattern: str) -> Iterator[str]:
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    start, end = pattern[: found.start()], pattern[found.end() :]
    for middle in _choices(found[1], pattern):
        yield from _expanded(f"{start}{middle}{end}")


def _choices(inside: str, pattern: str) -> Iterable[str]:
    counted = _RANGE.fullmatch(inside)
    if counted is None:
        if "," not in inside:
            raise ValueError(f"{pattern}: {{{inside}}} should count, as in {{000..009}}, or choose, as in {{a,b}}")
        return inside.split(",")
    first, last = int(counted[1]), int(counted[2])
    if first > last:
        raise ValueError(f"{pattern}: {{{inside}}} should count upwards")
    return (f"{number:0{len(counted[1])}d}" for number in range(first, last + 1))
