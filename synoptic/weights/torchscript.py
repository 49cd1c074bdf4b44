"""The tensors of a TorchScript archive, read without running the code that lies in it.

Such an archive is a ZIP file: `data.pkl` describes the tree of modules, `data/N` hold the numbers of tensors. The
pickle may name the classes of the archive's own code, for which an empty object stands here, and what tensors are made
of; any other name is refused before it is looked up.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_CODE = "__torch__"  # modules of an archive's own classes
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
_LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")


def is_torchscript(path: Path) -> bool:
    """Whether a ZIP archive is one of TorchScript."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of the module in an archive, by the names that its `state_dict` has for them.

    Raises:
        pickle.UnpicklingError: the archive names what it should not, or its tensors do not fit their numbers.
    """
    with zipfile.ZipFile(path) as archive:
        (place,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
        content = archive.read(place)
        _check_numbers(content)
        module = _Reader(io.BytesIO(content), archive, place.removesuffix("data.pkl")).load()
    return dict(_tensors(module, ""))


def _check_numbers(content: bytes) -> None:
    """Refuses a pickle that counts its objects higher than it has bytes: room is made for as many as it counts."""
    for code, argument, _ in pickletools.genops(content):
        if code.name in ("PUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(content):
            raise pickle.UnpicklingError(f"it counts {argument:,} objects in {len(content):,} bytes")


class _Module:
    """Stands for a module of an archive."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"a module is filled with a {type(state).__name__}")
        self.__dict__ = state


class _Reader(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == _CODE:
            return _Module
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch.jit._pickle" and name in _LISTS:
            return list
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a tensor")

    def persistent_load(self, told: Any) -> Tensor:
        _, dtype, key, _, count = told
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._root}data/{key}"))
            if len(content) != count * dtype.itemsize:
                raise pickle.UnpicklingError(f"data/{key} has {len(content)} bytes for {count} numbers")
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key]


def _rebuild(numbers: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    """A window on the numbers of a file, none outside of them."""
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if offset < 0 or any(step < 0 for step in stride) or (0 not in size and last >= len(numbers)):
        raise pickle.UnpicklingError(f"a tensor of {tuple(size)} reaches beyond its numbers")
    return numbers.as_strided(tuple(size), tuple(stride), offset)


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
