"""How many dimensions a model's embeddings use: a measure of learning that needs no labels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from synoptic.data.sources import Source
from synoptic.evaluation.features import Space, embed
from synoptic.types import EncodesImages


def rankme(embeddings: Tensor) -> float:
    """How many dimensions embeddings really use: the exponential of the entropy of their singular values.

    Args:
        embeddings: (n, C), of as many pictures as possible.
    Returns:
        From 1 (all on a line) to min(n, C).
    Source: Garrido et al. 2023, "RankMe", eq. 2 (arXiv 2210.02885).
    """
    values = torch.linalg.svdvals(embeddings.double())
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())


class RankMe:
    """Yields "rankme", the effective rank of the embeddings of some pictures; no fraction, but a count from 1.

    Args:
        source: the pictures; their number bounds the score.
    """

    def __init__(self, source: Source):
        self.source = source

    def run(self, model: EncodesImages) -> Iterator[tuple[str, float]]:
        space = Space()
        yield "rankme", rankme(embed(model, self.source, (space,)).vectors[space])
