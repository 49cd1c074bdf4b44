"""Reading tensors from files that nobody vouches for: no code of theirs runs, and none takes more memory than it fills.

A spoiled file is a `ValueError` of one line, whatever it is spoiled with.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from synoptic.config import LARGEST_JSON, load_json
from synoptic.weights.checksums import remembered
from synoptic.weights.convert import refuse_infinite
from synoptic.weights.room import copied
from synoptic.weights.torchscript import is_torchscript, read_torchscript

State = dict[str, Tensor]

INDEX = ".index.json"  # behind the name of a file that is cut into several
MOST_PER_BYTE = 4  # bytes of tensors for one of the file: room for tensors that share memory, not for a bomb

MOST_VALUES, DEEPEST = 100_000, 32  # among the arguments of a training

_TORCHSCRIPT, _TENSORS, _PACKED = "torchscript", "tensors", "packed"  # what an archive holds

_ZIP = b"PK\x03\x04"  # how files of PyTorch begin since version 1.6, and how before: a pickle of a number of its own
_OLDER = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"

# Trainings of DINO and RADIO keep the arguments of their commands. A Namespace does nothing when made and filled.
_HARMLESS: list[Any] = [argparse.Namespace]
ARGUMENTS = "args"  # where they lie, and where alone a file may name classes that are not known here
_SYSTEM = ("os", "posix", "nt", "sys", "subprocess", "shutil")  # of which no training keeps anything


class _Stranger:
    """Stands for an object of a class that is not known here: takes what it is made of and drops it.

    Without it PyTorch would refuse the whole file; with it nothing that the file names is looked up, let alone run.
    """

    def __new__(cls, *args: Any, **options: Any) -> _Stranger:
        return super().__new__(cls)

    def __init__(self, *args: Any, **options: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_parts(path: Path) -> dict[str, State]:
    """The tensors of a safetensors file, of one of PyTorch's, or of several that an index names.

    Args:
        path: the file, or the JSON file of its index.
    Returns:
        Dictionary of the file -> key -> tensor. Tensors that lie in no inner dictionary are in that called "". They are
        as the file has them, and mostly windows on it: what is written into them stays in memory, but who writes into
        the file changes them, and who shortens it ends the process. A file that takes its place does neither.
    Raises:
        ValueError: the file is missing, damaged, or of another sort, would run code, or holds tensors that are larger
            than it.
    """
    return read_whole(path)[0]


def read_whole(path: Path) -> tuple[dict[str, State], dict[str, Any]]:
    """The tensors of a file, as `read_parts`, and the arguments of the training that wrote it.

    Returns:
        The tensors, and the plain values among the arguments: numbers, texts, and lists and dictionaries of them. What
        else lies there is None, and nothing is run to find out what it is.
    Raises:
        ValueError: see `read_parts`.
    """
    if path.name.endswith(INDEX):
        return {"": _read_shards(path)}, {}
    begins = _beginning(path)
    if begins.startswith(_ZIP):
        content = _read_torch(path)
    elif begins == _OLDER:
        content = _read_older(path)
    else:
        content = read_safetensors(path)
    parts = _parts(content)
    _check_tensors(path, parts)
    if not isinstance(content, Mapping) or ARGUMENTS not in content:
        return parts, {}
    try:
        said = _Plain().of(content[ARGUMENTS])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return parts, said if isinstance(said, dict) else {}


def is_written_in_place(path: Path) -> bool:
    """Whether a file is of PyTorch, which writes over what lies there, where others put a new file in its place."""
    begins = _beginning(path)
    return begins.startswith(_ZIP) or begins == _OLDER


def check_values(state: State, file: Path, since: tuple[str, bool], part: str | None = None) -> None:
    """Refuses weights that are not finite; of a single file, and a part of it, once for each state of it.

    Args:
        state: what was read.
        file: told in errors; an index stands for files that may change without it, which are looked at every time.
        since: `file_state` of before it was read.
        part: which of the networks in it.
    """
    if file.name.endswith(INDEX):
        refuse_infinite(state, str(file))
        return

    def look(path: Path) -> str:
        refuse_infinite(state, str(path))
        return "yes"

    remembered(file, f"finite{part or ''}", look, since)


def read_safetensors(path: Path) -> State:
    """The tensors of a safetensors file, which are windows on it.

    Raises:
        ValueError: the file is missing, damaged or of another sort.
    """
    try:
        _check_header(path)
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged weights file, or none ({error})") from None


def _check_header(path: Path) -> None:
    """Refuses a header that is longer than any of a model, before it is parsed; its length comes first in the file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length >= 1 << 40:  # no length at all
        raise OSError("its first bytes are neither those of safetensors nor of PyTorch")
    if length > LARGEST_JSON:
        raise OSError(f"its header has {length:,} bytes, more than {LARGEST_JSON:,}")


def owned(tensor: Tensor) -> Tensor:
    """A copy that no longer hangs on the file, floats as float32."""
    return copied(tensor.detach(), _kept_as(tensor))


def ready(tensor: Tensor) -> Tensor:
    """A tensor as models hold it: floats as float32, side by side. It is copied where the file has it otherwise."""
    as_it_is = tensor.dtype == _kept_as(tensor) and tensor.is_contiguous()
    return tensor.detach() if as_it_is else owned(tensor)


def _kept_as(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def _beginning(path: Path) -> bytes:
    """The first bytes of a file, which tell by what it was written."""
    try:
        with path.open("rb") as file:
            return file.read(len(_OLDER))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def _read_older(path: Path) -> Any:
    """A file of PyTorch of before version 1.6: pickles one after the other, which are read as strictly as archives."""
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"{path}: damaged weights file, or one with more than tensors and plain values") from None
    except Exception as error:  # a spoiled pickle may fail in any way
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ValueError(f"{path}: damaged weights file ({reason})") from None


def _read_torch(path: Path) -> Any:
    try:
        kind, _, code = remembered(path, "contents", _kind_of_archive).partition(":")
        if kind == _TORCHSCRIPT:
            return read_torchscript(path)
        names = code.split(",") if code else []
        if not any(name.partition(".")[0] in _SYSTEM for name in names):
            strangers = [(type("Stranger", (_Stranger,), {}), name) for name in names]
            with torch.serialization.safe_globals([*_HARMLESS, *strangers]):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == _TENSORS)
            if not names or not _is_strange(content):
                return content
    except pickle.UnpicklingError:
        raise ValueError(f"{path}: damaged weights file, or one with more than tensors and plain values") from None
    except Exception as error:  # a spoiled pickle may fail in any way
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ValueError(f"{path}: damaged weights file ({reason})") from None
    named = ", ".join(names[:3])
    raise ValueError(
        f"{path}: reading it would run code ({named}), which is refused; have its tensors saved alone, best as "
        "safetensors"
    )


def _is_strange(content: Any) -> bool:
    """Whether objects of unknown classes lie anywhere but among the arguments of a training."""
    if not isinstance(content, Mapping):
        return True
    waiting = [content.keys(), *(value for name, value in content.items() if name != ARGUMENTS)]
    waiting += [] if isinstance(content.get(ARGUMENTS, {}), Mapping | argparse.Namespace) else [content[ARGUMENTS]]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, _Stranger) or (isinstance(value, type) and issubclass(value, _Stranger)):
            return True
        if id(value) in seen or isinstance(value, str | bytes | Tensor):
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, argparse.Namespace):
            waiting += [*vars(value).values()]
        elif isinstance(value, Collection):
            waiting += [*value]
    return False


class _Plain:
    """Turns what lies in a file into numbers, texts, and lists and dictionaries of them; None in place of all else, and
    of what lies too deep.

    What is there many times becomes as many copies, each of which counts, so that a small file cannot unfold without
    end.
    """

    def __init__(self) -> None:
        self._left = MOST_VALUES

    def of(self, value: Any, depth: int = 0) -> Any:
        """
        Raises:
            ValueError: there are more values than any training's arguments have.
        """
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"its arguments unfold to more than {MOST_VALUES:,} values, which no training has")
        if isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, torch.dtype):
            return str(value)
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        if not isinstance(value, Mapping | list | tuple) or depth == DEEPEST:
            return None
        if isinstance(value, Mapping):
            return {str(name): self.of(each, depth + 1) for name, each in value.items() if isinstance(name, str | int)}
        return [self.of(each, depth + 1) for each in value]


def _kind_of_archive(path: Path) -> str:
    """What an archive holds, looked at once for each state of the file, and for its checksums, which PyTorch does not.

    Returns:
        `_TORCHSCRIPT`, `_TENSORS` or `_PACKED` (compressed, so that no part of it can be mapped), and of the last two
        behind a colon the classes and functions that it names.
    Raises:
        ValueError: it is damaged, or unpacks to much more than it is.
    """
    with zipfile.ZipFile(path) as archive:
        inside = sum(entry.file_size for entry in archive.infolist())
        if inside > MOST_PER_BYTE * path.stat().st_size:
            raise ValueError(f"it unpacks to {inside:,} bytes")
        with ThreadPoolExecutor() as threads:
            for broken in filter(None, threads.map(partial(_broken, archive), archive.infolist())):
                raise ValueError(f"the checksum of {broken} does not fit")
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    if is_torchscript(path):
        return _TORCHSCRIPT
    with torch.serialization.safe_globals(_HARMLESS):
        code = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return f"{_PACKED if packed else _TENSORS}:{','.join(sorted(code))}"


def _broken(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str | None:
    """The name of an entry that is not what was written; None of any other."""
    try:
        with archive.open(entry) as content:
            while content.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return entry.filename
    return None


def _parts(content: Any) -> dict[str, State]:
    """The tensors of a dictionary and of those that lie in it; what lies deeper is an optimiser's."""
    if not isinstance(content, Mapping):
        return {}
    inner = {name: _tensors(value) for name, value in content.items() if isinstance(value, Mapping)}
    return {str(name): state for name, state in {"": _tensors(content), **inner}.items() if state}


def _tensors(content: Mapping[Any, Any]) -> State:
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _check_tensors(path: Path, parts: Mapping[str, State]) -> None:
    """Refuses what is no plain array in memory, and arrays that claim more than the file holds (by a stride of 0)."""
    tensors = [(name, tensor) for state in parts.values() for name, tensor in state.items()]
    for name, tensor in tensors:
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"{path}: {name} is no plain tensor; have it saved as one")
    claimed = sum(tensor.numel() * tensor.element_size() for _, tensor in tensors)
    if claimed > MOST_PER_BYTE * path.stat().st_size:
        raise ValueError(f"{path}: its tensors would take {claimed:,} bytes, many times the file's own size")


def shards_of(index: Path) -> list[str]:
    """Names of the files that an index names, all of which lie beside it.

    Raises:
        ValueError: it is damaged, or names files elsewhere.
    """
    return sorted(set(_places(index).values()))


def _read_shards(index: Path) -> State:
    places, state = _places(index), State()
    for name in shards_of(index):
        state |= read_parts(index.parent / name).get("", {})
    missing = [name for name in places if name not in state]
    if missing:
        raise ValueError(f"{index}: {len(missing)} of its tensors are in none of its files, such as {missing[0]}")
    return state


def _places(index: Path) -> Mapping[str, str]:
    """The name of each tensor's file."""
    places = load_json(index).get("weight_map")
    if not isinstance(places, Mapping) or not all(_is_beside(name) for name in places.values()):
        raise ValueError(f"{index}: its weight_map should name, for each tensor, a file beside it")
    return places


def _is_beside(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name and not name.endswith(INDEX)
