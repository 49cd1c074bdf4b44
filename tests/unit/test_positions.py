"""Position embeddings: learned tables at any size, and cropped ones against references written out for one picture."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from synoptic.models.positions import CroppedPositions, LearnedPositions

GRID = (6, 6)
WIDTH = 4


def learned(**options: Any) -> LearnedPositions:
    positions = LearnedPositions(WIDTH, GRID, 2, **options).double()
    nn.init.normal_(positions.table, generator=torch.Generator().manual_seed(0))
    return positions


def cropped(grid: tuple[int, int] = GRID, **options: Any) -> CroppedPositions:
    torch.manual_seed(0)
    return CroppedPositions(WIDTH, grid, **options).double()


def zeros(batch: int, grid: tuple[int, int]) -> Tensor:
    return torch.zeros(batch, grid[0] * grid[1], WIDTH, dtype=torch.float64)


def at(planes: np.ndarray, y: float, x: float) -> np.ndarray:
    """Bilinear value of planes (H, W, D) at a point measured in cells, the border repeated."""
    height, width = planes.shape[:2]
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = min(int(y), max(height - 2, 0)), min(int(x), max(width - 2, 0))
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    v, u = y - top, x - left
    upper = planes[top, left] * (1 - u) + planes[top, right] * u
    lower = planes[bottom, left] * (1 - u) + planes[bottom, right] * u
    return upper * (1 - v) + lower * v


def table_of(positions: CroppedPositions) -> np.ndarray:
    return positions.table.detach().numpy().reshape(*positions.grid, WIDTH)


def test_learned_positions_of_the_own_grid_are_the_table() -> None:
    positions = learned()
    prefix, patches = positions(torch.zeros(1, 2, WIDTH), zeros(3, GRID), GRID)
    assert torch.equal(prefix, positions.table[:, :2])
    assert torch.equal(patches, positions.table[:, 2:].expand(3, -1, -1))


@pytest.mark.parametrize("options", [{}, {"interpolation": "bilinear"}, {"antialias": True}, {"offset": 0.1}], ids=str)
@pytest.mark.parametrize("grid", [(3, 9), (12, 2), (1, 1), (7, 6)], ids=str)
def test_a_constant_table_stays_constant_at_any_size(options: dict[str, Any], grid: tuple[int, int]) -> None:
    positions = learned(**options)
    nn.init.constant_(positions.table, 0.7)
    _, patches = positions(None, zeros(1, grid), grid)
    torch.testing.assert_close(patches, zeros(1, grid) + 0.7)


def test_bilinear_positions_are_what_their_definition_says() -> None:
    positions = learned(interpolation="bilinear")
    _, patches = positions(None, zeros(1, (9, 4)), (9, 4))
    planes = positions.table[0, 2:].detach().numpy().reshape(*GRID, WIDTH)
    expected = [[at(planes, (i + 0.5) * 6 / 9 - 0.5, (j + 0.5) * 6 / 4 - 0.5) for j in range(4)] for i in range(9)]
    np.testing.assert_allclose(patches.detach().numpy().reshape(9, 4, WIDTH), expected, atol=1e-12)


def test_interpolation_options_differ_from_each_other() -> None:
    answers = [
        learned(**options)(None, zeros(1, (3, 3)), (3, 3))[1]
        for options in ({}, {"interpolation": "bilinear"}, {"antialias": True}, {"offset": 0.1})
    ]
    assert all(not torch.allclose(a, b, atol=1e-3) for place, a in enumerate(answers) for b in answers[:place])


def test_rows_and_columns_are_not_confused() -> None:
    """A table that grows to the right gives positions that grow to the right, whatever the size."""
    for positions in (learned(), cropped().eval()):
        prefix = positions.table.shape[1] - 36
        with torch.no_grad():
            positions.table[0, prefix:] = torch.arange(6.0).repeat(6)[:, None]
        _, patches = positions(None, zeros(1, (4, 8)), (4, 8))
        planes = patches.view(4, 8, WIDTH)
        assert (planes.diff(dim=1) > 0).all()
        torch.testing.assert_close(planes, planes[:1].expand(4, -1, -1))


def test_positions_are_resampled_in_float32_under_autocast() -> None:
    positions = learned().float()
    _, exact = positions(None, zeros(1, (5, 5)).float(), (5, 5))
    with torch.autocast("cpu", torch.bfloat16):
        _, patches = positions(None, zeros(1, (5, 5)).float(), (5, 5))
    torch.testing.assert_close(patches, exact)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_tables_in_half_precision_are_resampled_in_float32(kind: torch.dtype) -> None:
    """As a model that was cast whole has them: within one rounding of the same table in float32."""
    for positions in (learned(), cropped().eval()):
        exact = copy.deepcopy(positions.to(kind)).float()(None, zeros(1, (4, 9)).float(), (4, 9))[1]
        found = positions(None, zeros(1, (4, 9)).to(kind), (4, 9))[1]
        assert found.dtype == kind
        torch.testing.assert_close(found, exact.to(kind), rtol=0, atol=0)
    assert cropped().to(kind)(None, zeros(8, (4, 9)).to(kind), (4, 9))[1].dtype == kind


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("grid", [(4, 9), (9, 4), (6, 6), (3, 3), (1, 5), (2, 6)], ids=str)
def test_evaluation_resizes_to_a_square_and_crops(grid: tuple[int, int], align_corners: bool) -> None:
    positions = cropped(align_corners=align_corners).eval()
    prefix, patches = positions(torch.ones(1, 1, WIDTH), zeros(2, grid), grid)
    side = max(grid)

    def source(i: int) -> float:
        return i * 5 / (side - 1) if align_corners else (i + 0.5) * 6 / side - 0.5

    planes = table_of(positions)
    expected = [[at(planes, source(i), source(j)) for j in range(grid[1])] for i in range(grid[0])]
    for picture in patches.detach().numpy():
        np.testing.assert_allclose(picture.reshape(*grid, WIDTH), expected, atol=1e-12)
    assert torch.equal(prefix, torch.ones(1, 1, WIDTH))  # summary tokens have no position


@pytest.mark.parametrize("table", [(5, 5), (4, 7)], ids=str)
def test_viewports_are_those_of_the_papers_sampling(table: tuple[int, int]) -> None:
    """Corner to corner of the viewport, in a table of any shape, by PyTorch's sampler as AM-RADIO's makers call it."""
    positions, grid = cropped(table, dropout=0.0).train(), (3, 4)
    torch.manual_seed(3)
    _, patches = positions(None, zeros(2, grid), grid)
    torch.manual_seed(3)
    left, top, width, height = positions._viewports(2).unbind(1)
    steps = [torch.linspace(0, 1, count) for count in grid]
    x = (left[:, None, None] + width[:, None, None] * steps[1][None, None, :]).expand(-1, *grid)
    y = (top[:, None, None] + height[:, None, None] * steps[0][None, :, None]).expand(-1, *grid)
    planes = positions.table.view(1, *table, WIDTH).permute(0, 3, 1, 2).expand(2, -1, -1, -1)
    where = (torch.stack([x, y], dim=-1) * 2 - 1).double()
    expected = F.grid_sample(planes, where, mode="bilinear", padding_mode="zeros", align_corners=True)
    torch.testing.assert_close(patches, expected.flatten(2).mT, rtol=0, atol=1e-5)


def test_every_training_picture_sees_its_own_viewport(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = cropped(dropout=0.0).train()
    viewports = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.5, 0.3], [0.6, 0.0, 0.4, 0.35]]).double()
    monkeypatch.setattr(positions, "_viewports", lambda batch: viewports)
    grid = (3, 5)
    _, patches = positions(None, zeros(3, grid), grid)
    planes = table_of(positions)
    for picture, (left, top, width, height) in zip(patches.detach().numpy(), viewports.tolist(), strict=True):
        expected = [
            [at(planes, (top + height * i / 2) * 5, (left + width * j / 4) * 5) for j in range(5)] for i in range(3)
        ]
        np.testing.assert_allclose(picture.reshape(*grid, WIDTH), expected, atol=1e-6)  # places are float32


@given(st.integers(0, 2**31))
def test_viewports_lie_inside_the_table_and_have_the_papers_sizes(seed: int) -> None:
    torch.manual_seed(seed)
    left, top, width, height = cropped()._viewports(64).unbind(1)
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= 1 + 1e-6).all()
    assert (top + height <= 1 + 1e-6).all()
    smallest, widest = math.sqrt(0.1), 4 / 3
    assert (torch.maximum(width, height) >= smallest - 1e-6).all()
    assert (torch.minimum(width, height) >= smallest * 3 / 4 - 1e-6).all()
    free = (width < 1) & (height < 1)  # not clamped at the border
    ratio = (width / height)[free].sqrt()
    assert (ratio >= 1 / widest - 1e-5).all()
    assert (ratio <= widest + 1e-5).all()


def test_viewports_cover_the_whole_table_evenly() -> None:
    torch.manual_seed(0)
    left, top, width, height = cropped()._viewports(4000).unbind(1)
    assert abs((left + width / 2).mean() - 0.5) < 0.02
    assert abs((top + height / 2).mean() - 0.5) < 0.02
    assert width.min() < 0.3
    assert width.max() == 1


def test_position_dropout_takes_all_positions_of_some_pictures() -> None:
    positions = cropped(dropout=0.3).train()
    _, patches = positions(None, zeros(3000, (2, 2)), (2, 2))
    seen = patches.abs().sum((1, 2)) > 0
    assert abs(seen.float().mean() - 0.7) < 0.035  # four standard deviations
    for rate, share in ((0.0, 1.0), (1.0, 0.0)):
        _, patches = cropped(dropout=rate).train()(None, zeros(50, (2, 2)), (2, 2))
        assert (patches.abs().sum((1, 2)) > 0).float().mean() == share
    _, patches = positions.eval()(None, zeros(50, (2, 2)), (2, 2))
    assert (patches.abs().sum((1, 2)) > 0).all()
