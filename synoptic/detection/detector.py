"""Finding what words name in pictures: prompts packed and read once, boxes gathered over prompts and parts of a
picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from synoptic.cache import Cache
from synoptic.config import to_dict
from synoptic.detection.prompts import Chunk, Phrases, Sentence, Span, Vocabulary, sentence, vocabulary
from synoptic.models.grounding_dino import Found, GroundingDino, Words
from synoptic.models.pyramid import Pyramid
from synoptic.weights.folder import weights_hash

VERSION = 1  # of phrases that are kept on disk; a change of the arithmetic needs the next one
MANY = 200  # phrases, and more, take longer to read than the weights to hash that tell the kept ones
_AT_ONCE = 256  # boxes that are compared with all others
MOST_KEPT = 20_000  # phrases in memory; 60 MB


@dataclass(frozen=True)
class Asked:
    """What is kept of a picture.

    Attributes:
        thresholds: (c,) lowest score of each class; of a sentence a single one.
        limit: most boxes.
        nms: share of their union that two boxes of one class have in common at most, lest the less sure one go; None
            keeps all.
    """

    thresholds: Tensor
    limit: int
    nms: float | None


@dataclass(frozen=True)
class Boxes:
    """Objects in one picture, the surest first.

    Attributes:
        corners: (n, 4) left, top, right, bottom.
        scores: (n,).
        labels: (n,) int64.
    """

    corners: Tensor
    scores: Tensor
    labels: Tensor

    def __getitem__(self, places: Tensor | slice) -> Boxes:
        return Boxes(self.corners[places], self.scores[places], self.labels[places])


@dataclass(frozen=True)
class Grounding:
    """A detector's raw answer.

    Attributes:
        boxes: (B, Q, 4) cx, cy, w, h as shares of each picture.
        logits: (B, Q, T) of every token of the prompts; those of tokens that a prompt does not have, and of queries
            that a small picture does not have, are -inf.
        tokens: ids of each prompt.
    """

    boxes: Tensor
    logits: Tensor
    tokens: tuple[tuple[int, ...], ...]


class WordReader:
    """A detector's words, each phrase of which is read once, whatever prompts it stands in.

    Phrases do not see each other before they meet a picture, so what is kept of one serves every prompt. Many are kept
    on disk, too, by all that decides them.
    """

    def __init__(self, model: GroundingDino):
        self._model = model
        self._kept: dict[tuple[int, ...], Tensor] = {}
        self._state: tuple[Any, ...] = ()

    def read(self, prompts: Sequence[Phrases]) -> Words:
        """Prompts as the model's encoder takes them."""
        self.learn(prompts)
        packed = torch.cat([self._kept[phrase] for prompt in prompts for phrase in prompt])
        return Words(packed, tuple(tuple(map(len, prompt)) for prompt in prompts))

    def learn(self, prompts: Sequence[Phrases]) -> None:
        """Reads what of prompts is new, all at once: where that is much, it is kept on disk as one. What is kept serves
        inside of autocast and outside, and so is of the model's own precision."""
        self._forget_if_changed()
        different = dict.fromkeys(phrase for prompt in prompts for phrase in prompt)
        unknown = [phrase for phrase in different if phrase not in self._kept]
        if unknown:
            with torch.autocast(next(self._model.text.parameters()).device.type, enabled=False):
                tokens = self._found(unknown)
            if len(self._kept) + len(unknown) > MOST_KEPT:
                self._kept = {phrase: self._kept[phrase] for phrase in different if phrase in self._kept}
            self._kept |= dict(zip(unknown, tokens, strict=True))

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
        state = tuple(map(_state_of, self._model.text.parameters()))
        if state != self._state:
            self._kept, self._state = {}, state


def _state_of(weight: Tensor) -> tuple[Any, ...]:
    """What changes when a weight does; of those that were made in inference mode nothing counts the changes."""
    version = 0 if weight.is_inference() else weight._version
    return id(weight), weight.data_ptr(), version, weight.device, weight.dtype


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

    def vocabulary(self, names: str | Sequence[str], together: int | None = None) -> Vocabulary:
        """Classes that are looked for; see `prompts.vocabulary`."""
        return vocabulary(names, self.tokenizer, self.model.config.context, together)

    def sentence(self, text: str) -> Sentence:
        """A text whose phrases are looked for; see `prompts.sentence`."""
        return sentence(text, self.tokenizer, self.model.config.context)

    @torch.no_grad()
    def see(self, images: Sequence[Tensor]) -> list[Pyramid]:
        """What pictures (C, H, W) in [0, 1] show, each by itself; those of one size that follow each other are looked
        at together."""
        first = next(self.model.parameters())
        wide = torch.promote_types(first.dtype, torch.float32)  # halves have no room for 255 shades
        placed = [image.to(first.device, wide) for image in images]
        groups = [torch.stack(list(alike)) for _, alike in groupby(placed, key=lambda image: image.shape)]
        return self.model.see(groups).split()

    @torch.no_grad()
    def ground(self, pyramids: Sequence[Pyramid], prompts: Sequence[Phrases]) -> Found:
        """Boxes and logits of pictures and as many prompts, float32."""
        found = self.model.ground(joined(pyramids), self.words.read(prompts)).last
        return Found(tuple(each.float() for each in found.boxes), tuple(each.float() for each in found.logits))

    def grounding(self, images: Tensor | Sequence[Tensor], texts: Sequence[str]) -> Grounding:
        """The raw answer to pictures (C, H, W) in [0, 1] and as many texts; see `VisionModel.ground`."""
        if not len(images) or not all(
            isinstance(image, Tensor) and image.ndim == 3 and len(image[0]) for image in images
        ):
            raise ValueError("expected tensors of pictures, (B, C, H, W), or a list of one or more (C, H, W)")
        if isinstance(texts, str) or len(texts) != len(images):
            count = "one text was" if isinstance(texts, str) else f"{len(texts)} texts were"
            raise ValueError(f"texts: {count} given for {len(images)} pictures; give a list with one for each")
        if not all(image.is_floating_point() and image.min() >= -1 and image.max() <= 2 for image in images):
            raise ValueError("expected pictures as floats in [0, 1]; divide bytes by 255")
        prompts = [self.sentence(text).phrases for text in texts]
        found = self.ground(self.see(list(images)), prompts)
        queries, tokens = (max(each.shape[side] for each in found.logits) for side in (0, 1))
        boxes = found.boxes[0].new_zeros(len(images), queries, 4)
        logits = boxes.new_full((len(images), queries, tokens), -torch.inf)
        for place, (some, scores) in enumerate(zip(found.boxes, found.logits, strict=True)):
            boxes[place, : len(some)] = some
            logits[place, : scores.shape[0], : scores.shape[1]] = scores
        ids = tuple(tuple(each for phrase in prompt for each in phrase) for prompt in prompts)
        return Grounding(boxes, logits, ids)

    def classes(self, pyramids: Sequence[Pyramid], wanted: Sequence[Vocabulary], asked: Sequence[Asked]) -> list[Boxes]:
        """Objects in each picture, corners as shares of it, labels being places among the classes that are wanted of
        it.

        The score of a class is the mean probability of its tokens (the authors' evaluation on COCO). Prompts are asked
        one after the other, each of all pictures that have so many; a picture is seen once.
        """
        self.words.learn([chunk.phrases for each in wanted for chunk in each.chunks])
        gathered: list[list[Boxes]] = [[] for _ in pyramids]
        for turn in range(max(len(each.chunks) for each in wanted)):
            places = [place for place, each in enumerate(wanted) if turn < len(each.chunks)]
            chunks = [wanted[place].chunks[turn] for place in places]
            found = self.ground([pyramids[place] for place in places], [chunk.phrases for chunk in chunks])
            for place, chunk, boxes, logits in zip(places, chunks, found.boxes, found.logits, strict=True):
                scores = class_scores(logits, chunk)
                gathered[place].append(_above(corners_of(boxes), scores, chunk, asked[place]))
        return [best_of(parts, each) for parts, each in zip(gathered, asked, strict=True)]

    def phrases(
        self, pyramids: Sequence[Pyramid], said: Sequence[Sentence], asked: Sequence[Asked], text_threshold: float
    ) -> list[tuple[Boxes, list[tuple[Span, ...]]]]:
        """Objects in each picture that fit words of its sentence, labels being places in the words that are told
        beside."""
        found = self.ground(pyramids, [each.phrases for each in said])
        pictures = zip(found.boxes, found.logits, said, asked, strict=True)
        return [_named(corners_of(boxes), logits, text, kept, text_threshold) for boxes, logits, text, kept in pictures]


def joined(pyramids: Sequence[Pyramid]) -> Pyramid:
    """Pictures as one batch."""
    if len(pyramids) == 1:
        return pyramids[0]
    shapes = tuple(shape for each in pyramids for shape in each.levels.shapes)
    return Pyramid(
        torch.cat([each.tokens for each in pyramids]),
        torch.cat([each.positions for each in pyramids]),
        replace(pyramids[0].levels, shapes=shapes),
        tuple(ratio for each in pyramids for ratio in each.valid_ratios),
    )


def class_scores(logits: Tensor, chunk: Chunk) -> Tensor:
    """(q, c), the mean probability of the tokens of each class, from (q, n) logits of all tokens."""
    member = torch.zeros(logits.shape[1], len(chunk.tokens))
    for column, (begin, end) in enumerate(chunk.tokens):
        member[begin:end, column] = 1 / (end - begin)
    return logits.sigmoid() @ member.to(logits)


def corners_of(boxes: Tensor) -> Tensor:
    """(n, 4) left, top, right, bottom of boxes cx, cy, w, h; both as shares of a picture, and within it."""
    centres, sides = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat((centres - sides, centres + sides), 1).clamp(0, 1)


def _above(corners: Tensor, scores: Tensor, chunk: Chunk, asked: Asked) -> Boxes:
    """(q, c) scores at or above their thresholds, with their boxes and classes; no more than can be wanted in the
    end."""
    classes = torch.tensor(chunk.classes, device=scores.device)
    lowest = asked.thresholds.to(scores)[classes]
    sure = torch.where(scores >= lowest, scores, -1.0).flatten()
    best = sure.topk(len(sure) if asked.nms is not None else min(asked.limit, len(sure)))
    kept = best.indices[best.values >= 0]
    return Boxes(corners[kept // len(classes)], sure[kept], classes[kept % len(classes)])


def _named(
    corners: Tensor, logits: Tensor, said: Sentence, asked: Asked, text_threshold: float
) -> tuple[Boxes, list[tuple[Span, ...]]]:
    """Whole words, of the phrase that the surest word of a box lies in, where the authors' demo takes parts of words
    and of other phrases along."""
    speaks = torch.zeros(logits.shape[1], dtype=torch.bool)
    speaks[[token for words in said.words for word in words for token in word.tokens]] = True
    shares = logits.sigmoid().masked_fill(~speaks.to(logits.device), 0.0)
    scores, best = shares.max(1)
    sure = scores >= float(asked.thresholds[0])
    pairs = zip((shares[sure] > text_threshold).cpu(), best[sure].tolist(), strict=True)
    spans = [_spans(said, row, place) for row, place in pairs]
    different = list(dict.fromkeys(spans))
    labels = torch.tensor([different.index(each) for each in spans], dtype=torch.long, device=logits.device)
    return best_of([Boxes(corners[sure], scores[sure], labels)], asked), different


def _spans(said: Sentence, sure: Tensor, best: int) -> tuple[Span, ...]:
    """Between which characters the sure words lie, those that follow each other as one span."""
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


def best_of(parts: Sequence[Boxes], asked: Asked) -> Boxes:
    """The surest of what was found in several ways, without those that are the same object."""
    whole = joined_boxes(parts)
    whole = whole[whole.scores.argsort(descending=True, stable=True)]
    if asked.nms is not None:
        whole = whole[suppressed(whole, asked.nms, asked.limit)]
    return whole[: asked.limit]


def joined_boxes(parts: Sequence[Boxes]) -> Boxes:
    """All boxes, part after part."""
    return Boxes(*(torch.cat([getattr(part, name) for part in parts]) for name in ("corners", "scores", "labels")))


def covered(boxes: Boxes, others: Boxes, share: float) -> Tensor:
    """(n,) whether more than such a share of each of n boxes lies in a single other one of its class."""
    found = torch.zeros_like(boxes.labels, dtype=torch.bool)
    if not len(others.labels):
        return found
    parts = zip(found.split(_AT_ONCE), boxes.corners.split(_AT_ONCE), boxes.labels.split(_AT_ONCE), strict=True)
    for place, corners, labels in parts:
        first = torch.maximum(corners[:, None, :2], others.corners[:, :2])
        last = torch.minimum(corners[:, None, 2:], others.corners[:, 2:])
        common = (last - first).clamp(min=0).prod(-1)
        areas = (corners[:, 2:] - corners[:, :2]).prod(-1, keepdim=True)
        place |= ((common > share * areas) & (labels[:, None] == others.labels)).any(1)
    return found


def suppressed(boxes: Boxes, most: float, limit: int) -> Tensor:
    """Places of boxes that share at most so much of their union with any surer one of their class that stays; the first
    `limit` of them."""
    left_top, right_bottom = boxes.corners[:, :2], boxes.corners[:, 2:]
    areas = (right_bottom - left_top).prod(1)
    left = torch.ones_like(boxes.labels, dtype=torch.bool)
    kept: list[int] = []
    for place in range(len(left)):
        if len(kept) == limit:
            break
        if not left[place]:
            continue
        kept.append(place)
        common = torch.minimum(right_bottom[place], right_bottom) - torch.maximum(left_top[place], left_top)
        shared = common.clamp(min=0).prod(1)
        overlap = shared / (areas[place] + areas - shared).clamp(min=torch.finfo(areas.dtype).tiny)
        left &= (overlap <= most) | (boxes.labels != boxes.labels[place])
    return torch.tensor(kept, dtype=torch.long, device=left.device)
