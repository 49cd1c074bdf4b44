"""Do pictures of one class lie beside each other? Every picture looks for its like among the others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from synoptic.data.sources import Source
from synoptic.evaluation.features import Embeddings, Space
from synoptic.evaluation.recognition import Recogniser, labels_of

SIMILARITIES = 1 << 22  # ranked together, in some 150 MB


class Retrieval(Recogniser):
    """Nearest-neighbour retrieval among pictures with classes: each asks all others, those of its class are relevant.

    Yields "retrieval_map", the mean over the pictures of their average precision, and "retrieval_p1", the share of
    them whose nearest neighbour is of their class. Pictures that are alone in their class ask for nothing.

    Args:
        judged: labelled pictures.
        adaptor: judges a student's answer in the space of this teacher.
    Raises:
        ValueError: where labels are missing, or no class has two pictures.
    """

    def __init__(self, judged: Source, adaptor: str | None = None):
        self._labels = labels_of(judged)
        if np.bincount(self._labels).max() < 2:
            raise ValueError(f"{judged.root}: no class has two pictures, of which one could find the other")
        self._space = Space(adaptor)
        self.sources, self.spaces = (judged,), (self._space,)

    def scores(self, *seen: Embeddings) -> Iterator[tuple[str, float]]:
        (embeddings,) = seen
        precision, first = ranked(embeddings.vectors[self._space], self._labels[embeddings.index])
        yield f"retrieval_map{self._space.suffix}", float(precision.mean())
        yield f"retrieval_p1{self._space.suffix}", float(first.mean())


def ranked(vectors: Tensor, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How well each picture finds the others of its class, ranked by cosine, of equally near ones the first first.

    The average precision is the mean, over the relevant pictures, of the share of relevant ones down to their rank.

    Args:
        vectors: (N, C) float32, L2-normalised.
        labels: (N,) int64.
    Returns:
        (Q,) float64 average precision and (Q,) bool whether the nearest is relevant, of pictures not alone in a class.
    """
    classes = torch.from_numpy(labels).to(vectors.device)
    places = torch.arange(len(vectors), device=vectors.device)
    ranks = torch.arange(1, len(vectors), device=vectors.device, dtype=torch.float64)
    precisions, firsts = [], []
    for part in places.split(max(1, SIMILARITIES // len(vectors))):
        similar = vectors[part] @ vectors.T
        similar[torch.arange(len(part), device=part.device), part] = -torch.inf  # last, and then left out
        order = similar.argsort(dim=1, descending=True, stable=True)[:, :-1]
        relevant = (classes[order] == classes[part][:, None]).double()
        count = relevant.sum(1)
        precision = (relevant * relevant.cumsum(1) / ranks).sum(1) / count.clamp_min(1)
        precisions.append(precision[count > 0].cpu())
        firsts.append(relevant[count > 0, 0].bool().cpu())
    return torch.cat(precisions).numpy(), torch.cat(firsts).numpy()
