"""Losses that bring pictures and their captions together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clip(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross entropy: each picture must pick its caption out of the batch, and each caption its picture.

    Args:
        images: (B, C) embeddings, normalised here.
        texts: (B, C) embeddings of the captions in the same order.
        logit_scale: scalar, logarithm of the inverse temperature.
    Returns:
        Scalar float32; ln B for embeddings that know nothing.
    Source: CLIP fig. 3 (arXiv 2103.00020).
    """
    with torch.autocast(images.device.type, enabled=False):
        images, texts = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
        logits = logit_scale.float().exp() * images @ texts.T  # (B, B)
        target = torch.arange(len(images), device=images.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
