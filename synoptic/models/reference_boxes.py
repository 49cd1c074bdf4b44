"""Boxes in numbers as a decoder reads and refines them: where they begin, their logits, and the sines that say where
they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from synoptic.models.deform_attn import Shape
from synoptic.models.pyramid import sines

_NEVER = 1e-2  # an object's centre and sides lie at least so far from 0 and 1 to be proposed (Deformable DETR's code)


def centres(shapes: Sequence[Shape], like: Tensor) -> Tensor:
    """(N, 2) x and y in [0, 1] of the cells of some levels, in the type of `like`, float32 at least."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    found = []
    for shape in shapes:
        down, across = ((torch.arange(side, device=like.device, dtype=dtype) + 0.5) / side for side in shape)
        found.append(
            torch.stack((across.expand(len(down), -1), down[:, None].expand(-1, len(across))), -1).flatten(0, 1)
        )
    return torch.cat(found)


def proposed(shapes: Sequence[Shape], like: Tensor) -> Tensor:
    """(N, 4) boxes as logits, one in each cell, a twentieth of the picture wide in the finest level and twice as wide
    in each coarser one; infinite where one comes too near to the border.

    Source: Deformable DETR, appendix A.4 (arXiv 2010.04159), and its code.
    """
    places = centres(shapes, like)
    counts = torch.tensor([height * width for height, width in shapes], device=like.device)
    sides = (0.05 * 2 ** torch.arange(len(shapes), device=like.device, dtype=places.dtype)).repeat_interleave(counts)
    boxes = torch.cat((places, sides[:, None].expand(-1, 2)), -1)
    inside = ((boxes > _NEVER) & (boxes < 1 - _NEVER)).all(-1, keepdim=True)
    return boxes.logit().masked_fill(~inside, math.inf)


def box_sines(boxes: Tensor, width: int) -> Tensor:
    """(Q, 4 * width), sines of (Q, 4) boxes cx, cy, w, h, of cy first (DAB-DETR, arXiv 2201.12329, sec. 4)."""
    return sines(boxes[:, [1, 0, 2, 3]], width).flatten(1)


def inverse_sigmoid(shares: Tensor, eps: float) -> Tensor:
    """Logits of numbers in [0, 1], which are taken to lie no nearer than eps to either end (Deformable DETR's code)."""
    return (shares.clamp(min=eps) / (1 - shares).clamp(min=eps)).log()
