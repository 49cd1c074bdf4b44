"""What is in the picture: judged by the labels of its nearest neighbours, and by words."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from synoptic.data.sources import Source
from synoptic.evaluation.calibration import Calibration, calibration
from synoptic.evaluation.features import Embeddings, Space, embed
from synoptic.types import EncodesImages, EncodesText
from synoptic.zeroshot import class_embeddings

logger = logging.getLogger(__name__)

HELD_OUT = 0.1  # of the training pictures, for choosing between classifiers
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

    def of(self, which: np.ndarray) -> Recognised:
        """The pictures that (Q,) bool names."""
        return Recognised(self.index[which], self.truth[which], self.scores[which])

    def among(self, classes: int) -> Recognised:
        """The pictures of the first classes, with these alone to choose from."""
        found = self.of(self.truth < classes)
        return Recognised(found.index, found.truth, found.scores[:, :classes])


class Recogniser(ABC):
    """An evaluation that reads a vector of each picture, or several; what it makes of them, subclasses say.

    Attributes:
        sources: whose pictures it looks at.
        spaces: which vectors it reads.
    """

    sources: tuple[Source, ...]
    spaces: Sequence[Space]

    def run(self, model: EncodesImages) -> Iterator[tuple[str, float]]:
        return Together([self]).run(model)

    @abstractmethod
    def scores(self, *seen: Embeddings) -> Iterator[tuple[str, float]]:
        """The scores by name, from the vectors of each of the sources."""


class Together:
    """Several recognisers, for which a model looks at every source once.

    Args:
        recognisers: any; they share passes over the sources that are the same objects.
    """

    def __init__(self, recognisers: Sequence[Recogniser]):
        self.recognisers = recognisers

    def run(self, model: EncodesImages) -> Iterator[tuple[str, float]]:
        seen: dict[int, Embeddings] = {}
        for recogniser in self.recognisers:
            for source in recogniser.sources:
                if id(source) not in seen:
                    seen[id(source)] = embed(model, source, self._spaces(source))
            yield from recogniser.scores(*(seen[id(source)] for source in recogniser.sources))

    def _spaces(self, source: Source) -> list[Space]:
        """All that anyone reads of its pictures."""
        readers = [each for each in self.recognisers if any(source is other for other in each.sources)]
        return list(dict.fromkeys(space for each in readers for space in each.spaces))


class KNN(Recogniser):
    """Weighted k-nearest-neighbour classification, the evaluation that needs no training.

    Yields "knn": the share of the queries whose class wins the vote of their neighbours in the bank. For other spaces
    than the model's own, "knn_" and the space's name. With other numbers of neighbours besides, "knn_10" and so on.

    Args:
        bank: labelled pictures that vote.
        queries: labelled pictures to judge by, of the same classes.
        k: neighbours that vote.
        temperature: of their weights.
        spaces: which of the model's answers are judged; all from one pass.
        besides: other numbers of neighbours, with a score each. A bank that has fewer pictures votes as a whole, which
            is told as a warning.
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
        besides: Sequence[int] = (),
    ):
        self.bank, self.queries, self.k, self.temperature = bank, queries, k, temperature
        self.sources, self.spaces, self.besides = (bank, queries), spaces, tuple(besides)
        fewest = min((k, *besides))
        if fewest < 1 or temperature <= 0:
            raise ValueError(f"k={fewest} and temperature={temperature}: k is at least 1, the temperature above 0")
        self._bank_labels, self._query_labels = labels_of_both(bank, queries)
        beyond = ", ".join(f"knn_{count}" for count in self.besides if count > len(bank))
        if beyond:
            logger.warning("%s: only %d pictures are there to vote", beyond, len(bank))

    def judge(self, model: EncodesImages) -> Iterator[tuple[str, Recognised]]:
        """For each score its name, and every query with its votes and neighbours."""
        return self._judged(*(embed(model, source, self.spaces) for source in self.sources))

    def scores(self, *seen: Embeddings) -> Iterator[tuple[str, float]]:
        for name, recognised in self._judged(*seen):
            yield name, recognised.accuracy()

    def _judged(self, bank: Embeddings, queries: Embeddings) -> Iterator[tuple[str, Recognised]]:
        for space in self.spaces:
            found = nearest(bank.vectors[space], queries.vectors[space], max((self.k, *self.besides)))
            yield f"knn{space.suffix}", self._vote(bank, queries, found, self.k)
            for k in self.besides:
                yield f"knn_{k}{space.suffix}", self._vote(bank, queries, found, k)

    def _vote(self, bank: Embeddings, queries: Embeddings, found: Neighbours, k: int) -> Recognised:
        neighbours = Neighbours(bank.index[found.index[:, :k]], found.similarity[:, :k])
        votes = vote(neighbours, self._bank_labels, len(self.queries.classes), self.temperature)
        return Recognised(queries.index, self._query_labels[queries.index], votes, neighbours)


class ZeroShot:
    """Classification by words alone: the class whose prompts lie nearest to the picture (CLIP sec. 3.1).

    Yields "zeroshot", the share of the pictures whose class is the nearest; with more than five classes also
    "zeroshot_top5"; and "zeroshot_ece", the expected calibration error of a softmax at the model's logit scale. All of
    these are of the seen classes. Where others are held out, "zeroshot_seen" and "zeroshot_unseen" are the shares of
    the pictures of either with all classes to choose from.

    Args:
        source: the pictures.
        labels: (len(source),) int64, the class of each; pictures of class -1 are not asked about.
        prompts: for each class one prompt or several.
        adaptor: of a student, the teacher whose words are used; needed where several know words.
        seen: how many of the classes, the first ones, training shows; None counts all.
    Raises:
        ValueError: for a class without a prompt, or when no picture has a class that is seen.
    """

    def __init__(
        self,
        source: Source,
        labels: np.ndarray,
        prompts: Sequence[Sequence[str]],
        adaptor: str | None = None,
        seen: int | None = None,
    ):
        self.source, self.labels, self.prompts, self.adaptor = source, np.asarray(labels), prompts, adaptor
        self.seen = len(prompts) if seen is None else seen
        assert len(self.labels) == len(source), "one label a picture"
        if not all(prompts) or self.labels.max(initial=-1) >= len(prompts):
            raise ValueError(f"{source.root}: every class needs a prompt")
        self._asked = np.flatnonzero(self.labels >= 0).tolist()
        if not ((self.labels >= 0) & (self.labels < self.seen)).any():
            raise ValueError(f"{source.root}: none of its pictures shows a class that has prompts")

    def run(self, model: EncodesText) -> Iterator[tuple[str, float]]:
        every = self._compare(model)
        recognised = every.among(self.seen)
        yield "zeroshot", recognised.accuracy()
        if self.seen > 5:
            yield "zeroshot_top5", recognised.accuracy(within=5)
        yield "zeroshot_ece", self.calibration(model, recognised).error
        if self.seen < len(self.prompts):
            is_seen = every.truth < self.seen
            yield "zeroshot_seen", every.of(is_seen).accuracy()
            if not is_seen.all():
                yield "zeroshot_unseen", every.of(~is_seen).accuracy()

    def judge(self, model: EncodesText) -> Recognised:
        """Every picture of a seen class with its cosines to the seen classes."""
        return self._compare(model).among(self.seen)

    def calibration(self, model: EncodesText, recognised: Recognised) -> Calibration:
        """How sure the model is of what it says, and how often right."""
        logits = torch.from_numpy(recognised.scores).float() * model.logit_scale(self.adaptor or model.text_space)
        return calibration(logits.softmax(1).numpy(), recognised.truth)

    def _compare(self, model: EncodesText) -> Recognised:
        """Every picture with its cosines to all classes."""
        adaptor = self.adaptor or model.text_space
        classes = class_embeddings(lambda texts: model.encode_text(texts, adaptor), self.prompts)
        space = Space(adaptor)
        pictures = embed(model, self.source, (space,), self._asked)
        scores = pictures.vectors[space].cpu() @ classes.T
        return Recognised(pictures.index, self.labels[pictures.index], scores.numpy())


def labels_of(source: Source) -> np.ndarray:
    """(len(source),) int64, the class of each picture.

    Raises:
        ValueError: there are none.
    """
    if source.labels is None:
        raise ValueError(f"{source.root} has no labels: put its pictures into a folder for each class")
    return source.labels


def labels_of_both(train: Source, judged: Source) -> tuple[np.ndarray, np.ndarray]:
    """The classes of the pictures to learn from, and of those to judge by.

    Raises:
        ValueError: where labels are missing, or classes differ.
    """
    labels = labels_of(train), labels_of(judged)
    # A class that only the judged ones have cannot be found, but it counts.
    if judged.classes[: len(train.classes)] != train.classes:
        raise ValueError(f"{judged.root} has other classes than {train.root}: nothing learned there tells them apart")
    return labels


def set_apart(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` training pictures choose between classifiers, a random tenth, and which these learn from.

    Of a single one, it is the same.
    """
    order = np.random.default_rng(seed).permutation(count)
    held = max(round(HELD_OUT * count), 1)
    return order[:held], order[held:] if count > held else order


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
