"""What is in the picture, by a linear classifier of frozen features: the grid of DINOv2, all of its heads at once."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from synoptic.data.sources import Source
from synoptic.evaluation.features import Embeddings, Space
from synoptic.evaluation.recognition import Recognised, Recogniser, labels_of_both, set_apart

logger = logging.getLogger(__name__)

# DINOv2, app. B.3, and the released script; the rates are those of 256 pictures a step.
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
BLOCKS = 4  # the last ones, of which a head reads all or one
BATCH = 128
MOMENTUM = 0.9
DEVIATION = 0.01  # of the first weights
STEPS = (1250, 12500)  # one to ten of its epochs, in between as many as it takes to see every picture PASSES times
PASSES = 100

MOST_PICTURES = 200_000  # to learn from: six vectors of 1024 channels of each are 5 GB


@dataclass(frozen=True)
class Head:
    """How a linear classifier is trained.

    Attributes:
        rate: learning rate for 256 pictures a step.
        blocks: how many of the last blocks' summaries it reads.
        mean_patch: whether it reads the mean of the last block's patches as well.
    """

    rate: float
    blocks: int
    mean_patch: bool


class Linear(Recogniser):
    """Linear probe of frozen features, by the grid of DINOv2.

    52 heads, of 13 learning rates, read the summary of the last block or of the last four, with or without the mean
    patch. All are trained at once by SGD (momentum 0.9, no weight decay, cosine to zero, batches of 128) on features
    that are computed once, so without augmentation, which the paper has. The paper takes 12,500 steps whatever the
    data; here it is as many as see every training picture 100 times, from 1,250 to 12,500. A tenth of the training
    pictures, drawn by the seed, is set apart to choose the head, which is then trained anew on all: the judged pictures
    decide nothing. (The paper reports the head that is best on the very pictures that it is judged by, which is
    optimistic.)

    A model of fewer blocks is read in as many as it has; one without a summary by its mean patches. Of more than
    200,000 training pictures that many are used, evenly drawn, which bounds the memory (5 GB for a ViT-L).

    Yields "linear": the share of the judged pictures whose class scores highest; with more than five classes also
    "linear_top5".

    Args:
        train: labelled pictures to learn from.
        judged: labelled pictures to judge by, of the same classes.
        adaptor: judges a student's answer in the space of this teacher, which has no blocks.
        seed: of the first weights, the order of the pictures, and those set apart.
    Raises:
        ValueError: where labels are missing, or classes differ.
    Source: Oquab et al. 2023, sec. 7.1 and app. B.3 (arXiv 2304.07193).
    """

    def __init__(self, train: Source, judged: Source, adaptor: str | None = None, seed: int = 0):
        if len(train) > MOST_PICTURES:
            logger.warning("linear: learns from %d of the %d training pictures", MOST_PICTURES, len(train))
        self.train, self.judged, self.seed = train.sample(MOST_PICTURES), judged, seed
        self._labels = labels_of_both(self.train, judged)
        self._suffix = Space(adaptor).suffix
        self._answer = Space(adaptor, unit=False)
        self._patches = Space(adaptor, "patches", unit=False)
        self._blocks = [Space(block=block, unit=False) for block in range(-BLOCKS, 0) if adaptor is None]
        self.sources, self.spaces = (self.train, judged), (self._answer, self._patches, *self._blocks)

    def scores(self, *seen: Embeddings) -> Iterator[tuple[str, float]]:
        recognised = self.judge(*seen)
        yield f"linear{self._suffix}", recognised.accuracy()
        if len(self.judged.classes) > 5:
            yield f"linear_top5{self._suffix}", recognised.accuracy(within=5)

    def judge(self, train: Embeddings, judged: Embeddings) -> Recognised:
        """Every judged picture with its scores, from the vectors of both parts."""
        parts = self._parts(train)
        widths, rows = [part.shape[1] for part in parts], torch.cat(parts, 1)
        labels, truth = self._labels[0][train.index], self._labels[1][judged.index]
        classes = torch.from_numpy(labels).to(rows.device)
        head = self._choose(rows, classes, widths)
        logger.info("linear: %s", head)
        classifier = self._fit(rows, classes, widths, [head])
        return Recognised(judged.index, truth, classifier.logits(torch.cat(self._parts(judged), 1))[:, 0].cpu().numpy())

    def _parts(self, embeddings: Embeddings) -> list[Tensor]:
        """(n, .) summaries of the last blocks, the last one last, and the mean patch."""
        blocks = [embeddings.vectors[space] for space in self._blocks if space in embeddings.vectors]
        return [*(blocks or [embeddings.vectors[self._answer]]), embeddings.vectors[self._patches]]

    def _choose(self, rows: Tensor, labels: Tensor, widths: Sequence[int]) -> Head:
        """The head that is right most often on pictures set apart; of equally good ones that of the lowest loss."""
        held, rest = (torch.from_numpy(part).to(rows.device) for part in set_apart(len(rows), self.seed))
        few_and_many = sorted({1, len(widths) - 1})
        heads = [Head(*each) for each in product(RATES, few_and_many, (False, True))]
        classifiers = self._fit(rows[rest], labels[rest], widths, heads)
        right = torch.zeros(len(heads), dtype=torch.int64)
        loss = torch.zeros(len(heads), dtype=torch.float64)
        for part, truth in zip(rows[held].split(BATCH), labels[held].split(BATCH), strict=True):
            logits, asked = classifiers.logits(part), truth[:, None].expand(-1, len(heads))
            right += (logits.argmax(2) == asked).sum(0).cpu()
            loss += F.cross_entropy(logits.transpose(1, 2), asked, reduction="none").double().sum(0).cpu()
        return max(zip(right.tolist(), (-loss).tolist(), heads, strict=True), key=lambda each: each[:2])[2]

    def _fit(self, rows: Tensor, labels: Tensor, widths: Sequence[int], heads: Sequence[Head]) -> Classifiers:
        reads = torch.stack([_reads(head, widths) for head in heads], 1).to(rows)
        return fit(rows, labels, len(self.judged.classes), reads, [head.rate for head in heads], self.seed)


@dataclass(frozen=True)
class Classifiers:
    """H linear classifiers of the same features.

    Attributes:
        weight: (F, H, C) float32; 0 for features that a classifier does not read.
        bias: (H, C) float32.
    """

    weight: Tensor
    bias: Tensor

    def logits(self, rows: Tensor) -> Tensor:
        """(n, H, C) scores of (n, F) features, in one matrix product."""
        return (rows @ self.weight.flatten(1)).unflatten(1, self.bias.shape) + self.bias


def fit(rows: Tensor, labels: Tensor, classes: int, reads: Tensor, rates: Sequence[float], seed: int) -> Classifiers:
    """Trains H linear classifiers side by side, each as if it were alone.

    Args:
        rows: (n, F) float32, features.
        labels: (n,) int64 below `classes`.
        classes: how many there are.
        reads: (F, H) float32, 1 where a classifier reads a feature, else 0.
        rates: H learning rates for 256 rows a step.
        seed: of the first weights, which are those of all classifiers, and of the order of the rows.
    """
    generator = torch.Generator().manual_seed(seed)
    first = DEVIATION * torch.randn(rows.shape[1], 1, classes, generator=generator)
    weight = first.to(rows) * reads[:, :, None]  # (F, H, C)
    bias = weight.new_zeros(len(rates), classes)
    velocities = torch.zeros_like(weight), torch.zeros_like(bias)
    steps, batch = _steps(len(rows)), min(BATCH, len(rows))
    highest = rows.new_tensor(rates) * batch / 256
    for step, chosen in enumerate(_batches(len(rows), batch, steps, generator)):
        rate = highest * 0.5 * (1 + math.cos(math.pi * step / steps))
        part, truth = rows[chosen.to(rows.device)], labels[chosen.to(rows.device)]
        logits = Classifiers(weight, bias).logits(part)
        # The gradient of the mean cross-entropy by the logits.
        error = (logits.softmax(2) - F.one_hot(truth, classes)[:, None]) / batch
        gradients = (part.T @ error.flatten(1)).view_as(weight) * reads[:, :, None], error.sum(0)
        for value, velocity, gradient in zip((weight, bias), velocities, gradients, strict=True):
            velocity.mul_(MOMENTUM).add_(gradient)
            value.addcmul_(velocity, rate[:, None], value=-1)
    return Classifiers(weight, bias)


def _steps(count: int) -> int:
    low, high = STEPS
    return min(max(math.ceil(PASSES * count / BATCH), low), high)


def _batches(count: int, batch: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """(batch,) rows for each step; none comes again before all have come."""
    passes = math.ceil(steps * batch / count)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])
    return iter(order[: steps * batch].split(batch))


def _reads(head: Head, widths: Sequence[int]) -> Tensor:
    """(F,) bool, which features a head reads; `widths` are those of the blocks' summaries and of the mean patch."""
    *blocks, _ = widths
    skipped = len(blocks) - head.blocks
    wanted = [place >= skipped for place in range(len(blocks))] + [head.mean_patch]
    return torch.cat([torch.full((width,), flag) for width, flag in zip(widths, wanted, strict=True)])
