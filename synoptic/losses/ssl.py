"""Losses of learning without labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sharpened(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's targets: centring keeps any prototype from winning, sharpening keeps them from being uniform.

    Args:
        logits: (B, K), computed further in float32.
        centre: (1, K) running mean of teacher logits.
        temperature: the lower, the sharper.
    Returns:
        (B, K) float32 probabilities, detached.
    Source: DINO sec. 3.1 (arXiv 2104.14294).
    """
    return ((logits.detach().float() - centre) / temperature).softmax(dim=-1)


def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Targets that use all prototypes equally within the batch: centring by optimal transport.

    Args:
        logits: (B, K), computed further in float32.
        temperature: the lower, the sharper.
        iterations: alternating normalisations of prototypes and samples.
    Returns:
        (B, K) float32 probabilities, detached; each row sums to 1.
    Source: SwAV (arXiv 2006.09882, sec. 3.1); DINOv2 sec. 4 (arXiv 2304.07193), with three iterations.
    """
    logits = logits.detach().float() / temperature
    # In the log domain no sharp logit can overflow.
    for _ in range(iterations):
        logits = logits - logits.logsumexp(dim=0, keepdim=True)  # each prototype has the same mass
        logits = logits - logits.logsumexp(dim=1, keepdim=True)  # each sample has the same mass
    return logits.exp()


def dino(student: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float = 0.1) -> Tensor:
    """Cross entropy between the teacher's view of one crop and the student's view of every other.

    Args:
        student: one (B, K) tensor of logits a crop; the first crops are those the teacher saw, in the same order.
        teacher: one (B, K) float32 tensor of target probabilities a global crop.
        temperature: of the student.
    Returns:
        Scalar float32: the mean over all pairs of different crops and over the batch.
    Source: DINO eq. 3 (arXiv 2104.14294).
    """
    log_probabilities = [(logits.float() / temperature).log_softmax(dim=-1) for logits in student]
    # Targets are constants, so the sum over the crops other than t is taken once: sum_{s != t} = sum_s - (s = t).
    total = torch.stack(log_probabilities).sum(dim=0)
    pairs = len(teacher) * (len(student) - 1)
    seen_by_both = log_probabilities[: len(teacher)]
    losses = [-(target * (total - own)).sum(dim=-1).mean() for target, own in zip(teacher, seen_by_both, strict=True)]
    return torch.stack(losses).sum() / pairs


def entropy(probabilities: Tensor) -> Tensor:
    """Mean entropy in nats of (B, K) probabilities: ln K when uniform, 0 when certain."""
    return torch.special.entr(probabilities.float()).sum(dim=-1).mean()


def koleo(summary: Tensor, eps: float = 1e-8) -> Tensor:
    """Kozachenko-Leonenko entropy regulariser: spreads a batch over the sphere.

    Args:
        summary: (B, C) embeddings of different images, any float dtype; computed in float32, since the
            nearest-neighbour distance underflows in half precision.
    Returns:
        Scalar float32. Zero for B < 2, where no neighbour exists.
    Source: Sablayrolles et al. 2019 (arXiv 1806.03198); DINOv2 sec. 4 (arXiv 2304.07193).
    """
    if len(summary) < 2:
        return summary.float().sum() * 0.0
    with torch.autocast(summary.device.type, enabled=False):
        points = F.normalize(summary.float(), dim=-1)
        with torch.no_grad():
            similarity = points @ points.T
            nearest = similarity.fill_diagonal_(-1.0).argmax(dim=1)
        distance = F.pairwise_distance(points, points[nearest], p=2.0, eps=eps)
        return -(distance + eps).log().mean()
