"""What is where in the picture, by words alone: each pixel is what the patches around it are likest to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from synoptic.data.sources import Source
from synoptic.evaluation.dense import IGNORE, Confusion, count_pixels, masks_of, read_masks, segment, tally
from synoptic.evaluation.features import check_finite, show
from synoptic.types import EncodesText, Features, LocatesWords
from synoptic.zeroshot import class_embeddings

NEVER = -2.0  # below any cosine


class ZeroShotSegmentation:
    """Segmentation by words: every patch is compared with the prompts of all classes.

    Patches are those in the space of words (MaskCLIP); a class is the mean direction of its prompts, as in zero-shot
    classification; the cosines of the patches are resized bilinearly to the resolution of the mask, and the highest one
    decides. Models see whole pictures, squashed to their size, so that every pixel is judged.

    Yields "zeroshot_segmentation_miou", the mean intersection over union of all classes that occur in the masks or in
    the answers. Where one of them is the background, it is among these, asked for in words like the others, though no
    word says well what all the rest has in common; so "zeroshot_segmentation_miou_foreground" is besides the same of
    the other classes alone, with these to choose from and without the pixels of the background.

    Args:
        source: pictures with masks.
        prompts: for each class one or more, in the order of the classes' numbers in the masks.
        adaptor: of a student, the teacher whose words are used; needed where several know words.
        background: the class that stands for all the rest; None where there is none.
    Raises:
        ValueError: for pictures without masks, masks that are none, or classes in them that have no prompts.
    Source: Zhou et al. 2022 (arXiv 2112.01071), sec. 3.2, without their refinement.
    """

    def __init__(
        self,
        source: Source,
        prompts: Sequence[Sequence[str]],
        adaptor: str | None = None,
        background: int | None = None,
    ):
        self.source, self.prompts, self.adaptor, self.background = source, list(prompts), adaptor, background
        highest = int(np.flatnonzero(count_pixels(source)).max())
        if highest >= len(self.prompts):
            folder = masks_of(source)[0].parent
            raise ValueError(f"{folder}: its masks hold class {highest}, and {len(self.prompts)} classes have names")

    def run(self, model: EncodesText) -> Iterator[tuple[str, float]]:
        if not isinstance(model, LocatesWords):
            raise ValueError("on=zeroshot_segmentation: the model's patches lie in no space with words; take a CLIP")
        return self._scores(model, self.classes(model))  # here, before any picture is read

    def classes(self, model: EncodesText) -> Tensor:
        """(C, D) float32, the direction of each class.

        Raises:
            ValueError: the model knows no words, or knows them in several spaces.
        """
        adaptor = self.adaptor or model.text_space
        return class_embeddings(lambda texts: model.encode_text(texts, adaptor), self.prompts)

    def _scores(self, model: LocatesWords, classes: Tensor) -> Iterator[tuple[str, float]]:
        every, foreground = self.judge(model, classes)
        yield "zeroshot_segmentation_miou", every.miou
        if foreground is not None:
            yield "zeroshot_segmentation_miou_foreground", foreground.miou

    def judge(self, model: LocatesWords, classes: Tensor) -> tuple[Confusion, Confusion | None]:
        """What words make of the pictures, and the same among the classes beside the background, where it has one."""
        every, foreground = (np.zeros((len(classes), len(classes)), np.int64) for _ in range(2))
        for batch in show(model.preprocess, self.source, mode="squash"):
            features = model.encode_patches(batch.images, self.adaptor)
            check_finite(features.patches, batch.index, self.source)
            for logits, mask in zip(similarities(features, classes), read_masks(self.source, batch), strict=True):
                tally(every, mask, segment(logits, mask.shape))
                if self.background is not None:
                    named = np.where(mask == self.background, IGNORE, mask)
                    tally(foreground, named, segment(without(logits, self.background), mask.shape))
        has_foreground = self.background is not None and foreground.any()
        return Confusion(every), Confusion(foreground) if has_foreground else None


def similarities(features: Features, classes: Tensor) -> Tensor:
    """(B, C, h, w) float32 on the CPU, cosines of patches of unit length to (C, D) classes."""
    return (features.patches.cpu() @ classes.T).transpose(1, 2).unflatten(2, features.grid)


def without(logits: Tensor, background: int) -> Tensor:
    """(C, h, w) cosines of which the background's is never the highest."""
    logits = logits.clone()
    logits[background] = NEVER
    return logits
