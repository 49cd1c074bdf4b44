"""Losses of distillation: every kind against its definition, one value a picture; angles and their dispersion."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from synoptic.losses.distillation import (
    Dispersion,
    PatchLoss,
    SummaryLoss,
    angles,
    on_grid,
    on_one_grid,
    patch_match,
    summary_match,
)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def smooth(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


SUMMARIES = {
    "cosine": lambda s, t: 1 - cosine(s, t),
    "l1": lambda s, t: np.abs(s - t).mean(),
    "l2": lambda s, t: ((s - t) ** 2).mean(),
    "smooth_l1": lambda s, t: np.mean([smooth(d) for d in s - t]),
    "angle": lambda s, t: math.acos(cosine(s, t)) ** 2,
}
PATCHES = {
    "hybrid": lambda s, t: 0.9 * (1 - cosine(s, t)) + 0.1 * np.mean([smooth(d) for d in s - t]),
    "mse": SUMMARIES["l2"],
    "smooth_l1": SUMMARIES["smooth_l1"],
    "cosine": SUMMARIES["cosine"],
}


@pytest.mark.parametrize("kind", get_args(SummaryLoss))
def test_summaries_are_matched_by_the_definition(kind: SummaryLoss, rng: torch.Generator) -> None:
    student, teacher = (2.0 * torch.randn(5, 7, generator=rng, dtype=torch.float64) for _ in range(2))
    expected = [SUMMARIES[kind](s, t) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)]
    given = summary_match(student, teacher, kind)
    assert given.dtype == torch.float64
    np.testing.assert_allclose(given.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", get_args(PatchLoss))
def test_patches_are_matched_by_the_definition(kind: PatchLoss, rng: torch.Generator) -> None:
    """With and without patches that do not count; the last picture has none that does."""
    student, teacher = (2.0 * torch.randn(3, 4, 7, generator=rng, dtype=torch.float64) for _ in range(2))
    values = np.array(
        [[PATCHES[kind](student[b, n].numpy(), teacher[b, n].numpy()) for n in range(4)] for b in range(3)]
    )
    np.testing.assert_allclose(patch_match(student, teacher, kind).numpy(), values.mean(1), rtol=1e-12)
    seen = torch.tensor([[1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    expected = [values[0, [0, 1, 3]].mean(), values[1, 2], 0.0]
    np.testing.assert_allclose(patch_match(student, teacher, kind, seen).numpy(), expected, rtol=1e-12)


def test_patches_that_do_not_count_have_no_gradient(rng: torch.Generator) -> None:
    student = torch.randn(2, 3, 4, generator=rng, requires_grad=True)
    seen = torch.tensor([[True, False, True], [False, False, False]])
    patch_match(student, torch.randn(2, 3, 4, generator=rng), "hybrid", seen).sum().backward()
    assert student.grad is not None
    assert torch.equal(student.grad.abs().sum(-1) > 0, seen)


@pytest.mark.parametrize("kind", get_args(SummaryLoss))
def test_summaries_are_compared_in_float32_whatever_the_precision(kind: SummaryLoss, rng: torch.Generator) -> None:
    student, teacher = torch.randn(5, 70, generator=rng), torch.randn(5, 70, generator=rng)
    exact = summary_match(student, teacher, kind)
    assert summary_match(student.bfloat16(), teacher.bfloat16(), kind).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(summary_match(student, teacher, kind), exact, rtol=0, atol=0)


@pytest.mark.parametrize("kind", get_args(PatchLoss))
def test_patches_are_compared_in_float32_whatever_the_precision(kind: PatchLoss, rng: torch.Generator) -> None:
    student, teacher = torch.randn(2, 5, 70, generator=rng), torch.randn(2, 5, 70, generator=rng)
    exact = patch_match(student, teacher, kind)
    assert patch_match(student.bfloat16(), teacher.bfloat16(), kind).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(patch_match(student, teacher, kind), exact, rtol=0, atol=0)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="kind='mse' is none of cosine, l1, l2, smooth_l1, angle"):
        summary_match(torch.ones(1, 2), torch.ones(1, 2), "mse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind='angle' is none of hybrid, mse, smooth_l1, cosine"):
        patch_match(torch.ones(1, 1, 2), torch.ones(1, 1, 2), "angle")  # type: ignore[arg-type]


@pytest.mark.parametrize("angle", [1e-6, 1e-3, 1.0, math.pi / 2, 3.0, math.pi - 1e-3])
def test_angles_are_exact_in_float32_where_the_arc_cosine_is_not(angle: float) -> None:
    one = torch.tensor([1.0, 0.0])
    other = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64).float()
    expected = math.atan2(float(other[1]), float(other[0]))
    assert float(angles(7.0 * one, 0.1 * other)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0, -0.3, 0.0])
def test_the_gradient_of_the_angle_is_finite_where_vectors_are_equal_opposite_or_zero(factor: float) -> None:
    teacher = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    for dtype in (torch.float32, torch.float64):
        student = (factor * teacher).to(dtype).requires_grad_()
        loss = summary_match(student, teacher.to(dtype), "angle")
        loss.sum().backward()
        assert loss.isfinite().all() and student.grad is not None and student.grad.isfinite().all()
        wanted = {1.0: 0.0, -1.0: math.pi**2, 0.0: (math.pi / 2) ** 2}[float(np.sign(factor))]
        np.testing.assert_allclose(loss.detach().numpy(), wanted, rtol=1e-5, atol=1e-11)
    both_zero = torch.zeros(2, 6, requires_grad=True)
    summary_match(both_zero, torch.zeros(2, 6), "angle").sum().backward()
    assert both_zero.grad is not None and both_zero.grad.isfinite().all()


def test_the_gradient_of_the_angle_is_that_of_the_arc_cosine_elsewhere(rng: torch.Generator) -> None:
    teacher = torch.randn(4, 6, generator=rng, dtype=torch.float64)
    gradients = []
    for loss in (
        lambda s: summary_match(s, teacher, "angle"),
        lambda s: F.cosine_similarity(s, teacher, dim=-1).acos().square(),
    ):
        student = torch.ones(4, 6, dtype=torch.float64, requires_grad=True)
        loss(student).sum().backward()
        gradients.append(student.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def summaries_of(step: int, rows: int = 32) -> torch.Tensor:
    """About a direction of their own, by a deviation of a third of its length."""
    rng = torch.Generator().manual_seed(step)
    return torch.tensor([3.0, 0.0, 0.0, 0.0, 0.0]) + torch.randn(rows, 5, generator=rng)


def test_dispersion_of_the_first_batch_is_its_own_without_a_bias() -> None:
    dispersion, rows = Dispersion(5), summaries_of(0, 64).double()
    assert float(dispersion.value) == 1.0
    few = Dispersion(5)
    few.update(rows[:63])
    assert float(few.value) == 1.0  # until there are enough
    dispersion.update(rows)
    mean = rows.mean(0) / rows.mean(0).norm()
    expected = np.mean([math.acos(cosine(row.numpy(), mean.numpy())) ** 2 for row in rows])
    assert float(dispersion.value) == pytest.approx(expected, rel=1e-6)


def test_dispersion_is_the_running_mean_of_the_squared_angles_to_the_running_mean_direction() -> None:
    dispersion = Dispersion(5)
    means, spreads, weights = [], [], []
    for step in range(4):
        rows = summaries_of(step, rows=30 + step).double()
        dispersion.update(rows)
        means.append(rows.mean(0))
        weights = [0.99 * weight for weight in weights] + [0.01]
        mean = sum(weight * each for weight, each in zip(weights, means, strict=True))
        spreads.append(float(angles(rows, mean).square().mean()))
    expected = np.average(spreads, weights=weights)
    assert float(dispersion.value) == pytest.approx(expected, rel=1e-6)


def test_dispersion_of_many_batches_is_that_of_all_summaries() -> None:
    dispersion = Dispersion(5)
    batches = [summaries_of(step) for step in range(300)]
    for rows in batches:
        dispersion.update(rows)
    every = torch.cat(batches).double()
    expected = float(angles(every, every.mean(0)).square().mean())
    assert float(dispersion.value) == pytest.approx(expected, rel=0.05)


def test_a_step_without_summaries_changes_no_dispersion() -> None:
    dispersion = Dispersion(5)
    for rows in (summaries_of(0)[:0], summaries_of(0), summaries_of(0)[:0]):
        dispersion.update(rows)
    other = Dispersion(5)
    other.update(summaries_of(0))
    assert all(torch.equal(*pair) for pair in zip(dispersion.buffers(), other.buffers(), strict=True))


def test_dispersion_of_equal_summaries_is_above_zero() -> None:
    dispersion = Dispersion(5)
    dispersion.update(torch.ones(80, 5))
    assert float(dispersion.value) == pytest.approx(1e-4)


def test_dispersion_is_kept_by_a_checkpoint() -> None:
    one, other = Dispersion(5), Dispersion(5)
    one.update(summaries_of(0))
    other.load_state_dict(one.state_dict())
    for dispersion in (one, other):
        dispersion.update(summaries_of(1))
    assert torch.equal(one.value, other.value)


def test_over_the_dispersion_the_angle_of_who_knows_the_mean_alone_is_1() -> None:
    dispersion, rows = Dispersion(5), summaries_of(0, 500)
    dispersion.update(rows)
    guess = rows.mean(0).expand_as(rows)
    assert float(summary_match(guess, rows, "angle", dispersion.value).mean()) == pytest.approx(1.0, rel=1e-5)


def test_grids_meet_on_the_smaller_one(rng: torch.Generator) -> None:
    student, teacher = torch.randn(2, 2 * 4, 5, generator=rng), torch.randn(2, 4 * 3, 7, generator=rng)
    mine, theirs = on_one_grid(student, (2, 4), teacher, (4, 3), to="smaller")
    assert mine.shape == (2, 6, 5) and theirs.shape == (2, 6, 7)


def test_a_grid_that_shrinks_leaves_no_patch_out(rng: torch.Generator) -> None:
    patches = torch.randn(1, 64, 3, generator=rng, requires_grad=True)
    smaller = on_grid(patches, (8, 8), (2, 2))
    assert float(on_grid(torch.ones(1, 64, 3), (8, 8), (2, 2)).mean()) == pytest.approx(1.0, rel=1e-6)
    smaller.sum().backward()
    assert patches.grad is not None and (patches.grad > 0).all()


def test_a_grid_that_grows_is_interpolated_plainly(rng: torch.Generator) -> None:
    patches = torch.randn(2, 6, 5, generator=rng)
    planes = patches.transpose(1, 2).reshape(2, 5, 2, 3)
    expected = F.interpolate(planes, size=(4, 7), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(on_grid(patches, (2, 3), (4, 7)), expected, rtol=0, atol=0)
