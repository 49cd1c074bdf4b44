"""What is in the picture, by logistic regression of frozen features."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from synoptic.data.sources import Source
from synoptic.evaluation.features import Embeddings, Space
from synoptic.evaluation.recognition import Recognised, Recogniser, labels_of_both, set_apart

logger = logging.getLogger(__name__)

STRENGTHS = tuple(10 ** (-6 + 11 * place / 44) for place in range(45))  # C, evenly from 1e-6 to 1e5 (DINOv2's script)
ITERATIONS = 1000  # at most, for each C
TOLERANCE = 1e-6  # of the gradient along the scaled axes
ROUGH = 1e-4  # the same while C is chosen, in a quarter of the time
HISTORY = 10  # past gradients from which L-BFGS estimates the curvature
ROWS = 16384  # looked at together: of 1000 classes, 0.13 GB of float64


class Logistic(Recogniser):
    """Multinomial logistic regression of the summary with an L2 penalty, in float64.

    The features are taken as they are, neither normalised nor standardised (DINOv2's script). The inverse strength C of
    the penalty, one of 45 from 1e-6 to 1e5, is chosen on a tenth of the training pictures, drawn by the seed, the
    smallest of equally good ones; then all training pictures are fitted. A model without a summary is read by its mean
    patch.

    Yields "logistic": the share of the judged pictures whose class scores highest.

    Args:
        train: labelled pictures to learn from.
        judged: labelled pictures to judge by, of the same classes.
        adaptor: judges a student's answer in the space of this teacher.
        seed: of the pictures set apart.
    Raises:
        ValueError: where labels are missing, or classes differ.
    Source: the script released with DINOv2 (Oquab et al. 2023, arXiv 2304.07193).
    """

    def __init__(self, train: Source, judged: Source, adaptor: str | None = None, seed: int = 0):
        self.train, self.judged, self.seed = train, judged, seed
        self._labels = labels_of_both(train, judged)
        self._space = Space(adaptor, unit=False)
        self.sources, self.spaces = (train, judged), (self._space,)

    def scores(self, *seen: Embeddings) -> Iterator[tuple[str, float]]:
        yield f"logistic{self._space.suffix}", self.judge(*seen).accuracy()

    def judge(self, train: Embeddings, judged: Embeddings) -> Recognised:
        """Every judged picture with its scores, from the vectors of both parts."""
        rows = train.vectors[self._space].double()
        labels = torch.from_numpy(self._labels[0][train.index]).to(rows.device)
        held, rest = (torch.from_numpy(part).to(rows.device) for part in set_apart(len(rows), self.seed))
        weights = rows.new_zeros(rows.shape[1] + 1, len(self.judged.classes))
        best, right, strength = weights, -1, 0.0
        regression = Regression(rows[rest], labels[rest])
        for each in STRENGTHS:  # from the strongest penalty on, each begins where the one before ended
            weights = regression.fit(each, weights, ROUGH)
            found = int((logits(rows[held], weights).argmax(1) == labels[held]).sum())
            if found > right:
                best, right, strength = weights, found, each
        logger.info("logistic: C=%.3g", strength)
        weights = Regression(rows, labels).fit(strength, best)
        said = logits(judged.vectors[self._space].double(), weights)
        return Recognised(judged.index, self._labels[1][judged.index], said.cpu().numpy())


class Regression:
    """Logistic regression of some rows, for any strength of its penalty.

    L-BFGS works on the principal components of the rows, each scaled by what bounds the curvature of the loss along it
    (Boehning 1992, Ann. Inst. Stat. Math. 44): features whose means are far larger than their deviations, as those of
    untrained networks are, would need thousands of steps. The minimum is the same: the penalty knows no directions,
    and the intercept takes up the mean.

    Args:
        rows: (n, D) float64, features.
        labels: (n,) int64.
    """

    def __init__(self, rows: Tensor, labels: Tensor):
        self._mean = rows.mean(0)
        centred = rows - self._mean
        self._spread, self._axes = torch.linalg.eigh(centred.T @ centred / len(rows))  # (D,) variances, (D, D)
        self._rows, self._labels = centred @ self._axes, labels

    def fit(self, strength: float, start: Tensor, tolerance: float = TOLERANCE) -> Tensor:
        """Minimises strength * (sum of the cross-entropies) + (sum of the squared weights) / 2.

        The intercept goes free of the penalty.

        Args:
            strength: C, above 0.
            start: (D + 1, C) float64, where the search begins; the last row is the intercept.
            tolerance: of the gradient along the scaled axes; the search also ends after 1000 steps.
        Returns:
            (D + 1, C) float64.
        """
        curvature = 0.5 * self._spread.clamp_min(0) + 1 / (strength * len(self._rows))
        scale = torch.cat([curvature, curvature.new_tensor([0.5])]).rsqrt()[:, None]
        scaled = (torch.cat([self._axes.T @ start[:-1], start[-1:] + self._mean @ start[:-1]]) / scale).requires_grad_()
        search = torch.optim.LBFGS(
            [scaled],
            max_iter=ITERATIONS,
            max_eval=2 * ITERATIONS,
            tolerance_grad=tolerance,
            tolerance_change=0.0,
            history_size=HISTORY,
            line_search_fn="strong_wolfe",
        )

        def evaluate() -> Tensor:
            loss, gradient = objective(self._rows, self._labels, strength, scaled.detach() * scale)
            scaled.grad = gradient * scale
            return loss

        search.step(evaluate)
        found = scaled.detach() * scale
        weights = self._axes @ found[:-1]
        return torch.cat([weights, found[-1:] - self._mean @ weights])


def logits(rows: Tensor, weights: Tensor) -> Tensor:
    """(n, C) scores of (n, D) features; the last of the (D + 1, C) weights is the intercept."""
    return rows @ weights[:-1] + weights[-1]


def objective(rows: Tensor, labels: Tensor, strength: float, weights: Tensor) -> tuple[Tensor, Tensor]:
    """What a regression minimises, divided by strength * n, so that it is of the scale of a mean loss; its gradient."""
    penalty = 1 / (strength * len(rows))
    gradient = penalty * weights
    gradient[-1] = 0
    loss = penalty * weights[:-1].square().sum() / 2
    for part, truth in zip(rows.split(ROWS), labels.split(ROWS), strict=True):
        likelihood = logits(part, weights).log_softmax(1)
        loss = loss - likelihood.gather(1, truth[:, None]).sum() / len(rows)
        error = (likelihood.exp() - F.one_hot(truth, likelihood.shape[1])) / len(rows)
        gradient[:-1] += part.T @ error
        gradient[-1] += error.sum(0)
    return loss, gradient
