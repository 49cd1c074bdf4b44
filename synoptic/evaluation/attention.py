"""Does the summary look at what stands in the foreground?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from synoptic.data.sources import Source
from synoptic.evaluation.dense import IGNORE, masks_of, read_masks
from synoptic.evaluation.features import check_finite, show
from synoptic.types import Attends, EncodesImages

MASS = 0.6  # of the attention: what is kept of a map (DINO sec. 4.2.2)


class AttentionOverlap:
    """Jaccard index of the last block's attention against foreground masks.

    Of what the summary token sees of the patches, each head's map is cut down to the patches that hold 60 % of its
    mass, and compared with the mask pixel by pixel; registers and the summary itself are left out of the maps. Models
    see whole pictures, squashed to their size (DINO: 480 pixels, so that a ViT/8 has 60 x 60 patches).

    Yields "attention_jaccard", the mean over the pictures of their best head, as in DINO's table: best by the mask
    itself, so more heads have more luck. And "attention_jaccard_mean", the mean over all heads.

    Args:
        judged: pictures with masks; classes from 1 are foreground, pixels of class 255 do not count. Pictures without
            foreground are left out.
        adaptor: of a student with a summary token a teacher, the teacher whose token is asked.
    Raises:
        ValueError: for pictures without masks, and masks without foreground.
    Source: Caron et al. 2021, sec. 4.2.2 and fig. 4 (arXiv 2104.14294), and the released script.
    """

    def __init__(self, judged: Source, adaptor: str | None = None):
        masks_of(judged)
        self.judged, self.adaptor = judged, adaptor

    def run(self, model: EncodesImages) -> Iterator[tuple[str, float]]:
        if not (isinstance(model, Attends) and model.attends):  # here, before any picture is read
            raise ValueError("on=attention: the model is no Vision Transformer with a summary token")
        return self._scores(model)

    def _scores(self, model: Attends) -> Iterator[tuple[str, float]]:
        found = np.stack(list(self._pictures(model)))  # (n, heads)
        suffix = f"_{self.adaptor}" if self.adaptor else ""
        yield f"attention_jaccard{suffix}", float(found.max(1).mean())
        yield f"attention_jaccard_mean{suffix}", float(found.mean())

    def _pictures(self, model: Attends) -> Iterator[np.ndarray]:
        """(heads,) for each picture that has a foreground."""
        any_shown = False
        for batch in show(model.preprocess, self.judged, mode="squash"):
            maps = model.attention(batch.images, adaptor=self.adaptor)
            check_finite(maps, batch.index, self.judged)
            for heads, mask in zip(maps, read_masks(self.judged, batch), strict=True):
                if ((mask > 0) & (mask != IGNORE)).any():
                    any_shown = True
                    yield jaccard(kept(heads).cpu().numpy(), mask)
        if not any_shown:
            raise ValueError(f"{masks_of(self.judged)[0].parent}: no mask has a foreground, a class from 1 to 254")


def kept(maps: Tensor, mass: float = MASS) -> Tensor:
    """The patches of largest attention that hold a share of it.

    Args:
        maps: (heads, h, w), each with a sum above 0.
        mass: the share; the fewest patches that hold it are kept.
    Returns:
        (heads, h, w) bool.
    """
    flat = maps.double().flatten(1)
    values, order = (flat / flat.sum(1, keepdim=True)).sort(dim=1, stable=True)
    beyond = values.cumsum(1) > 1 - mass  # what lies below holds less than is to be left out
    return torch.zeros_like(beyond).scatter(1, order, beyond).view_as(maps)


def jaccard(maps: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Intersection over union of maps of patches with the foreground of a mask, in the mask's pixels.

    Args:
        maps: (heads, h, w) bool.
        mask: (H, W) int64, foreground from 1; pixels of class 255 do not count. It has some foreground.
    Returns:
        (heads,) float64.
    """
    (height, width), (_, rows, columns) = mask.shape, maps.shape
    row, column = np.arange(height) * rows // height, np.arange(width) * columns // width
    known = mask != IGNORE
    truth = (mask > 0) & known
    said = maps[:, row[:, None], column] & known
    return (said & truth).sum((1, 2)) / (said | truth).sum((1, 2))
