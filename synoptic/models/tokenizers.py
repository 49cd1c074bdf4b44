"""Words to ids: a byte-level BPE learned from the user's own captions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

START, END = "<|startoftext|>", "<|endoftext|>"


class Tokenizer:
    """Turns texts into rows of ids that begin with a start token and finish with an end token.

    Args:
        definition: the JSON of a `tokenizers` tokenizer that knows START and END.
        context: the longest row; longer texts are cut and still finish with the end token.
    """

    def __init__(self, definition: str, context: int):
        if not isinstance(context, int) or context < 3:
            raise ValueError(f"context={context!r} should be 3 or more tokens: start, a word, end")
        self._engine = Engine.from_str(definition)
        self.context = context
        start, end = self._engine.token_to_id(START), self._engine.token_to_id(END)
        if start is None or end is None:
            raise ValueError(f"the tokenizer lacks the tokens {START} and {END}")
        self.start, self.end = start, end

    @classmethod
    def learn(cls, captions: Iterable[str], vocabulary: int = 4096, context: int = 32) -> Tokenizer:
        """Learns a byte-level BPE of at most `vocabulary` tokens, case folded; any text can be written in it."""
        engine = Engine(models.BPE())
        engine.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip()])
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        engine.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[START, END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        engine.train_from_iterator(captions, trainer)
        return cls(engine.to_str(), context)

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return self._engine.get_vocab_size()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(n, L) int64, L the longest row; shorter rows are filled with end tokens, of which only the first counts."""
        rows = [
            [self.start, *encoding.ids[: self.context - 2], self.end]
            for encoding in self._engine.encode_batch(list(texts), add_special_tokens=False)
        ]
        tokens = torch.full((len(rows), max(map(len, rows), default=0)), self.end, dtype=torch.long)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a row of ids."""
        return self._engine.decode(list(ids)).strip()

    def to_json(self) -> str:
        """The whole tokenizer as text, for `from_json`."""
        return json.dumps({"context": self.context, "tokenizer": json.loads(self._engine.to_str())})

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Reads what `to_json` wrote."""
        content = json.loads(text)
        return cls(json.dumps(content["tokenizer"]), content["context"])
