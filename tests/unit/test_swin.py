"""The Swin Transformer: pictures of several sizes as one pack, windows, odd sides, and what it refuses."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from synoptic.models.swin import APART, Swin, SwinConfig, distances, merged_rows, windows_of

TINY = SwinConfig(width=8, depths=(2, 2), heads=(1, 2), window=3, stages=(0, 1), drop_path=0.0)


def random_swin(config: SwinConfig = TINY) -> Swin:
    torch.manual_seed(0)
    model = Swin(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_a_pack_of_sizes_equals_its_pictures() -> None:
    model = random_swin().double()
    groups = [torch.rand(2, 3, 20, 28, dtype=torch.float64), torch.rand(1, 3, 13, 9, dtype=torch.float64)]
    together = model.pyramid(groups)
    alone = [model.pyramid([picture[None]]) for group in groups for picture in group]
    for stage, (tokens, grids) in enumerate(together):
        assert list(grids) == [each[stage][1][0] for each in alone]
        torch.testing.assert_close(tokens, torch.cat([each[stage][0] for each in alone]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (4, 7), (6, 6)])
@pytest.mark.parametrize("shift", [0, 1])
def test_windows_are_those_of_the_shifted_picture(grid: tuple[int, int], shift: int) -> None:
    """Against pictures that are filled up, rolled and masked, as its authors' code does."""
    window, (height, width) = 3, grid
    windows = windows_of((grid,), window, shift, torch.device("cpu"))
    down, across = (-(-side // window) for side in grid)
    seen: dict[frozenset[int], list[set[int]]] = {}
    for row, column in product(range(down), range(across)):
        cells = []
        for y, x in product(range(window), range(window)):
            place = ((row * window + y + shift) % (down * window), (column * window + x + shift) % (across * window))
            inside = place[0] < height and place[1] < width
            apart = (
                bool(shift) and row == down - 1 and y >= window - shift,
                bool(shift) and column == across - 1 and x >= window - shift,
            )
            cells.append((place[0] * width + place[1] if inside else None, apart))
        known = frozenset(cell for cell, _ in cells if cell is not None)
        seen[known] = [
            {c for c, part in cells if c is not None and part == kind} for kind in product((False, True), repeat=2)
        ]
    beyond = set() if windows.beyond is None else set(windows.beyond.tolist())
    found: dict[frozenset[int], list[set[int]]] = {}
    masks = [mask for mask, count in zip(windows.kinds, windows.counts, strict=True) for _ in range(count)]
    for number, mask in enumerate(masks):
        places = [number * window**2 + place for place in range(window**2)]
        rows = [None if place in beyond else int(windows.rows[place]) for place in places]
        together = [mask is None or bool(mask[0, place] != APART) for place in range(window**2)]
        parts = [{row for row, same in zip(rows, together, strict=True) if row is not None and same}]
        found[frozenset(row for row in rows if row is not None)] = parts
    assert found.keys() == seen.keys()
    assert all(parts[0] in seen[cells] or not parts[0] for cells, parts in found.items())
    assert windows.rows[windows.back].tolist() == list(range(height * width))


def test_four_neighbours_are_merged_column_by_column() -> None:
    rows, beyond = merged_rows(((2, 3),), torch.device("cpu"))
    assert rows.tolist()[:4] == [0, 3, 1, 4]
    assert beyond is not None
    assert beyond.tolist() == [6, 7]  # right of the third column


def test_ways_between_patches_have_a_row_each() -> None:
    table = distances(2, torch.device("cpu"))
    assert table.shape == (4, 4)
    assert len(set(table.flatten().tolist())) == 9
    assert table[0, 3] == 0  # from the last to the first: furthest up and to the left
    assert table[3, 0] == 8


def test_it_answers_as_a_backbone_does() -> None:
    model = random_swin()
    answer = model(torch.rand(2, 3, 20, 28), layers=(0, -1))
    assert [layer.grid for layer in answer.layers] == [(5, 7), (3, 4)]
    assert answer.grid == (3, 4)
    assert answer.patches.shape == (2, 12, 16)
    assert torch.equal(answer.patches, answer.layers[1].patches)
    assert (model.width, model.stride, model.channels) == (16, 8, 3)


def test_stochastic_depth_leaves_whole_pictures_out() -> None:
    model = random_swin(SwinConfig(width=8, depths=(1,), heads=(1,), window=3, stages=(0,), drop_path=0.0))
    block: Any = model.stages[0][0]
    block.drop_path = 0.5
    block.train()
    tokens, grids = torch.randn(2 * 9, 8), ((3, 3), (3, 3))
    torch.manual_seed(0)
    changed = [(block(tokens, grids) - tokens).unflatten(0, (2, 9)).abs().amax((1, 2)) > 0 for _ in range(40)]
    share = torch.stack(changed).float().mean()
    assert 0.5 < share < 0.95  # one of two branches is mostly there


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"depths": ()}, "depths"),
        ({"heads": (3, 6, 12)}, "heads"),
        ({"stages": (1, 2)}, "stages"),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
        ({"drop_path": 1.0}, "drop_path"),
    ],
)
def test_spoiled_configurations_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SwinConfig(**wrong)


def test_what_it_cannot_do_is_said() -> None:
    model = random_swin()
    with pytest.raises(ValueError, match="hides nothing"):
        model(torch.rand(1, 3, 16, 16), masks=torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="stage 5"):
        model(torch.rand(1, 3, 16, 16), layers=(5,))
    with pytest.raises(ValueError, match=r"pictures \(B, 3, H, W\)"):
        model(torch.rand(1, 4, 16, 16))
    images: Tensor = torch.rand(1, 3, 1, 1)
    assert model(images).grid == (1, 1)
