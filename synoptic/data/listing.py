"""Which pictures a folder, a glob or a list holds, in an order that is the same on every machine."""

from __future__ import annotations

import difflib
import glob
import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from synoptic.data.pictures import ARRAYS, EXTENSIONS

log = logging.getLogger(__name__)

# What a data set holds beside the folder of its pictures: about each of them a file, which is no picture itself.
_PICTURES, _ABOUT = "images", frozenset({"masks", "depth", "normals", "correspondences"})


def list_images(spec: str | Path) -> list[Path]:
    """The pictures that an IMAGES argument means.

    Args:
        spec: a picture file; a folder (any depth); a glob (`**` for any depth); or a `.txt` list of one path a line,
            relative to the list's folder, where empty lines and lines that start with `#` are left out.

    Raises:
        ValueError: nothing there, or no picture among what is there.
    """
    path = expand(spec)
    if os.path.isdir(path):
        return pictures_in(path)
    if os.path.isfile(path):
        return _read_list(path) if path.suffix.lower() == ".txt" else [path]
    if glob.has_magic(str(path)):
        return _match(str(path))
    raise missing(path)


def pictures_in(folder: Path) -> list[Path]:
    """All pictures at any depth below `folder`, known by their extensions, sorted by path.

    Arrays (`.npy`) count as pictures where there are no others: beside pictures they hold something else about them.
    In a data set, whose pictures are in `images/`, the folders `masks/`, `depth/`, `normals/` and `correspondences/`
    beside that one tell of them and hold none. Hidden files and folders are passed over, links to folders followed,
    each folder once.

    Raises:
        ValueError: the folder is missing, empty, not to be read, or holds no picture.
    """
    if not os.path.isdir(folder):
        raise missing(folder)
    files = list(_walk(str(folder), _ABOUT))
    pictures = _pictures_among(files)
    if pictures:
        return _sorted_paths(pictures)
    if files:
        raise ValueError(f"{folder} holds no picture (.jpg, .png, .webp, ...), only {_others(files)}")
    raise ValueError(f"{folder} is empty: put pictures there, or name another folder")


def expand(spec: str | Path) -> Path:
    """The path that a user typed, `~` being the home folder."""
    return Path(os.path.expanduser(spec))


def missing(path: Path) -> ValueError:
    """The error for a path that is not there, with the nearest name that is."""
    if os.path.exists(path):
        return ValueError(f"{path} is not a folder")
    parent = next(folder for folder in path.parents if folder.is_dir())
    if parent != path.parent:
        return ValueError(f"{path} does not exist; of its path only {parent} is there")
    names = sorted(name for name in os.listdir(parent) if not _is_hidden(name))
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if near:
        return ValueError(f"{path} does not exist; did you mean {parent / near[0]}?")
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return ValueError(f"{path} does not exist; {parent} holds {listed or 'nothing'}")


def _walk(folder: str, about: frozenset[str] = frozenset()) -> Iterator[str]:
    """Every file below, each folder once: links are followed after all real folders, so that loops end.

    Folders named as in `about` are left out where they lie beside `images/`.
    """
    seen: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        links: list[str] = []
        for top in pending:
            for here, folders, files in os.walk(top, onerror=_refuse):
                status = os.stat(here)
                if (status.st_dev, status.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                beside = about.intersection(folders) if _PICTURES in folders else ()
                if beside:
                    _tell_about(here, ", ".join(sorted(beside)))
                folders[:] = sorted(name for name in folders if not _is_hidden(name) and name not in beside)
                links += [path for name in folders if os.path.islink(path := os.path.join(here, name))]
                yield from (os.path.join(here, name) for name in files if not _is_hidden(name))
        pending = links


def _refuse(error: OSError) -> None:
    raise ValueError(f"cannot read folder {error.filename}: {error.strerror}")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # what macOS adds to archives has picture names but no pictures


def _pictures_among(files: Sequence[str]) -> list[str]:
    """The files whose extensions are those of pictures; of arrays where there are none of those."""
    kinds = [os.path.splitext(name)[1].lower() for name in files]
    wanted = ARRAYS if EXTENSIONS.isdisjoint(kinds) else EXTENSIONS
    arrays = [name for name, kind in zip(files, kinds, strict=True) if kind in ARRAYS - wanted]
    if arrays:
        _tell_left_out(len(arrays), min(arrays))
    return [name for name, kind in zip(files, kinds, strict=True) if kind in wanted]


@lru_cache
def _tell_left_out(count: int, first: str) -> None:
    """Once, however often the same folder is looked at."""
    beside = "arrays count where no files of pictures lie beside them"
    log.warning("left out %d .npy, such as %s: %s; move one or the other elsewhere", count, first, beside)


@lru_cache
def _tell_about(folder: str, names: str) -> None:
    """Once, as `_tell_left_out`."""
    log.info("%s: left out %s, which tell of the pictures in %s", folder, names, _PICTURES)


def _sort_key(name: str) -> tuple[str, str]:
    # File systems store accented letters in different forms; the composed one sorts alike everywhere.
    return unicodedata.normalize("NFC", name.replace(os.sep, "/")), name


def _sorted_paths(names: Iterable[str]) -> list[Path]:
    return [Path(name) for name in sorted(names, key=_sort_key)]


def _match(pattern: str) -> list[Path]:
    found = [name for name in _glob(pattern) if not os.path.isdir(name)]
    pictures = _pictures_among(found)
    if pictures:
        return _sorted_paths(pictures)
    if found:
        raise ValueError(f"no picture matches {pattern}, only {_others(found)}")
    raise ValueError(f"no file matches {pattern}")


def _glob(pattern: str) -> Iterable[str]:
    head, deep, tail = pattern.partition("**")
    if not deep:
        return glob.glob(pattern)
    tail = tail.lstrip("/") or "*"
    if "**" in tail or (head and not head.endswith("/")):
        raise ValueError(f"{pattern}: ** may stand once, for any number of folders (dir/**/*.jpg)")
    folders = glob.glob(head) if head else ["."]
    # Not by glob's own **, which runs around loops of links; match() compares from the right, as ** before it means.
    return (name for folder in folders for name in _walk(folder) if Path(name).relative_to(folder).match(tail))


def _others(files: Sequence[str]) -> str:
    count = "1 other file" if len(files) == 1 else f"{len(files)} other files"
    return f"{count}, such as {min(files, key=_sort_key)}"


def _read_list(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a list of pictures: it is no UTF-8 text") from None
    pictures = []
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        picture = path.parent / Path(entry).expanduser()
        if not picture.is_file():
            raise ValueError(f"{path}, line {number}: no file {picture}")
        pictures.append(picture)
    if not pictures:
        raise ValueError(f"{path} lists no picture")
    return pictures
