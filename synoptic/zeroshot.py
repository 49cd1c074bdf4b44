"""Classification by words alone: each class is a direction, found from sentences about it.

Source: CLIP, Radford et al. 2021 (arXiv 2103.00020), sec. 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 4096  # prompts whose embeddings are in memory at once


@dataclass(frozen=True)
class ZeroShotHead:
    """A classifier of embeddings, made of words.

    Attributes:
        labels: names of the classes.
        classes: (n, C) float32, L2-normalised, the direction of each class.
        scale: by which cosines are multiplied before the softmax, as in the model's training.
        adaptor: of a student, the teacher in whose space the classes lie; None for the model's own space.
    """

    labels: tuple[str, ...]
    classes: Tensor
    scale: float
    adaptor: str | None = None

    def probabilities(self, pictures: Tensor) -> Tensor:
        """(N, n) float32, how well each class fits, rows summing to 1; from (N, C) embeddings of unit length."""
        return (self.scale * pictures.float() @ self.classes.to(pictures.device).T).softmax(1)

    def ranked(self, pictures: Tensor, k: int | None = None) -> list[list[dict[str, str | float]]]:
        """For each of (N, C) embeddings of unit length [{"label", "score"}, ...], the highest score first.

        Args:
            k: only so many; None takes all.
        """
        return ranked(self.probabilities(pictures), self.labels, k)


def ranked(probabilities: Tensor, labels: Sequence[str], k: int | None = None) -> list[list[dict[str, str | float]]]:
    """(N, n) probabilities of n labels as [{"label", "score"}, ...] for each row, the highest score first.

    Args:
        k: only so many; None takes all.
    """
    count = len(labels) if k is None else min(k, len(labels))
    scores, places = probabilities.cpu().sort(dim=1, descending=True, stable=True)
    rows = zip(scores[:, :count].tolist(), places[:, :count].tolist(), strict=True)
    return [[{"label": labels[place], "score": score} for score, place in zip(*row, strict=True)] for row in rows]


def class_embeddings(
    encode_text: Callable[[Sequence[str]], np.ndarray | Tensor],
    prompts: Sequence[Sequence[str]],
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The mean direction of each class's prompts (CLIP sec. 3.1.4).

    Args:
        encode_text: texts to their (n, C) embeddings.
        prompts: for each class one or more.
        progress: told how many of how many prompts are done.
    Returns:
        (classes, C) float32 on the CPU, L2-normalised.
    """
    done, total = 0, sum(map(len, prompts))
    directions: list[Tensor] = []
    for groups in _chunks(prompts):
        texts = [text for group in groups for text in group]
        vectors = F.normalize(torch.as_tensor(encode_text(texts)).cpu().float(), dim=1)
        parts = vectors.split([len(group) for group in groups])
        directions += [F.normalize(part.mean(0), dim=0) for part in parts]
        done += len(texts)
        if progress:
            progress(done, total)
    return torch.stack(directions)


def _chunks(prompts: Sequence[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    """Classes in order, as many together as have few enough prompts; at least one."""
    chunk: list[Sequence[str]] = []
    count = 0
    for group in prompts:
        if chunk and count + len(group) > CHUNK:
            yield chunk
            chunk, count = [], 0
        chunk.append(group)
        count += len(group)
    yield chunk
