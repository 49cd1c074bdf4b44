"""Do pictures find their captions, and captions their picture? The retrieval by which CLIP is judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import torch

from synoptic.data.sources import Source
from synoptic.evaluation.features import Space, embed
from synoptic.evaluation.intervals import interval
from synoptic.evaluation.recognition import nearest
from synoptic.types import EncodesText, Speaks

WITHIN = (1, 5, 10)  # ranks for which recall is published


@dataclass(frozen=True)
class Retrieved:
    """Pictures and captions with what each found among the others, the nearest first.

    Attributes:
        index: (n,) int64, where the pictures stand in their source.
        texts: m captions.
        owner: (m,) int64, the picture of each caption, by its place in `index`.
        captions: (n, k) int64, the captions that each picture found.
        pictures: (m, k) int64, the pictures that each caption found, by their place in `index`.
    """

    index: np.ndarray
    texts: Sequence[str]
    owner: np.ndarray
    captions: np.ndarray
    pictures: np.ndarray

    def recall(self, k: int) -> tuple[float, float]:
        """The share of the pictures of which a caption is among the k nearest, and of the captions whose picture is."""
        found = (self.owner[self.captions[:, :k]] == np.arange(len(self.index))[:, None]).any(1)
        return float(found.mean()), float((self.pictures[:, :k] == self.owner[:, None]).any(1).mean())

    def chance(self, k: int) -> tuple[float, float]:
        """The same of a model that knows nothing, expected."""
        pictures, captions = len(self.index), len(self.texts)
        drawn = min(k, captions)
        missed = [comb(captions - own, drawn) / comb(captions, drawn) for own in np.bincount(self.owner).tolist()]
        return 1 - float(np.mean(missed)), min(k / pictures, 1.0)


class CaptionRetrieval:
    """Retrieval between pictures and captions, both ways.

    Yields for k of 1, 5 and 10 "image_to_text_rk", the share of the pictures that have one of their captions among the
    k nearest of all, and "text_to_image_rk", the share of the captions that have their picture among the k nearest.
    With `bounds`, behind each the ends of its 95 % interval as "..._low" and "..._high", and what guessing gives as
    "..._chance"; without, at the end "r_mean", the mean of the six, by which a checkpoint is chosen as in the released
    code of ALBEF (Li et al. 2021, arXiv 2107.07651). The interval is Wilson's for as many trials as there are pictures,
    since the captions of a picture are found or missed together. It takes the pictures to choose from as given.

    Args:
        source: pictures, of which those with captions count.
        adaptor: of a student, the teacher whose words are used; needed where several know words.
        bounds: see above.
        optional: whether a model that knows no words in that space is passed over.
    Raises:
        ValueError: fewer than two pictures have captions.
    Source: the protocol of Karpathy & Fei-Fei 2015 (arXiv 1412.2306), by which CLIP is judged, too.
    """

    def __init__(self, source: Source, adaptor: str | None = None, *, bounds: bool = True, optional: bool = False):
        self.source, self.adaptor, self.bounds, self.optional = source, adaptor, bounds, optional
        self._asked = [place for place, texts in enumerate(source.captions) if texts]
        if len(self._asked) < 2:
            captioned = f"{len(self._asked)} of its {len(source)} pictures have captions"
            raise ValueError(f"{source.root}: {captioned}, and retrieval needs two")

    def run(self, model: EncodesText) -> Iterator[tuple[str, float]]:
        if self.optional and not (isinstance(model, Speaks) and model.speaks(self.adaptor)):
            return
        found = self.judge(model)
        shares = []
        for k in WITHIN:
            for way, share, guessed in zip(
                ("image_to_text", "text_to_image"), found.recall(k), found.chance(k), strict=True
            ):
                shares.append(share)
                yield f"{way}_r{k}", share
                if self.bounds:
                    low, high = interval(share, len(found.index))
                    yield f"{way}_r{k}_low", low
                    yield f"{way}_r{k}_high", high
                    yield f"{way}_r{k}_chance", guessed
        if not self.bounds:
            yield "r_mean", float(np.mean(shares))

    def judge(self, model: EncodesText) -> Retrieved:
        """What each picture and each caption found; of equally near ones the first come first."""
        space = Space(self.adaptor or model.text_space)
        seen = embed(model, self.source, (space,), self._asked)
        owned = [(place, text) for place, index in enumerate(seen.index) for text in self.source.captions[index]]
        texts = [text for _, text in owned]
        words = torch.as_tensor(model.encode_text(texts, space.adaptor))
        pictures = seen.vectors[space].cpu()
        most = max(WITHIN)
        return Retrieved(
            seen.index,
            texts,
            np.array([place for place, _ in owned], np.int64),
            nearest(words, pictures, most).index,
            nearest(pictures, words, most).index,
        )
