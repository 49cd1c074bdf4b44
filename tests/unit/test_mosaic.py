"""Canvases of several pictures, and their patches cut apart again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synoptic.data.mosaic import assemble, cut


def patches_of(canvas: torch.Tensor, patch: int) -> torch.Tensor:
    """(M, h*w, C*patch*patch): the pixels of each patch, as a network that mixes nothing would answer."""
    return torch.nn.functional.unfold(canvas, patch, stride=patch).transpose(1, 2)


@given(count=st.integers(1, 11), tiles=st.integers(1, 4), across=st.integers(1, 3))
def test_every_picture_gets_its_own_patches_back(count: int, tiles: int, across: int) -> None:
    patch = 2
    side = across * patch
    pictures = torch.arange(count * 3 * side * side, dtype=torch.float32).view(count, 3, side, side)
    canvas = assemble(pictures, tiles)
    assert canvas.shape == (-(-count // tiles**2), 3, tiles * side, tiles * side)
    found, grid = cut(patches_of(canvas, patch), (tiles * across, tiles * across), tiles, count)
    assert grid == (across, across)
    assert torch.equal(found, patches_of(pictures, patch))


def test_pictures_stand_row_by_row_and_the_last_canvas_begins_anew() -> None:
    pictures = torch.arange(1.0, 6.0).view(5, 1, 1, 1)
    assert assemble(pictures, 2).flatten(1).tolist() == [[1, 2, 3, 4], [5, 1, 2, 3]]


def test_a_grid_that_the_pictures_do_not_tile_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="2 pictures do not tile"):
        cut(torch.zeros(1, 9, 4), (3, 3), 2, 1)
