"""WebDataset shards: tar archives whose members share a key, read at random without unpacking them.

`a/1.jpg`, `a/1.txt`, `a/1.json` and `a/1.cls` are one sample with the key `a/1`: a picture, its caption, more about it
(`caption` or `text`, one or a list; `label`), and its class. Where everything lies is found once and kept in a cache.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from synoptic.data.captions import cleaned, tell_once
from synoptic.data.members import Member
from synoptic.data.pictures import EXTENSIONS
from synoptic.data.tables import CAPTIONS
from synoptic.files import cache_folder, write_atomically

logger = logging.getLogger(__name__)

FORMAT = 1  # of the cache: files of another one are found anew
LARGEST_TEXT = 1 << 20  # bytes of a caption, and of what else is said of a picture
LARGEST_HEADER = 1 << 20  # bytes of the names and attributes of a member
LABELS = ("label", "class", "class_name")  # keys of a sample's JSON that name its class

_KEY = re.compile(
    r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL
)  # WebDataset's: up to the first dot behind the last slash
_RESERVED = re.compile(r"__[^/]*__($|/)")  # what WebDataset keeps for itself
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_TEXTS = ("txt", "json", "cls")


@dataclass(frozen=True)
class Sample:
    """A picture in a shard, and what the shard says of it.

    Attributes:
        picture: where it lies.
        captions: any number of them.
        label: the name of its class, or None.
    """

    picture: Member
    captions: tuple[str, ...]
    label: str | None


@dataclass(frozen=True)
class Shard:
    """What one shard holds.

    Attributes:
        samples: in the order of their pictures in it.
        left_out: how many of what were left out.
        is_cut: whether its end is missing.
    """

    samples: Sequence[Sample]
    left_out: Mapping[str, int]
    is_cut: bool


def read_shards(title: str, paths: Sequence[Path]) -> list[Sample]:
    """The samples of some shards, in the order of their names, and what was left out told.

    Args:
        title: what the user named, for messages.
        paths: the shards.

    Raises:
        ValueError: one is no tar archive, or is compressed; or there is no picture in any.
    """
    shards = [read_shard(path) for path in paths]
    samples = list(chain.from_iterable(shard.samples for shard in shards))
    cut = [path for path, shard in zip(paths, shards, strict=True) if shard.is_cut]
    if not samples:
        where = f" before the place where {cut[0]} is cut short" if cut else ""
        raise ValueError(f"{title} holds no picture with a name such as 0001.jpg{where}")
    for path, shard in zip(paths, shards, strict=True):
        if shard.is_cut:
            tell_once(f"{path} is cut short: the {len(shard.samples)} pictures before are used, what followed is lost")
    left_out = sum((Counter(shard.left_out) for shard in shards), Counter[str]())
    if left_out:
        told = ", ".join(f"{what} ({count})" for what, count in sorted(left_out.items()))
        tell_once(f"{title}: left out {told}")
    return sorted(samples, key=lambda sample: sample.picture.path)


def keys_of(samples: Sequence[Sample]) -> list[str]:
    """What tells pictures apart: their paths in the shards; where shards share some, with the shard's name before."""
    keys = [sample.picture.path for sample in samples]
    if len(set(keys)) == len(keys):
        return keys
    return [f"{sample.picture.archive.name}/{sample.picture.path}" for sample in samples]


def read_shard(path: Path) -> Shard:
    """What a shard holds, from the cache where that knows the file as it is.

    Raises:
        ValueError: it cannot be read, or is no tar archive.
    """
    try:
        status = path.stat()
        place = str(path.resolve())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    known = [FORMAT, place, status.st_size, status.st_mtime_ns]
    cached = cache_folder("shards") / f"{hashlib.sha256(place.encode(errors='surrogateescape')).hexdigest()[:32]}.json"
    content = _from_cache(cached, known)
    if content is None:
        content = _found(path)
        _into_cache(cached, {"file": known, **content})
    samples = [Sample(Member(path, *where), tuple(texts), label) for where, texts, label in content["samples"]]
    return Shard(samples, content["left_out"], content["is_cut"])


def _from_cache(cached: Path, known: Sequence[Any]) -> dict[str, Any] | None:
    try:
        content = json.loads(cached.read_bytes())
        return content if content["file"] == known else None
    except (OSError, ValueError, KeyError, TypeError):  # whatever is wrong with it, the shard itself is there
        return None


def _into_cache(cached: Path, content: Mapping[str, Any]) -> None:
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, lambda file: file.write(json.dumps(content).encode()))
    except OSError as error:
        logger.info("shards are looked through each time anew: %s cannot be written (%s)", cached, error)


def _found(path: Path) -> dict[str, Any]:
    """What a shard holds, as JSON keeps it: samples (where, captions, label), left_out, is_cut."""
    left_out: Counter[str] = Counter()
    groups: dict[str, dict[str, tuple[str, int, int]]] = {}
    with _Headers(path) as headers:
        members, is_cut = _members(path, headers)
    for member in members:
        named = _KEY.fullmatch(member.name.removeprefix("./"))
        if not member.isreg() or member.sparse is not None:
            left_out["links and other members that are no files"] += not member.isdir()
        elif named and not _RESERVED.match(member.name):
            _gather(groups.setdefault(named[1], {}), named[2].lower(), member, left_out)
    with path.open("rb") as file:
        samples = [sample for group in groups.values() if (sample := _sample(group, file, left_out))]
    return {"samples": samples, "left_out": +left_out, "is_cut": is_cut}


def _gather(group: dict[str, tuple[str, int, int]], kind: str, member: tarfile.TarInfo, left_out: Counter[str]) -> None:
    kind = "picture" if f".{kind}" in EXTENSIONS else kind
    if kind in group:
        left_out["members of a key and kind that was there already"] += 1
    else:
        group[kind] = (member.name, member.offset_data, member.size)


def _sample(group: Mapping[str, tuple[str, int, int]], file: BinaryIO, left_out: Counter[str]) -> Any:
    """A picture's place, captions and label; None where a group has no picture."""
    where = group.get("picture") or group.get("npy")
    if where is None:
        left_out["samples without a picture"] += 1
        return None
    texts = {kind: _text(group[kind], file, left_out) for kind in _TEXTS if kind in group}
    about = _about(texts.get("json"), left_out)
    listed = next((_listed(about[name]) for name in CAPTIONS if name in about), [])
    alone, captions = cleaned([texts.get("txt")]), cleaned(listed)
    if not set(alone) <= set(captions):  # many shards say the same in both
        captions = (*alone, *captions)
    left_out["empty captions"] += sum(
        isinstance(text, str) and not text.strip() for text in (texts.get("txt"), *listed)
    )
    label = next((about[name] for name in LABELS if isinstance(about.get(name), str)), texts.get("cls"))
    return where, captions, (label and label.strip()) or None


def _text(member: tuple[str, int, int], file: BinaryIO, left_out: Counter[str]) -> str | None:
    _, offset, size = member
    if size > LARGEST_TEXT:
        left_out[f"texts of more than {LARGEST_TEXT >> 20} MiB"] += 1
        return None
    file.seek(offset)
    try:
        return file.read(size).decode("utf-8-sig")
    except UnicodeDecodeError:
        left_out["texts that are not UTF-8"] += 1
        return None


def _about(text: str | None, left_out: Counter[str]) -> dict[str, Any]:
    try:
        about = json.loads(text or "{}")
    except (ValueError, RecursionError):
        left_out["texts that are not JSON"] += 1
        return {}
    return about if isinstance(about, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


class _Headers(io.FileIO):
    """A tar archive of which headers alone are read, none of them larger than memory should hold."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size) or b""


def _members(path: Path, file: _Headers) -> tuple[list[tarfile.TarInfo], bool]:
    """The members that are there whole, and whether the archive's end is missing.

    Raises:
        ValueError: it is compressed, or no tar archive.
    """
    start = file.read(tarfile.BLOCKSIZE)
    tool = next((tool for mark, tool in _COMPRESSED.items() if start.startswith(mark)), None)
    if tool:
        raise ValueError(f"{path} is compressed, so that no picture can be found in it alone: unpack it with {tool}")
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    found: list[tarfile.TarInfo] = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                last = found[-1].offset_data if found else -1
                is_whole = member.size >= 0 and member.offset_data + member.size <= length
                if member.offset_data <= last or not is_whole:
                    return found, True
                found.append(member)
            file.seek(archive.offset)
            return found, file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE)
    except (tarfile.TarError, ValueError, OverflowError, OSError) as error:
        if not found:
            told = f"{path} is no tar archive, or has nothing before it is cut short ({error})"
            raise ValueError(f"{told}; fetch it anew, or leave it out") from None
        return found, True
