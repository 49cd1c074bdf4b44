"""The words of a model: texts to vectors, and classes to the directions that are kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from synoptic.cache import Cache
from synoptic.config import to_dict
from synoptic.models.tokenizers import Tokenizer
from synoptic.weights.folder import text_towers, weights_hash
from synoptic.weights.words import MERGES
from synoptic.zeroshot import class_embeddings

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

VERSION = 1  # of what is kept; a change of the arithmetic needs the next one
FEW = 200  # prompts, and less, are encoded sooner than the weights are hashed that would tell the kept ones


class TextEncoder:
    """The part of a model that knows words.

    Args:
        tower: as `weights.folder.text_towers` gives it.
        adaptor: of a student, the teacher whose words they are; None for the model itself.
        name: of the model, for messages.
    """

    def __init__(self, tower: Any, adaptor: str | None, name: str):
        self.tower, self.adaptor, self.name = tower, adaptor, name

    @property
    def scale(self) -> float:
        """What cosines are multiplied by before a softmax."""
        return float(self.tower.logit_scale.detach().float().exp())

    @property
    def tokenizer(self) -> Tokenizer:
        """Turns texts into ids.

        Raises:
            ValueError: the weights came without.
        """
        if self.tower.tokenizer is None:
            raise ValueError(
                f"{self.name} came without a vocabulary: load it with load.vocabulary=FILE (CLIP's is {MERGES}.gz)"
            )
        return self.tower.tokenizer

    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """(n, C) float32 on the CPU, L2-normalised; tells as a warning how many texts were cut."""
        vectors, cut = self._encode(texts, batch_size)
        _tell(self.name, self.tokenizer.context, cut, len(texts))
        return vectors

    def directions(self, prompts: Sequence[Sequence[str]], progress: Progress | None = None) -> Tensor:
        """The direction of each class, as `class_embeddings` finds it; of many prompts they are kept on disk."""
        if sum(map(len, prompts)) <= FEW:
            return self._directions(prompts, progress)
        kept, digest = Cache("classes"), self._digest(prompts)
        before = kept.load(digest)
        if before is not None:
            return torch.from_numpy(before)
        found = self._directions(prompts, progress)
        kept.save(digest, found.numpy())
        return found

    def _directions(self, prompts: Sequence[Sequence[str]], progress: Progress | None) -> Tensor:
        cut = 0

        def encode(texts: Sequence[str]) -> Tensor:
            nonlocal cut
            vectors, more = self._encode(texts)
            cut += more
            return vectors

        found = class_embeddings(encode, prompts, progress)
        _tell(self.name, self.tokenizer.context, cut, sum(map(len, prompts)))
        return found

    def _digest(self, prompts: Sequence[Sequence[str]]) -> str:
        """What decides the directions: the text tower with its shape, precision and tokenizer, and the prompts."""
        text = self.tower.text
        precision = str(next(text.parameters()).dtype)
        words = self.tokenizer.to_json()  # the context and the cleaning of texts among it
        decisive = [VERSION, weights_hash(text), to_dict(text.config), precision, words, [*map(list, prompts)]]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()

    @torch.no_grad()
    def _encode(self, texts: Sequence[str], batch_size: int = 256) -> tuple[Tensor, int]:
        """The vectors, and how many texts were cut."""
        vectors, cut = [], 0
        for start in range(0, len(texts), batch_size):
            chunk = texts[start : start + batch_size]
            tokens = self.tokenizer(chunk)
            cut += _cut(self.tokenizer, chunk, tokens)
            vectors.append(F.normalize(self.tower.encode_text(tokens).float(), dim=-1).cpu())
        return torch.cat(vectors), cut


def encoder_of(model: Any, adaptor: str | None, name: str) -> TextEncoder:
    """The part of a model that knows words.

    Args:
        model: any.
        adaptor: of a student, the teacher whose words are wanted; None stands for the only one that knows any.
        name: of the model, for messages.
    Raises:
        ValueError: it knows no words, or knows them in several spaces and none is chosen.
    """
    towers = text_towers(model)
    if not towers:
        raise ValueError(f"{name} knows no words: take a CLIP, or a student of a CLIP")
    if adaptor is None and len(towers) == 1:
        adaptor = next(iter(towers))
    if adaptor not in towers:
        wrong = "knows words in several spaces" if adaptor is None else f"knows no words as {adaptor!r}"
        names = ", ".join(filter(None, towers))
        raise ValueError(f"{name} {wrong}; {f'choose adaptor= from {names}' if names else 'take no adaptor='}")
    return TextEncoder(towers[adaptor], adaptor or None, name)


@cache  # a run asks about the same captions at every evaluation
def _tell(name: str, context: int, cut: int, count: int) -> None:
    if cut:
        log.warning("%s reads texts of up to %d tokens: %d of %d are longer and were cut", name, context, cut, count)


def _cut(tokenizer: Tokenizer, texts: Sequence[str], tokens: Tensor) -> int:
    """How many of the texts do not fit their rows; only rows without any padding are looked at again."""
    if tokens.shape[1] < tokenizer.context:
        return 0
    full = [text for text, row in zip(texts, tokens.tolist(), strict=True) if row[-2] != tokenizer.end]
    return sum(len(ids) > tokenizer.room for ids in tokenizer.encode(full)) if full else 0
