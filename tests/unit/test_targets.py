"""Targets: what centring does to a teacher's logits, and what it remembers of them."""

import math

import pytest
import torch

from synoptic.losses import ssl
from synoptic.losses.targets import Targets


def logits_of(rows: int, seed: int = 0, prototypes: int = 6) -> torch.Tensor:
    return torch.randn(rows, prototypes, generator=torch.Generator().manual_seed(seed))


def test_the_running_mean_is_used_before_it_takes_the_batch_in() -> None:
    targets = Targets(6, "mean", momentum=0.9)
    first, second = logits_of(4), logits_of(4, 1)
    torch.testing.assert_close(targets(first, 0.5, 0), (first / 0.5).softmax(-1))
    targets.update()
    centre = 0.1 * first.mean(0)
    torch.testing.assert_close(targets.centre[0], centre)
    torch.testing.assert_close(targets(second, 0.5, 4), ((second - centre) / 0.5).softmax(-1))


def test_the_mean_of_a_step_is_over_all_its_parts() -> None:
    targets = Targets(6, "mean", momentum=0.0)
    rows = logits_of(6)
    for part in rows.split([4, 2]):
        targets(part, 0.5, 0)
    targets.update()
    torch.testing.assert_close(targets.centre, rows.mean(0, keepdim=True))


def test_without_centring_nothing_is_subtracted() -> None:
    targets = Targets(6, "none")
    for _ in range(2):
        torch.testing.assert_close(targets(logits_of(4), 0.5, 0), (logits_of(4) / 0.5).softmax(-1))
        targets.update()


def test_sinkhorn_balances_the_batch_with_past_rows_once_there_are_enough() -> None:
    targets = Targets(6, "sinkhorn", queue=8)
    seen = []
    for step in range(4):
        rows = logits_of(4, step)
        past = torch.cat(seen[-2:]) if step >= 2 else rows[:0]
        expected = ssl.sinkhorn_knopp(torch.cat((past, rows)), 0.5)[len(past) :]
        torch.testing.assert_close(targets(rows, 0.5, 4 * step), expected)
        targets.update()
        seen.append(rows)
    torch.testing.assert_close(targets.queue, torch.cat(seen[-2:]))


def test_the_queue_is_kept_by_a_checkpoint() -> None:
    targets, other = Targets(6, "sinkhorn", queue=8), Targets(6, "sinkhorn", queue=8)
    targets(logits_of(8), 0.5, 0)
    targets.update()
    other.load_state_dict(targets.state_dict())
    torch.testing.assert_close(other(logits_of(4, 1), 0.5, 8), targets(logits_of(4, 1), 0.5, 8))


def test_prototypes_used_falls_to_one_when_one_wins_and_stays_one_when_all_are_alike() -> None:
    for row, share in ((torch.tensor([50.0, 0, 0, 0, 0, 0]), 1 / 6), (torch.zeros(6), 1.0)):
        targets = Targets(6, "none")
        for _ in range(100):
            targets(row.expand(4, -1), 0.1, 0)
            targets.update()
        assert float(targets.prototypes_used()) == pytest.approx(share, rel=1e-2)


def test_balancing_does_not_hide_that_one_prototype_wins() -> None:
    targets = Targets(6, "sinkhorn")
    for step in range(100):
        rows = torch.tensor([50.0, 0, 0, 0, 0, 0]) + 0.01 * logits_of(8, step)
        assert float(ssl.entropy(targets(rows, 0.1, 0))) > 0.9 * math.log(6), "balanced targets are uniform"
        targets.update()
    assert float(targets.prototypes_used()) == pytest.approx(1 / 6, rel=1e-2)


def test_a_step_without_a_row_changes_nothing() -> None:
    targets = Targets(6, "mean")
    targets(logits_of(0), 0.5, 0)
    targets.update()
    assert not targets.centre.any() and targets.usage.isfinite().all()
