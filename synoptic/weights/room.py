"""Memory for large tensors in large pages, where the system has them.

To copy weights takes less time than to make room for the copy: the system clears each page and enters it, and clears
and enters 512 times as many of 4 kB as of 2 MB. On two CPU cores, stacking the 300 MB of query, key and value of a
ViT-L took 28 ms in large pages and 83 in small ones, and giving the memory back 1 and 20 ms.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

LARGE = 1 << 22  # bytes; below, the gain is lost in the asking


def copied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of a tensor in memory of its own, its numbers side by side."""
    return tensor.to(dtype) if tensor.is_meta else _room(tensor.shape, dtype).copy_(tensor)


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Tensors one below the other, as `torch.cat` puts them.

    Raises:
        RuntimeError: they are of shapes or types that do not fit together.
    """
    shapes = {(part.shape[1:], part.dtype, part.is_meta) for part in parts}
    if len(shapes) > 1 or parts[0].is_meta or parts[0].ndim == 0:
        return torch.cat(list(parts))
    rows = sum(part.shape[0] for part in parts)
    return torch.cat(list(parts), out=_room((rows, *parts[0].shape[1:]), parts[0].dtype))


def _room(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(tuple(shape), dtype=dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(tuple(shape))  # which holds the memory as long as it lives
