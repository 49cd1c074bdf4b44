"""Losses of learning without labels, and what tells whether the learning is sound.

Statistics and distances are taken in float32, or in float64 where that is what comes in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from synoptic.losses.precision import wide
from synoptic.types import ALONE, Group


def softened(logits: Tensor, temperature: float, centre: Tensor | float = 0.0) -> Tensor:
    """The teacher's targets: centring keeps any prototype from winning, sharpening keeps them from being uniform.

    Args:
        logits: (B, K).
        temperature: the lower, the sharper.
        centre: (1, K) running mean of teacher logits; 0 leaves centring out.
    Returns:
        (B, K) probabilities, detached.
    Source: DINO sec. 3.1 (arXiv 2104.14294).
    """
    return ((wide(logits.detach()) - centre) / temperature).softmax(dim=-1)


def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3, group: Group = ALONE) -> Tensor:
    """Targets that use all prototypes equally within the batch: centring by optimal transport.

    Args:
        logits: (B, K); B may differ between processes, and be 0.
        temperature: the lower, the sharper.
        iterations: alternating normalisations of prototypes and samples.
        group: the processes whose samples are balanced together.
    Returns:
        (B, K) probabilities, detached; each row sums to 1.
    Source: SwAV (arXiv 2006.09882, sec. 3.1); DINOv2 sec. 4 (arXiv 2304.07193), with three iterations.
    """
    logits = wide(logits.detach()) / temperature
    # In the log domain no sharp logit can overflow, and none so far below the others that it would vanish is lost.
    for _ in range(iterations):
        mass = group.gather(logits.logsumexp(dim=0, keepdim=True)).logsumexp(dim=0)
        logits = logits - mass  # each prototype has the same mass
        logits = logits - logits.logsumexp(dim=1, keepdim=True)  # each sample has the same mass
    return logits.exp()


def dino(student: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float = 0.1) -> Tensor:
    """Cross entropy between the teacher's view of one crop and the student's view of every other.

    Args:
        student: one (B, K) tensor of logits a crop; the first crops are those the teacher saw, in the same order.
        teacher: one (B, K) tensor of target probabilities a global crop.
        temperature: of the student.
    Returns:
        Scalar: the mean over all pairs of different crops and over the batch.
    Source: DINO eq. 3 (arXiv 2104.14294).
    """
    log_probabilities = [(wide(logits) / temperature).log_softmax(dim=-1) for logits in student]
    # Targets are constants, so the sum over the crops other than t is taken once: sum_{s != t} = sum_s - (s = t).
    total = sum(log_probabilities[1:], start=log_probabilities[0])
    pairs = len(teacher) * (len(student) - 1)
    seen_by_both = log_probabilities[: len(teacher)]
    losses = [-(target * (total - own)).sum(dim=-1).mean() for target, own in zip(teacher, seen_by_both, strict=True)]
    return torch.stack(losses).sum() / pairs


def patch_losses(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross entropy between the teacher's view of a patch and the student's view of the mask in its place.

    Args:
        student: (M, K) logits of the masked patches of all pictures.
        teacher: (M, K) target probabilities of the same patches, unmasked.
        temperature: of the student.
    Returns:
        (M,) in nats.
    """
    return -(teacher * (wide(student) / temperature).log_softmax(dim=-1)).sum(dim=-1)


def ibot(losses: Tensor, pictures: Tensor, total: int) -> Tensor:
    """What the losses of masked patches are together.

    Args:
        losses: (M,) see `patch_losses`.
        pictures: (M,) int64, the picture of each patch, from 0.
        total: number of pictures, those without a masked patch included.
    Returns:
        Scalar: the mean over the masked patches of each picture, then over all pictures, of which those without masks
        add nothing.
    Source: iBOT eq. 2 (arXiv 2111.07832); over all pictures as in the code of DINOv2 (arXiv 2304.07193).
    """
    masked = torch.zeros(total, dtype=losses.dtype, device=losses.device).index_add(
        0, pictures, torch.ones_like(losses)
    )
    return (losses / masked[pictures]).sum() / total


def koleo(summary: Tensor, eps: float = 1e-8, group: Group = ALONE) -> Tensor:
    """Kozachenko-Leonenko entropy regulariser: spreads a batch over the sphere.

    Args:
        summary: (B, C) embeddings of different images, any float dtype; computed in float32 at least, since the
            nearest-neighbour distance underflows in half precision. B is the same in all processes.
        eps: keeps the distance of equal embeddings above zero.
        group: the processes among whose images the nearest is sought.
    Returns:
        Scalar: the mean over the images of this process. Zero where there is one image alone, which has no neighbour.
    Source: Sablayrolles et al. 2019 (arXiv 1806.03198); DINOv2 sec. 4 (arXiv 2304.07193).
    """
    with torch.autocast(summary.device.type, enabled=False):
        points = F.normalize(wide(summary), dim=-1)
        others = group.gather(points)
        if len(others) < 2:
            return points.sum() * 0.0
        with torch.no_grad():
            similarity = points @ others.T
            own = torch.arange(len(points), device=points.device)
            similarity[own, own + group.rank * len(points)] = -torch.inf
            nearest = similarity.argmax(dim=1)
        distance = F.pairwise_distance(points, others[nearest], p=2.0, eps=eps)
        return -(distance + eps).log().mean()


def entropy(probabilities: Tensor) -> Tensor:
    """Mean entropy in nats of (B, K) probabilities: ln K when uniform, 0 when certain and where there are none."""
    return torch.special.entr(wide(probabilities)).sum() / max(len(probabilities), 1)


def agreement(one: Tensor, other: Tensor) -> Tensor:
    """Share of the rows (B, K) of two views that prefer the same prototype (iBOT's code logs it as `acc`)."""
    return (one.argmax(dim=-1) == other.argmax(dim=-1)).float().mean()
