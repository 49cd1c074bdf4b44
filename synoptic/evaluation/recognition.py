"""What is in the picture: judged by the labels of its nearest neighbours, and by words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from synoptic.data.sources import Source
from synoptic.evaluation.features import Space, embed
from synoptic.types import EncodesImages, EncodesText

QUERY_CHUNK, BANK_CHUNK = 512, 16384  # similarities computed at once: 32 MB


@dataclass(frozen=True)
class Neighbours:
    """The nearest vectors of a bank to each query, the nearest first.

    Attributes:
        index: (Q, k) int64, where they stand in the bank; of equally near ones the first come first.
        similarity: (Q, k) float32, cosines.
    """

    index: np.ndarray
    similarity: np.ndarray


def nearest(bank: Tensor, queries: Tensor, k: int) -> Neighbours:
    """Exact search by cosine, in memory that does not grow with the bank.

    Args:
        bank: (N, C) float32, L2-normalised.
        queries: (Q, C) float32, L2-normalised.
        k: neighbours wanted; all of the bank where it is smaller.
    """
    k = min(k, len(bank))
    parts = [_nearest_keys(bank, part, k) for part in queries.split(QUERY_CHUNK)]
    keys = torch.cat(parts).cpu() if parts else torch.empty(0, k, dtype=torch.int64)
    bits = (keys >> 32).int()
    similarity = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
    return Neighbours((0xFFFFFFFF - (keys & 0xFFFFFFFF)).numpy(), similarity.numpy())


def vote(neighbours: Neighbours, labels: np.ndarray, classes: int, temperature: float = 0.07) -> np.ndarray:
    """Each neighbour votes for its class with the weight exp(cosine / temperature).

    Args:
        neighbours: of Q queries.
        labels: (N,) int64, classes of the bank.
        classes: how many there are.
        temperature: above 0.
    Returns:
        (Q, classes) float64, the share of the votes of each class.
    Source: Wu et al. 2018 (arXiv 1805.01978).
    """
    weights = np.exp((neighbours.similarity.astype(np.float64) - neighbours.similarity[:, :1]) / temperature)
    votes = np.zeros((len(weights), classes))
    np.add.at(votes, (np.arange(len(weights))[:, None], labels[neighbours.index]), weights)
    return votes / votes.sum(1, keepdims=True)


@dataclass(frozen=True)
class Recognised:
    """Pictures with what was said of them.

    Attributes:
        index: (Q,) int64, where the pictures stand in their source.
        truth: (Q,) int64, their classes.
        scores: (Q, classes), the larger the likelier.
        neighbours: where a vote of neighbours decided: who they were, by their place in the bank's source.
    """

    index: np.ndarray
    truth: np.ndarray
    scores: np.ndarray
    neighbours: Neighbours | None = None

    @property
    def predicted(self) -> np.ndarray:
        """(Q,) int64, the likeliest class; the first of equally likely ones."""
        return self.scores.argmax(1)

    def accuracy(self, within: int = 1) -> float:
        """Share of the pictures whose class is among the `within` likeliest."""
        ranked = np.argsort(-self.scores, axis=1, kind="stable")[:, :within]
        return float((ranked == self.truth[:, None]).any(1).mean())


class KNN:
    """Weighted k-nearest-neighbour classification, the evaluation that needs no training.

    Yields "knn": the share of the queries whose class wins the vote of their neighbours in the bank. For other spaces
    than the model's own, "knn_" and the space's name.

    Args:
        bank: labelled pictures that vote.
        queries: labelled pictures to judge by, of the same classes.
        k: neighbours that vote.
        temperature: of their weights.
        spaces: which of the model's answers are judged; all from one pass.
    Raises:
        ValueError: where labels are missing, or classes differ.
    Source: Wu et al. 2018 (arXiv 1805.01978), with the 20 neighbours of DINO, sec. 3.2 (arXiv 2104.14294).
    """

    def __init__(
        self,
        bank: Source,
        queries: Source,
        k: int = 20,
        temperature: float = 0.07,
        spaces: Sequence[Space] = (Space(),),
    ):
        self.bank, self.queries, self.k, self.temperature, self.spaces = bank, queries, k, temperature, spaces
        if k < 1 or temperature <= 0:
            raise ValueError(f"k={k} and temperature={temperature}: k is at least 1, the temperature above 0")
        self._bank_labels, self._query_labels = _labels_of(bank), _labels_of(queries)
        # A class that only queries have cannot be found, but it counts.
        if queries.classes[: len(bank.classes)] != bank.classes:
            raise ValueError(f"{queries.root} has other classes than {bank.root}: neighbours cannot vote for them")

    def run(self, model: EncodesImages) -> Iterator[tuple[str, float]]:
        for name, recognised in self.judge(model):
            yield name, recognised.accuracy()

    def judge(self, model: EncodesImages) -> Iterator[tuple[str, Recognised]]:
        """For each space the name of its score, and every query with its votes and neighbours."""
        bank, queries = embed(model, self.bank, self.spaces), embed(model, self.queries, self.spaces)
        for space in self.spaces:
            found = nearest(bank.vectors[space], queries.vectors[space], self.k)
            neighbours = Neighbours(bank.index[found.index], found.similarity)
            votes = vote(neighbours, self._bank_labels, len(self.queries.classes), self.temperature)
            truth = self._query_labels[queries.index]
            yield f"knn{space.suffix}", Recognised(queries.index, truth, votes, neighbours)


def class_embeddings(
    encode_text: Callable[[Sequence[str]], np.ndarray | Tensor], prompts: Sequence[Sequence[str]]
) -> Tensor:
    """The mean direction of each class's prompts (CLIP sec. 3.1.4, arXiv 2103.00020).

    Args:
        encode_text: texts to their (n, C) embeddings.
        prompts: for each class one or more.
    Returns:
        (classes, C) float32 on the CPU, L2-normalised.
    """
    texts = [text for group in prompts for text in group]
    vectors = F.normalize(torch.as_tensor(encode_text(texts)).cpu().float(), dim=1)
    groups = vectors.split([len(group) for group in prompts])
    return F.normalize(torch.stack([group.mean(0) for group in groups]), dim=1)


class ZeroShot:
    """Classification by words alone: the class whose prompts lie nearest to the picture (CLIP sec. 3.1).

    Yields "zeroshot", the share of the pictures whose class is the nearest; with more than five classes also
    "zeroshot_top5".

    Args:
        source: the pictures.
        labels: (len(source),) int64, the class of each; pictures of class -1 are not asked about.
        prompts: for each class one prompt or several.
        adaptor: of a student, the teacher whose words are used; needed where several know words.
    Raises:
        ValueError: for a class without a prompt, or when no picture has a class.
    """

    def __init__(
        self, source: Source, labels: np.ndarray, prompts: Sequence[Sequence[str]], adaptor: str | None = None
    ):
        self.source, self.labels, self.prompts, self.adaptor = source, np.asarray(labels), prompts, adaptor
        assert len(self.labels) == len(source), "one label a picture"
        if not all(prompts) or self.labels.max(initial=-1) >= len(prompts):
            raise ValueError(f"{source.root}: every class needs a prompt")
        self._asked = np.flatnonzero(self.labels >= 0).tolist()
        if not self._asked:
            raise ValueError(f"{source.root}: none of its pictures shows a class that has prompts")

    def run(self, model: EncodesText) -> Iterator[tuple[str, float]]:
        recognised = self.judge(model)
        yield "zeroshot", recognised.accuracy()
        if len(self.prompts) > 5:
            yield "zeroshot_top5", recognised.accuracy(within=5)

    def judge(self, model: EncodesText) -> Recognised:
        """Every picture with its cosines to the classes."""
        adaptor = self.adaptor or model.text_space
        classes = class_embeddings(lambda texts: model.encode_text(texts, adaptor), self.prompts)
        space = Space(adaptor)
        pictures = embed(model, self.source, (space,), self._asked)
        scores = pictures.vectors[space].cpu() @ classes.T
        return Recognised(pictures.index, self.labels[pictures.index], scores.numpy())


def _labels_of(source: Source) -> np.ndarray:
    if source.labels is None:
        raise ValueError(f"{source.root} has no labels: put its pictures into a folder for each class")
    return source.labels


def _nearest_keys(bank: Tensor, queries: Tensor, k: int) -> Tensor:
    """(Q, k) int64 that sort like (similarity, -index), the largest first: this order has no ties."""
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), BANK_CHUNK):
        part = bank[start : start + BANK_CHUNK]
        # Adding zero makes one of the two zeros; then the bits of floats order like integers, negative ones backwards.
        bits = (queries @ part.T + 0.0).view(torch.int32)
        bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        places = torch.arange(start, start + len(part), device=bank.device)
        best = torch.cat((best, (bits.long() << 32) + (0xFFFFFFFF - places)), dim=1)
        best = best.topk(min(k, best.shape[1]), dim=1).values
    return best
