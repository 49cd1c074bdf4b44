"""Losses that bring pictures and their captions together, over the batches of several processes.

Each process holds its part of a batch, B of the N = B * group.size pairs. What it returns, averaged over all processes,
is the loss of the whole batch, and so are the gradients once they are averaged.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from synoptic.losses.precision import wide
from synoptic.types import ALONE, Group

Gathering = Literal["whole", "local", "detached"]

CHUNK = 4096  # captions whose similarities are held at once by the sigmoid loss


def clip(
    images: Tensor, texts: Tensor, logit_scale: Tensor, group: Group = ALONE, gathering: Gathering = "local"
) -> Tensor:
    """Symmetric cross entropy: each picture must pick its caption out of the batch, and each caption its picture.

    Args:
        images: (B, C) embeddings, normalised here.
        texts: (B, C) embeddings of the captions in the same order.
        logit_scale: scalar, logarithm of the inverse temperature.
        group: the processes among which a batch is shared.
        gathering: "local" compares the own pairs with all, in B * N similarities; "whole" all with all, in N * N;
            "detached" does that too, and sends no gradients between the processes.
    Returns:
        Scalar float32, float64 for such embeddings; ln N for embeddings that know nothing.
    Source: CLIP fig. 3 (arXiv 2103.00020).
    """
    with torch.autocast(images.device.type, enabled=False):
        images, texts, scale = _unit(images), _unit(texts), wide(logit_scale).exp()
        pairs = _pairs(images, texts, group, gathering)
        target = torch.arange(len(pairs[0]), device=images.device)
        if gathering == "local":
            target = target + group.rank * len(images)
        losses = [F.cross_entropy(scale * one @ others.T, target) for one, others in zip(*_sides(*pairs), strict=True)]
        return torch.stack(losses).mean()


def distillation(
    images: Tensor,
    texts: Tensor,
    logit_scale: Tensor,
    teacher_images: Tensor,
    teacher_texts: Tensor,
    teacher_scale: Tensor,
    group: Group = ALONE,
) -> Tensor:
    """How far a student's choices among the captions (and pictures) of a batch are from those of a teacher.

    Args:
        images, texts: (B, C) of the student, normalised here.
        logit_scale: of the student, see `clip`.
        teacher_images, teacher_texts: (B, C') of the teacher, of the same pairs.
        teacher_scale: of the teacher.
        group: the processes among which a batch is shared.
    Returns:
        Scalar: the cross entropy of the student with the teacher's choices, the mean of both ways.
    Source: `DistillClipLoss` of open_clip (github.com/mlfoundations/open_clip, src/open_clip/loss.py).
    """
    with torch.autocast(images.device.type, enabled=False):
        student = _sides(*_pairs(_unit(images), _unit(texts), group, "local"))
        with torch.no_grad():
            teacher = _sides(*_pairs(_unit(teacher_images), _unit(teacher_texts), group, "local"))
        scale, sharp = wide(logit_scale).exp(), wide(teacher_scale).exp()
        losses = []
        for mine, all_mine, theirs, all_theirs in zip(*student, *teacher, strict=True):
            wanted = (sharp * theirs @ all_theirs.T).softmax(dim=1)
            losses.append(-(wanted * (scale * mine @ all_mine.T).log_softmax(dim=1)).sum(dim=1).mean())
        return torch.stack(losses).mean()


def siglip(
    images: Tensor, texts: Tensor, logit_scale: Tensor, logit_bias: Tensor, group: Group = ALONE, chunk: int = CHUNK
) -> Tensor:
    """Each picture with each caption of the batch, told by itself whether the two belong together.

    The similarities of the own pictures with `chunk` captions at a time are held, and found anew for the gradient:
    memory grows with the batch, and not with its square.

    Args:
        images, texts: (B, C) embeddings, normalised here.
        logit_scale: scalar, logarithm of the inverse temperature.
        logit_bias: scalar that is added to scaled similarities.
        group: the processes among which a batch is shared.
        chunk: captions.
    Returns:
        Scalar: the sum over all pairs over the number of pictures.
    Source: SigLIP eq. 1 and algorithm 1 (arXiv 2303.15343).
    """
    with torch.autocast(images.device.type, enabled=False):
        images, texts = _unit(images), group.gather(_unit(texts))
        own = torch.arange(len(images), device=images.device) + group.rank * len(images)
        total = images.new_zeros(())
        for start in range(0, len(texts), chunk):
            part = texts[start : start + chunk]
            total = total + checkpoint(
                _sigmoid_losses, images, part, wide(logit_scale), wide(logit_bias), own - start, use_reentrant=False
            )
        return total / len(images)


def _sigmoid_losses(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, own: Tensor) -> Tensor:
    """The sum over all pairs; `own` tells which caption of these belongs to each picture, if any does."""
    logits = scale.exp() * images @ texts.T + bias
    here = (own >= 0) & (own < len(texts))
    signs = torch.full_like(logits, -1.0)
    signs[here.nonzero()[:, 0], own[here]] = 1.0
    return -F.logsigmoid(signs * logits).sum()


def _pairs(images: Tensor, texts: Tensor, group: Group, gathering: Gathering) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures, captions, and those that each of them is compared with."""
    if gathering == "detached":
        images, texts = _among_all(images, group), _among_all(texts, group)
        return images, texts, images, texts
    all_images, all_texts = group.gather(images), group.gather(texts)
    if gathering == "whole":
        return all_images, all_texts, all_images, all_texts
    return images, texts, all_images, all_texts


def _sides(
    images: Tensor, texts: Tensor, all_images: Tensor, all_texts: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return (images, texts), (all_texts, all_images)


def _among_all(own: Tensor, group: Group) -> Tensor:
    """The embeddings of all processes, of which this one's alone have gradients, so many times as large as there are
    processes, since averaging them will divide by that."""
    with torch.no_grad():
        parts = list(group.gather(own).split(len(own)))
    parts[group.rank] = own * group.size - (own * (group.size - 1)).detach()
    return torch.cat(parts)


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(wide(vectors), dim=-1)
