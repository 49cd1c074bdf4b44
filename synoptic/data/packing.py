"""Writes WebDataset shards: the pictures' own bytes, their captions and classes, spread evenly over the files."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from synoptic.data.members import LARGEST, Member
from synoptic.data.pictures import ARRAYS, EXTENSIONS, PictureError, check_stored
from synoptic.data.shard_names import braces
from synoptic.data.sources import Source
from synoptic.files import check_file, sole_writer, write_atomically

logger = logging.getLogger(__name__)

FORMAT = 1  # of what is written, raised whenever the same pictures would give other bytes
_NOWHERE = ("", ".", "..")  # parts of a path that name no folder below
_MARK = "comment"  # the attribute of an archive that says what it was made of


def pack(
    source: Source,
    out: str,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Writes shards, each when it is whole; those that an earlier call with the same arguments wrote stay as they are.

    The members of picture `a/1.jpg` are `a/1.jpg` itself; `a/1.txt` with its caption, if it has one; `a/1.json` with
    `caption`, a list, if it has several, and with `label`, the name of its class; and `a/1.cls`, the class's number.

    Args:
        source: the pictures; those that cannot be read are noted in `source.errors` and left out.
        out: the shards' names, as in `x-{000..009}.tar`.
        seed: decides the order.
        overwrite: whether other files of these names are replaced.
        progress: told how many of how many pictures are done.

    Returns:
        The shards.

    Raises:
        ValueError: there are other files in their place, more of them than pictures, or names that are no shards';
            or more of the pictures cannot be read than are allowed.
    """
    paths = _targets(out, source)
    made_of = _digest(source, seed)
    marks = {path: f"synoptic pack {made_of} {number} of {len(paths)}" for number, path in enumerate(paths)}
    there = {path for path in paths if path.exists() and not overwrite}
    if others := [path for path in paths if path in there and _mark_of(path) != marks[path]]:
        raise ValueError(f"out={out}: {others[0]} holds something else; overwrite=true replaces it")
    if source.masks is not None:
        logger.warning("%s: its masks are not packed, since shards have no place for them", source.root)
    order = np.random.default_rng(seed).permutation(len(source)).tolist()
    keys = _shard_keys(source.keys)
    with ExitStack() as holding:
        for folder in {path.parent for path in paths}:
            holding.enter_context(sole_writer(folder))
        for number, path in enumerate(paths):
            start, end = (place * len(order) // len(paths) for place in (number, number + 1))
            if path not in there:
                places = _told(range(start, end), progress, len(order))
                members = _members(source, (order[place] for place in places), keys)
                write_atomically(path, partial(_write, members=members, mark=marks[path]))
    return paths


def _told(places: range, progress: Callable[[int, int], None], total: int) -> Iterator[int]:
    """The places, each told as done when the next one is asked for."""
    for place in places:
        yield place
        progress(place + 1, total)


def _targets(out: str, source: Source) -> list[Path]:
    """The shards that `out` names, none of which is one of those that are read."""
    paths = braces(out)
    for path in paths:
        if path.suffix.lower() != ".tar":
            raise ValueError(f"out={out}: shards are .tar files, as in x-{{000..009}}.tar")
    if len(set(paths)) < len(paths):
        raise ValueError(f"out={out}: names a file twice")
    if len(paths) > len(source):
        raise ValueError(f"out={out}: names {len(paths)} shards for {len(source)} pictures; give fewer")
    read = {archive.resolve() for archive in {place.archive for place in source.paths if isinstance(place, Member)}}
    if read.intersection(path.resolve() for path in paths):
        raise ValueError(f"out={out}: is where the pictures are read from; give another place")
    for folder_of in {path.parent: path for path in paths}.values():
        check_file(folder_of)
    return paths


def _digest(source: Source, seed: int) -> str:
    """What shards are made of; their contents are a function of it, and of how many there are."""
    labels = None if source.labels is None else source.labels.tolist()
    made_of = [FORMAT, source.fingerprint(captions=True), list(source.classes), labels, seed]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]


def _mark_of(path: Path) -> str | None:
    """What an archive was made of, as far as `pack` wrote it."""
    try:
        with tarfile.open(path, "r:") as archive:
            return archive.pax_headers.get(_MARK)
    except (OSError, tarfile.TarError):
        return None


def _shard_keys(keys: Sequence[str]) -> list[str]:
    """A key for each picture that WebDataset does not cut: without dots behind the last slash, and none twice.

    Nor do they lead out of a folder in which someone unpacks them, wherever the keys of other shards lead. What would
    then be the same (`1.jpg` and `1.png`, or pictures of several data sets) is numbered.
    """
    stems = [os.path.splitext("/".join(part for part in key.split("/") if part not in _NOWHERE))[0] for key in keys]
    plain = [stem[: stem.rfind("/") + 1] + stem[stem.rfind("/") + 1 :].replace(".", "_") for stem in stems]
    taken, numbers, found = set(plain), Counter[str](), []
    for key in plain:
        numbers[key] += 1
        name = key
        while numbers[key] > 1 and name in taken:
            name = f"{key}-{numbers[key]}"
            numbers[key] += name in taken
        taken.add(name)
        found.append(name)
    return found


def _write(file: IO[bytes], members: Iterable[tuple[str, bytes]], mark: str) -> None:
    """An archive whose bytes follow from its members alone."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers={_MARK: mark}) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _members(source: Source, indices: Iterable[int], keys: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """The names and contents of pictures and of what is known of each."""
    for index in indices:
        try:
            ending, content = _picture(source.paths[index])
        except PictureError as error:
            source.errors.note([], [(index, error)])
        else:
            yield keys[index] + ending, content
            for kind, text in _about(source, index).items():
                yield f"{keys[index]}.{kind}", text.encode()


def _picture(place: Path | Member) -> tuple[str, bytes]:
    """A picture's ending and bytes, as they are."""
    ending = os.path.splitext(place.name)[1]
    if ending.lower() not in EXTENSIONS | ARRAYS:
        raise PictureError(str(place), "its name has no ending of a picture, by which shards know it")
    try:
        if check_stored(place) > LARGEST:
            raise PictureError(str(place), f"larger than {LARGEST / 1e9:.1f} GB")
        return ending, place.read_bytes()
    except OSError as error:
        raise PictureError(str(place), (error.strerror or str(error)).lower()) from None


def _about(source: Source, index: int) -> dict[str, str]:
    """What is said of a picture, by the endings of its members."""
    found: dict[str, str] = {}
    about: dict[str, Any] = {}
    captions = source.captions[index]
    if len(captions) == 1:
        found["txt"] = captions[0]
    elif captions:
        about["caption"] = captions
    if source.labels is not None:
        number = int(source.labels[index])
        about["label"] = source.classes[number]
        found["cls"] = str(number)
    return found | ({"json": json.dumps(about)} if about else {})
