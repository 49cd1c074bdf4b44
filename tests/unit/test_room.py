"""Large pages change nothing but the time."""

from __future__ import annotations

import pytest
import torch

from synoptic.weights import room
from synoptic.weights.room import LARGE, copied, stacked


@pytest.mark.parametrize("rows", [1, LARGE // 4, LARGE // 4 + 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_copy_is_equal_and_apart(rows: int, dtype: torch.dtype) -> None:
    tensor = torch.randn(rows, 3).to(dtype).T
    copy = copied(tensor, torch.float32)
    assert torch.equal(copy, tensor.float()) and copy.is_contiguous()
    tensor.zero_()
    assert copy.abs().sum() > 0


@pytest.mark.parametrize("width", [1, LARGE // 4])
def test_stacking_is_that_of_pytorch(width: int) -> None:
    parts = [torch.randn(rows, width) for rows in (1, 2, 3)]
    assert torch.equal(stacked(parts), torch.cat(parts))
    assert stacked([part.to("meta") for part in parts]).shape == (6, width)
    with pytest.raises(RuntimeError):
        stacked([parts[0], torch.zeros(2, width + 1)])


def test_memory_lives_as_long_as_a_view_of_it() -> None:
    view = copied(torch.arange(LARGE, dtype=torch.int32), torch.int32)[-3:]
    torch.empty(LARGE, dtype=torch.int32).fill_(7)
    assert view.tolist() == [LARGE - 3, LARGE - 2, LARGE - 1]


def test_a_system_without_large_pages_has_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(room.mmap, "MADV_HUGEPAGE")
    tensor = torch.randn(LARGE)
    assert torch.equal(copied(tensor, torch.float32), tensor)
