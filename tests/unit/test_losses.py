"""The losses are those of the papers: each against its definition written out with loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from synoptic.losses import contrastive, distillation, ssl


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_dino_is_the_mean_over_all_pairs_of_different_crops(rng: torch.Generator) -> None:
    student = [torch.randn(4, 7, generator=rng, dtype=torch.float64) for _ in range(5)]
    teacher = [torch.randn(4, 7, generator=rng, dtype=torch.float64).softmax(-1) for _ in range(2)]
    pairs = []
    for t, target in enumerate(teacher):
        for s, logits in enumerate(student):
            if s != t:
                for row in range(4):
                    log_p = (logits[row] / 0.1).log_softmax(-1)
                    pairs.append(-sum(target[row, k] * log_p[k] for k in range(7)))
    assert len(pairs) == 4 * (2 * 5 - 2)
    torch.testing.assert_close(ssl.dino(student, teacher), torch.stack(pairs).mean(), rtol=1e-12, atol=0)


def test_dino_starts_at_ln_k_when_the_student_is_uniform() -> None:
    student = [torch.zeros(3, 64)] * 4
    teacher = [torch.rand(3, 64).softmax(-1)] * 2
    assert float(ssl.dino(student, teacher)) == pytest.approx(math.log(64), rel=1e-6)


def test_dino_has_no_gradient_for_the_teacher_and_one_for_every_crop_of_the_student() -> None:
    student = [torch.randn(3, 5, requires_grad=True) for _ in range(3)]
    logits = torch.randn(6, 5, requires_grad=True)
    targets = ssl.softened(logits, 0.04).split(3)
    ssl.dino(student, targets).backward()
    assert logits.grad is None
    assert all(crop.grad is not None and crop.grad.abs().sum() > 0 for crop in student)


def test_softened_centres_then_divides_by_the_temperature(rng: torch.Generator) -> None:
    logits = torch.randn(4, 6, generator=rng, dtype=torch.float64)
    centre = torch.randn(1, 6, generator=rng, dtype=torch.float64)
    expected = np.exp((logits - centre).numpy() / 0.05)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(ssl.softened(logits, 0.05, centre).numpy(), expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize(("given", "kept"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_targets_and_losses_are_float32_or_better(given: torch.dtype, kept: torch.dtype) -> None:
    logits = torch.randn(6, 3).to(given)
    targets = ssl.softened(logits, 0.04)
    assert targets.dtype == ssl.sinkhorn_knopp(logits, 0.04).dtype == kept
    assert ssl.dino(logits.split(3), targets.split(3)).dtype == kept
    assert ssl.ibot(ssl.patch_losses(logits, targets), torch.arange(6), 6).dtype == kept
    assert ssl.koleo(logits).dtype == ssl.entropy(targets).dtype == kept


def test_sinkhorn_knopp_equals_its_definition(rng: torch.Generator) -> None:
    logits = torch.randn(8, 5, generator=rng, dtype=torch.float64)
    q = np.exp(logits.numpy() / 0.5).T  # (K, B)
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdims=True) * 5
        q /= q.sum(0, keepdims=True) * 8
    np.testing.assert_allclose(ssl.sinkhorn_knopp(logits, 0.5).numpy(), (q * 8).T, rtol=1e-9)


def test_sinkhorn_knopp_of_nothing_is_nothing() -> None:
    assert ssl.sinkhorn_knopp(torch.zeros(0, 5), 0.04).shape == (0, 5)


def test_ibot_is_the_mean_over_hidden_patches_then_over_all_pictures(rng: torch.Generator) -> None:
    """Three pictures of which the second hides nothing, and adds nothing."""
    student = torch.randn(5, 7, generator=rng, dtype=torch.float64)
    teacher = torch.randn(5, 7, generator=rng, dtype=torch.float64).softmax(-1)
    pictures = torch.tensor([0, 0, 0, 2, 2])
    means = []
    for picture in range(3):
        rows = [row for row in range(5) if pictures[row] == picture]
        log_p = [(student[row] / 0.1).log_softmax(-1) for row in rows]
        losses = [-sum(float(teacher[row, k] * q[k]) for k in range(7)) for row, q in zip(rows, log_p, strict=True)]
        means.append(sum(losses) / len(losses) if losses else 0.0)
    assert float(ssl.ibot(ssl.patch_losses(student, teacher), pictures, 3)) == pytest.approx(sum(means) / 3, rel=1e-12)


def test_ibot_of_no_hidden_patch_is_zero_with_a_gradient() -> None:
    student = torch.zeros(0, 7, requires_grad=True)
    loss = ssl.ibot(ssl.patch_losses(student, torch.zeros(0, 7)), torch.zeros(0, dtype=torch.int64), 4)
    loss.backward()
    assert loss.item() == 0.0 and student.grad is not None


def test_agreement_is_the_share_of_rows_with_the_same_favourite() -> None:
    one, other = torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]
    assert float(ssl.agreement(one, other)) == 0.5


def test_sinkhorn_knopp_does_not_overflow() -> None:
    targets = ssl.sinkhorn_knopp(torch.tensor([[500.0, -500.0], [499.0, 0.0]]), 0.04)
    assert targets.isfinite().all()
    torch.testing.assert_close(targets.sum(1), torch.ones(2))


def test_entropy_is_ln_k_when_uniform_and_zero_when_certain() -> None:
    assert float(ssl.entropy(torch.full((3, 16), 1 / 16))) == pytest.approx(math.log(16), rel=1e-6)
    assert float(ssl.entropy(torch.eye(4))) == 0.0


def test_koleo_is_minus_the_mean_log_distance_to_the_nearest_neighbour(rng: torch.Generator) -> None:
    points = torch.randn(6, 4, generator=rng, dtype=torch.float64)
    unit = points / points.norm(dim=1, keepdim=True)
    distances = [min(float((a - b).norm()) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    assert float(ssl.koleo(points)) == pytest.approx(-np.mean(np.log(distances)), rel=1e-5)


def test_koleo_survives_half_precision_duplicates_and_single_samples() -> None:
    same = torch.ones(4, 8, dtype=torch.bfloat16, requires_grad=True)
    loss = ssl.koleo(same)
    loss.backward()
    assert loss.isfinite() and same.grad is not None and same.grad.isfinite().all()
    assert float(ssl.koleo(torch.randn(1, 8))) == 0.0


def test_clip_is_symmetric_cross_entropy(rng: torch.Generator) -> None:
    images, texts = torch.randn(5, 8, generator=rng), torch.randn(5, 8, generator=rng)
    scale = torch.tensor(2.0)
    unit_images = images / images.norm(dim=1, keepdim=True)
    unit_texts = texts / texts.norm(dim=1, keepdim=True)
    logits = math.exp(2.0) * (unit_images @ unit_texts.T)
    rows = [-math.log(float(logits[i].softmax(0)[i])) for i in range(5)]
    columns = [-math.log(float(logits[:, i].softmax(0)[i])) for i in range(5)]
    assert float(contrastive.clip(images, texts, scale)) == pytest.approx(
        (np.mean(rows) + np.mean(columns)) / 2, rel=1e-5
    )
    torch.testing.assert_close(contrastive.clip(images, texts, scale), contrastive.clip(texts, images, scale))


def test_clip_knows_nothing_at_ln_b() -> None:
    same = torch.ones(9, 4)
    assert float(contrastive.clip(same, same, torch.tensor(4.6))) == pytest.approx(math.log(9), rel=1e-5)


def test_clip_is_float32_under_autocast(rng: torch.Generator) -> None:
    images, texts = torch.randn(5, 8, generator=rng), torch.randn(5, 8, generator=rng)
    exact = contrastive.clip(images, texts, torch.tensor(3.0))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(contrastive.clip(images, texts, torch.tensor(3.0)), exact)


@settings(deadline=None, max_examples=20)
@given(factor=st.floats(0.01, 100.0))
def test_summary_match_sees_directions_alone(factor: float) -> None:
    teacher = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    assert float(distillation.summary_match(factor * teacher, teacher).mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(distillation.summary_match(-factor * teacher, teacher).mean()) == pytest.approx(2.0, abs=1e-6)


def test_patch_match_mixes_cosine_a_patch_and_smooth_l1(rng: torch.Generator) -> None:
    student, teacher = torch.randn(2, 3, 4, generator=rng), torch.randn(2, 3, 4, generator=rng)
    cosines, smooth = [], []
    for b in range(2):
        for n in range(3):
            s, t = student[b, n], teacher[b, n]
            cosines.append(float(s @ t / (s.norm() * t.norm())))
            smooth += [0.5 * d * d if abs(d) < 1 else abs(d) - 0.5 for d in (s - t).tolist()]
    expected = 0.9 * (1 - np.mean(cosines)) + 0.1 * np.mean(smooth)
    assert float(distillation.patch_match(student, teacher).mean()) == pytest.approx(expected, rel=1e-5)


def test_grids_meet_on_the_larger_one(rng: torch.Generator) -> None:
    student, teacher = torch.randn(2, 2 * 3, 5, generator=rng), torch.randn(2, 4 * 3, 7, generator=rng)
    mine, theirs = distillation.on_one_grid(student, (2, 3), teacher, (4, 3))
    assert mine.shape == (2, 12, 5) and theirs.shape == (2, 12, 7)
    torch.testing.assert_close(theirs, teacher)
    planes = student.transpose(1, 2).reshape(2, 5, 2, 3)
    expected = F.interpolate(planes, size=(4, 3), mode="bilinear", align_corners=False)
    torch.testing.assert_close(mine.transpose(1, 2).reshape(2, 5, 4, 3), expected)


def test_grids_that_are_larger_in_one_way_each_both_grow() -> None:
    mine, theirs = distillation.on_one_grid(torch.ones(1, 8, 2), (2, 4), torch.ones(1, 8, 2), (4, 2))
    assert mine.shape == theirs.shape == (1, 16, 2)
