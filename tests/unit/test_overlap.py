"""Coverage and leakage of sets whose overlap is known beforehand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from synoptic.evaluation.overlap import overlap


def around(direction: int, count: int, seed: int, spread: float = 0.2) -> Tensor:
    """Points about one axis of a space of 16."""
    points = spread * torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    points[:, direction] += 1.0
    return points


def test_pictures_of_the_same_kind_cover_and_do_not_leak() -> None:
    found = overlap(around(0, 400, 1), around(0, 400, 2))
    assert found.coverage > 0.95 and found.leakage < 0.05
    assert 0.9 < found.expected <= 1.0


def test_pictures_of_another_kind_neither_cover_nor_leak() -> None:
    found = overlap(around(1, 400, 1), around(0, 400, 2))
    assert found.coverage == 0.0 and found.leakage == 0.0


def test_half_of_the_kinds_cover_half() -> None:
    asked = torch.cat([around(0, 200, 2), around(1, 200, 3)])
    assert overlap(around(0, 400, 1), asked).coverage == pytest.approx(0.5, abs=0.05)


def test_asked_pictures_among_the_others_are_leakage() -> None:
    asked = around(0, 400, 2)
    shown = asked[:100] * 3.0 + 1e-6  # of another length, and a little changed
    assert overlap(torch.cat([around(0, 300, 1), shown]), asked).leakage == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("twins", [0, 16, 400])
def test_twins_among_the_asked_ones_hide_no_leakage(twins: int) -> None:
    asked = around(0, 400, 2)
    asked = torch.cat([asked, asked[:twins]])
    same, other = overlap(asked, asked), overlap(around(0, 300, 1), asked)
    assert same.coverage == same.leakage == 1.0
    assert other.leakage < 0.05
    half = overlap(asked[:200], asked).leakage
    assert half == pytest.approx((200 + min(twins, 200)) / (400 + twins), abs=0.02)


def test_of_few_pictures_many_others_come_near_and_give_nothing_away() -> None:
    for count in (12, 15, 50, 200):
        assert overlap(around(0, 4000, 1), around(0, count, 2)).leakage <= 0.02


def test_pictures_that_are_all_the_same_are_given_away() -> None:
    asked = torch.ones(20, 8)
    assert overlap(asked[:1], asked).leakage == 1.0


def test_too_few_pictures_are_told() -> None:
    with pytest.raises(ValueError, match="11 pictures to ask about are too few; give at least 12"):
        overlap(around(0, 30, 1), around(0, 11, 2))
