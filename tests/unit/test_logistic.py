"""Logistic regression: the minimum that the definition has, the strength that training pictures choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from synoptic.data.sources import Source
from synoptic.evaluation import logistic
from synoptic.evaluation.features import Embeddings, Space
from synoptic.evaluation.logistic import STRENGTHS, TOLERANCE, Logistic, Regression, logits, objective

SPACE = Space(unit=False)


def cross_entropies(rows: np.ndarray, labels: np.ndarray, strength: float, weights: np.ndarray) -> float:
    """The definition: C times the sum of the losses plus half the squared weights, without the intercept's."""
    scores = rows @ weights[:-1] + weights[-1]
    losses = np.log(np.exp(scores).sum(1)) - scores[np.arange(len(rows)), labels]
    return strength * losses.sum() + 0.5 * (weights[:-1] ** 2).sum()


@pytest.fixture
def rows() -> Tensor:
    """Features as trained and untrained networks have them: of unequal spread, and far from zero."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal([0, 9, 0, -4, 0], [1.0, 0.02, 3.0, 0.5, 1.0], (60, 5)))


@pytest.fixture
def labels(rows: Tensor) -> Tensor:
    noise = torch.from_numpy(np.random.default_rng(1).normal(0, 1, (60, 3)))
    return (rows[:, [0, 2, 4]] + noise).argmax(1)


@pytest.mark.parametrize("strength", [1e-6, 1e-2, 1.0, 1e3])
def test_the_minimum_is_that_of_the_definition(rows: Tensor, labels: Tensor, strength: float):
    weights = Regression(rows, labels).fit(strength, rows.new_zeros(6, 3))
    _, gradient = objective(rows, labels, strength, weights)
    steepest = 0.5 * 9 + 1 / (strength * 60)  # curvature, by which the tolerance of the gradient is scaled
    assert gradient.abs().max() < TOLERANCE * (5 * steepest) ** 0.5

    def plain(flat: np.ndarray) -> float:
        return cross_entropies(rows.numpy(), labels.numpy(), strength, flat.reshape(6, 3)) / (strength * len(rows))

    found = plain(weights.numpy().ravel())
    other = minimize(plain, np.zeros(18), method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-15})
    assert found <= other.fun + 1e-8
    assert found == pytest.approx(other.fun, abs=1e-5)


def test_the_gradient_is_that_of_the_loss_in_one_piece_or_several(
    rows: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
):
    weights = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    loss = F.cross_entropy(logits(rows, weights), labels) + weights[:-1].square().sum() / (2 * 0.3 * 60)
    loss.backward()
    for piece in (1000, 7):
        monkeypatch.setattr(logistic, "ROWS", piece)
        value, gradient = objective(rows, labels, 0.3, weights.detach())
        torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient, weights.grad, rtol=1e-12, atol=1e-12)


def test_neither_the_start_nor_a_constant_changes_the_minimum(rows: Tensor, labels: Tensor):
    expected = logits(rows, Regression(rows, labels).fit(1.0, rows.new_zeros(6, 3)))
    other = torch.randn(6, 3, generator=torch.Generator().manual_seed(2)).double()
    for moved in (rows, rows + 50.0):
        again = logits(moved, Regression(moved, labels).fit(1.0, other))
        torch.testing.assert_close(again.softmax(1), expected.softmax(1), rtol=0, atol=1e-5)


def test_the_strengths_are_those_of_dinov2():
    np.testing.assert_allclose(STRENGTHS, 10 ** np.linspace(-6, 5, 45))


def source(labels: np.ndarray) -> Source:
    """Pictures that are never read."""
    return Source(Path("nowhere"), [Path(f"{i}.jpg") for i in range(len(labels))], "abc", labels)


def pictures(seed: int, count: int = 90, noise: float = 0.1) -> tuple[np.ndarray, Embeddings]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    vectors = np.eye(4)[labels] + rng.normal(0, noise, (count, 4))
    return labels, Embeddings(np.arange(count), {SPACE: torch.from_numpy(vectors).float()})


def test_classes_that_lie_apart_are_told_apart():
    (labels, train), (truth, judged) = pictures(0), pictures(1)
    scores = dict(Logistic(source(labels), source(truth)).scores(train, judged))
    assert scores == {"logistic": pytest.approx(1.0, abs=0.03)}


def test_the_strength_is_chosen_without_the_judged_pictures_and_all_training_pictures_are_fitted(
    monkeypatch: pytest.MonkeyPatch,
):
    """Judged pictures of wrong classes change nothing that is said of them; the last fit is of all 90 pictures."""
    fitted: list[tuple[int, float]] = []
    plain = Regression.fit

    def noted(self: Regression, strength: float, *rest) -> Tensor:
        fitted.append((len(self._rows), strength))
        return plain(self, strength, *rest)

    monkeypatch.setattr(Regression, "fit", noted)
    (labels, train), (truth, judged) = pictures(0, noise=0.6), pictures(1, noise=0.6)
    said = [Logistic(source(labels), source(classes)).judge(train, judged).scores for classes in (truth, 2 - truth)]
    np.testing.assert_array_equal(*said)
    assert fitted[:45] == [(81, strength) for strength in STRENGTHS]
    count, strength = fitted[45]
    assert count == 90
    assert strength in STRENGTHS
    # Noise this strong asks for a penalty: the chosen strength is neither the first nor among the weakest.
    assert 1e-5 < strength < 1e4


def test_a_teachers_space_has_a_name_of_its_own():
    (labels, train), (truth, judged) = pictures(0), pictures(1)
    space = Space("clip", unit=False)
    parts = [Embeddings(part.index, {space: part.vectors[SPACE]}) for part in (train, judged)]
    scores = dict(Logistic(source(labels), source(truth), "clip").scores(*parts))
    assert scores == {"logistic_clip": pytest.approx(1.0, abs=0.03)}
