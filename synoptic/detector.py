"""Finding what words name in pictures: prompts packed and read once, boxes gathered over prompts and parts of a picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synoptic.cache import Cache
from synoptic.config import nearest, to_dict
from synoptic.detections import Detections
from synoptic.models.grounding_dino import Found, GroundingDino, Words
from synoptic.models.pyramid import Pyramid
from synoptic.prompts import Chunk, Phrases, Sentence, Span, Vocabulary, sentence, vocabulary
from synoptic.weights.folder import weights_hash

VERSION = 1  # of phrases that are kept on disk; a change of the arithmetic needs the next one
MANY = 200  # phrases, and more, take longer to read than the weights to hash that tell the kept ones
MOST_KEPT = 20_000  # phrases in memory; 60 MB

Thresholds = float | Sequence[float] | Mapping[str, float]
Texts = str | Sequence[str] | Sequence[Sequence[str]]


@dataclass(frozen=True)
class Asked:
    """What boxes are kept.

    Attributes:
        thresholds: of each class the lowest score; of a sentence one.
        limit: most boxes of a picture.
        nms: share of their union that two boxes of one class have in common at most, lest the less sure one go; None
            keeps all.
    """

    thresholds: np.ndarray
    limit: int
    nms: float | None


class WordReader:
    """A detector's words, each phrase of which is read once, whatever prompts it stands in.

    Phrases do not see each other before they meet a picture, so what is kept of one serves every prompt. Many are kept on
    disk, too, by all that decides them.
    """

    def __init__(self, model: GroundingDino):
        self._model = model
        self._kept: dict[tuple[int, ...], Tensor] = {}
        self._state: tuple[Any, ...] = ()

    def read(self, prompts: Sequence[Phrases]) -> Words:
        """Prompts as the model's encoder takes them."""
        self._forget_if_changed()
        different = dict.fromkeys(phrase for prompt in prompts for phrase in prompt)
        unknown = [phrase for phrase in different if phrase not in self._kept]
        if unknown:
            tokens = self._found(unknown)
            if len(self._kept) + len(unknown) > MOST_KEPT:
                self._kept = {phrase: self._kept[phrase] for phrase in different if phrase in self._kept}
            self._kept |= dict(zip(unknown, tokens, strict=True))
        packed = torch.cat([self._kept[phrase] for prompt in prompts for phrase in prompt])
        return Words(packed, tuple(tuple(map(len, prompt)) for prompt in prompts))

    def _found(self, phrases: Sequence[tuple[int, ...]]) -> list[Tensor]:
        counts = [len(phrase) for phrase in phrases]
        if len(phrases) < MANY:
            return self._model.text(phrases)
        kept, digest = Cache("phrases"), self._digest(phrases)
        before = kept.load(digest)
        first = next(self._model.text.parameters())
        if before is not None and len(before) == sum(counts):
            return list(torch.from_numpy(before).to(first).split(counts))
        tokens = self._model.text(phrases)
        kept.save(digest, torch.cat(tokens).float().cpu().numpy())
        return tokens

    def _digest(self, phrases: Sequence[tuple[int, ...]]) -> str:
        text = self._model.text
        precision = str(next(text.parameters()).dtype)
        decisive = [VERSION, weights_hash(text), to_dict(self._model.config.text), precision, list(phrases)]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()

    def _forget_if_changed(self) -> None:
        """Lets go of what other weights made."""
        state = tuple((id(each), each._version, each.device, each.dtype) for each in self._model.text.parameters())
        if state != self._state:
            self._kept, self._state = {}, state


class Detector:
    """Finds in pictures what words name.

    Args:
        model: with its tokenizer.
        name: told in errors.
    Raises:
        ValueError: the model came without a vocabulary.
    """

    def __init__(self, model: GroundingDino, name: str):
        if model.tokenizer is None:
            told = "load it with load.vocabulary=FILE, the vocab.txt or tokenizer.json of bert-base-uncased"
            raise ValueError(f"{name} came without a vocabulary, and reads no words: {told}")
        self.model, self.tokenizer, self.name = model, model.tokenizer, name
        self.words = WordReader(model)

    def vocabulary(self, names: str | Sequence[str]) -> Vocabulary:
        """Classes that are looked for; see `prompts.vocabulary`."""
        return vocabulary(names, self.tokenizer, self.model.config.context)

    def sentence(self, text: str) -> Sentence:
        """A text whose phrases are looked for; see `prompts.sentence`."""
        return sentence(text, self.tokenizer, self.model.config.context)

    @torch.no_grad()
    def see(self, images: Sequence[Tensor]) -> list[Pyramid]:
        """What pictures (C, H, W) in [0, 1] show, each by itself; those of one size that follow each other are looked at
        together."""
        first = next(self.model.parameters())
        placed = [image.to(first.device, first.dtype) for image in images]
        groups = [torch.stack(list(alike)) for _, alike in groupby(placed, key=lambda image: image.shape)]
        return self.model.see(groups).split()

    @torch.no_grad()
    def ground(self, pyramids: Sequence[Pyramid], prompts: Sequence[Phrases]) -> Found:
        """Boxes and logits of pictures and as many prompts, float32."""
        found = self.model.ground(joined(pyramids), self.words.read(prompts)).last
        return Found(tuple(each.float() for each in found.boxes), tuple(each.float() for each in found.logits))

    def classes(
        self, pyramids: Sequence[Pyramid], wanted: Sequence[Vocabulary], asked: Sequence[Asked]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each picture (n, 4) boxes as shares of it, (n,) scores and (n,) classes, the surest first.

        The score of a class is the mean probability of its tokens (the authors' evaluation on COCO). Prompts are asked one
        after the other, each of all pictures that have so many; the picture is seen once.
        """
        gathered: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in pyramids]
        for turn in range(max(len(each.chunks) for each in wanted)):
            places = [place for place, each in enumerate(wanted) if turn < len(each.chunks)]
            chunks = [wanted[place].chunks[turn] for place in places]
            found = self.ground([pyramids[place] for place in places], [chunk.phrases for chunk in chunks])
            for place, chunk, boxes, logits in zip(places, chunks, found.boxes, found.logits, strict=True):
                gathered[place].append(_above(boxes, class_scores(logits, chunk), chunk, asked[place]))
        return [_best(parts, each) for parts, each in zip(gathered, asked, strict=True)]


def joined(pyramids: Sequence[Pyramid]) -> Pyramid:
    """Pictures as one batch."""
    if len(pyramids) == 1:
        return pyramids[0]
    shapes = tuple(shape for each in pyramids for shape in each.levels.shapes)
    return Pyramid(
        torch.cat([each.tokens for each in pyramids]),
        torch.cat([each.positions for each in pyramids]),
        replace(pyramids[0].levels, shapes=shapes),
        tuple(share for each in pyramids for share in each.shares),
    )


def class_scores(logits: Tensor, chunk: Chunk) -> Tensor:
    """(q, c), the mean probability of the tokens of each class, from (q, n) logits of all tokens."""
    member = torch.zeros(logits.shape[1], len(chunk.tokens))
    for column, (begin, end) in enumerate(chunk.tokens):
        member[begin:end, column] = 1 / (end - begin)
    return logits.sigmoid() @ member.to(logits)


def _above(boxes: Tensor, scores: Tensor, chunk: Chunk, asked: Asked) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and classes at or above their thresholds; at most so many as are wanted in the end."""
    classes = torch.tensor(chunk.classes, device=scores.device)
    lowest = torch.from_numpy(asked.thresholds).to(scores)[classes]
    kept = torch.where(scores >= lowest, scores, -1.0).flatten()
    best = kept.topk(min(asked.limit, len(kept)) if asked.nms is None else len(kept))
    sure = best.indices[best.values >= 0]
    return boxes[sure // len(classes)], kept[sure], classes[sure % len(classes)]


def _best(parts: Sequence[tuple[Tensor, Tensor, Tensor]], asked: Asked) -> tuple[Tensor, Tensor, Tensor]:
    boxes, scores, classes = (torch.cat(each) for each in zip(*parts, strict=True))
    order = scores.argsort(descending=True, stable=True)
    boxes, scores, classes = boxes[order], scores[order], classes[order]
    if asked.nms is not None:
        kept = suppressed(boxes, classes, asked.nms)
        boxes, scores, classes = boxes[kept], scores[kept], classes[kept]
    return boxes[: asked.limit], scores[: asked.limit], classes[: asked.limit]


def suppressed(boxes: Tensor, classes: Tensor, most: float) -> Tensor:
    """Places of (n, 4) boxes, the surest first, that share at most so much of their union with any surer one of their
    class that stays."""
    left_top, right_bottom = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    areas = (right_bottom - left_top).prod(1)
    left = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    kept = []
    for place in range(len(boxes)):
        if not left[place]:
            continue
        kept.append(place)
        common = torch.minimum(right_bottom[place], right_bottom) - torch.maximum(left_top[place], left_top)
        common = common.clamp(min=0).prod(1)
        shares = common / (areas[place] + areas - common).clamp(min=1e-12)
        left &= (shares <= most) | (classes != classes[place])
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)


def named(
    boxes: Tensor, logits: Tensor, said: Sentence, asked: Asked, text_threshold: float
) -> tuple[Tensor, Tensor, list[tuple[Span, ...]]]:
    """Of (q, 4) boxes and (q, n) logits of a sentence those that are sure enough, their scores, and the words that name
    them: whole words, of the phrase that the surest word lies in.

    Source: the authors' demo, where parts of words and of other phrases are taken along.
    """
    speaks = torch.zeros(logits.shape[1], dtype=torch.bool)
    speaks[[token for words in said.words for word in words for token in word.tokens]] = True
    shares = logits.sigmoid().masked_fill(~speaks.to(logits.device), 0.0)
    scores, best = shares.max(1)
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= float(asked.thresholds[0])]
    if asked.nms is not None:
        order = order[suppressed(boxes[order], torch.zeros_like(order), asked.nms)]
    order = order[: asked.limit]
    pairs = zip(shares[order].cpu(), best[order].tolist(), strict=True)
    return boxes[order], scores[order], [_spans(said, row > text_threshold, place) for row, place in pairs]


def _spans(said: Sentence, sure: Tensor, best: int) -> tuple[Span, ...]:
    """Whole words of sure tokens in the phrase of the surest, those that follow each other as one span."""
    found: list[Span] = []
    follows = False
    for word in said.phrase_of(best):
        taken = best in word.tokens or any(bool(sure[token]) for token in word.tokens)
        if taken and follows:
            found[-1] = (found[-1][0], word.span[1])
        elif taken:
            found.append(word.span)
        follows = taken
    return tuple(found)
