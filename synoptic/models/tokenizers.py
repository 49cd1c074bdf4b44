"""Words to ids: CLIP's byte-pair encoding, SigLIP's pieces, and a BPE of bytes learned from the user's own captions."""

from __future__ import annotations

import html
import json
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from ftfy import fix_text
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine
from torch import Tensor

START, END = "<|startoftext|>", "<|endoftext|>"
BERT_START, BERT_END, BERT_UNKNOWN, BERT_PAD = "[CLS]", "[SEP]", "[UNK]", "[PAD]"

Cleaning = Literal["none", "clip", "siglip"]

# How CLIP's code cuts a text into words before it merges bytes: contractions, letters, single digits, other signs.
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_MERGES = 49152 - 256 - 2  # of the first lines of its vocabulary file
_WORD_END = "</w>"


class Tokenizer:
    """Turns texts into rows of ids.

    Args:
        definition: the JSON of a `tokenizers` tokenizer.
        context: the longest row.
        start: the token that begins a row; None begins with the text.
        end: the token that finishes it, and fills shorter rows.
        clean: what is done to a text before it is cut.
        full: whether all rows are as long as the context (SigLIP).
    """

    def __init__(
        self,
        definition: str,
        context: int,
        *,
        start: str | None = START,
        end: str = END,
        clean: Cleaning = "none",
        full: bool = False,
    ):
        if not isinstance(context, int) or context < 3:
            raise ValueError(f"context={context!r} should be 3 or more tokens: start, a word, end")
        if clean not in CLEANINGS:
            raise ValueError(f"clean={clean!r} is none of {', '.join(CLEANINGS)}")
        self._engine = Engine.from_str(definition)
        self._engine.no_padding()  # a definition may have both, and rows are cut and filled here
        self._engine.no_truncation()
        self.context = context
        self._marks: dict[str, Any] = {"start": start, "end": end, "clean": clean, "full": full}
        self.start = None if start is None else self._id(start)
        self.end = self._id(end)

    @classmethod
    def learn(
        cls, captions: Iterable[str], vocabulary: int = 4096, context: int = 32, *, siglip: bool = False
    ) -> Tokenizer:
        """Learns a byte-level BPE of at most `vocabulary` tokens, case folded; any text can be written in it.

        Args:
            captions: to learn from.
            vocabulary: the bytes alone are 256, start and end two more.
            context: the longest row.
            siglip: whether texts lose their punctuation first, and rows are full and begin with the text.
        """
        marks: dict[str, Any] = {"start": None, "clean": "siglip", "full": True} if siglip else {}
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
        engine.train_from_iterator(map(CLEANINGS[marks.get("clean", "none")], captions), trainer)
        return cls(engine.to_str(), context, **marks)

    @classmethod
    def clip(cls, lines: Sequence[str], context: int = 77) -> Tokenizer:
        """CLIP's byte-pair encoding.

        Args:
            lines: of `bpe_simple_vocab_16e6.txt` or of Hugging Face's `merges.txt`: a heading, then a merge in each,
                of which the first 48,894 count.
            context: 77 in all released models.
        Raises:
            ValueError: a line is no merge.
        """
        merges = [
            (first, second)
            for first, _, second in (line.partition(" ") for line in lines[1 : 1 + _CLIP_MERGES] if line)
        ]
        if not merges or not all(first and second and " " not in second for first, second in merges):
            raise ValueError("CLIP's vocabulary has a heading and then two words in each line")
        signs = _byte_signs()
        tokens = [*signs, *(sign + _WORD_END for sign in signs), *map("".join, merges), START, END]
        ids = {token: place for place, token in enumerate(tokens)}
        engine = Engine(models.BPE(ids, merges, end_of_word_suffix=_WORD_END, unk_token=END))
        words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
        engine.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
        engine.decoder = decoders.Sequence([decoders.Replace(_WORD_END, "Ġ"), decoders.ByteLevel()])
        engine.add_special_tokens([START, END])
        return cls(engine.to_str(), context, clean="clip")

    @classmethod
    def bert(cls, lines: Sequence[str], context: int = 512) -> Tokenizer:
        """BERT's word pieces, without capitals and accents.

        Args:
            lines: of `vocab.txt`, a piece in each.
            context: 512 of BERT itself.
        Raises:
            ValueError: pieces are there twice, or lack the signs that BERT needs.
        """
        pieces = [line.rstrip("\r\n") for line in lines]
        pieces = pieces[: len(pieces) - (not pieces[-1])] if pieces else []
        ids = {piece: place for place, piece in enumerate(pieces)}
        if len(ids) < len(pieces) or BERT_UNKNOWN not in ids:
            raise ValueError(f"BERT's vocabulary has different pieces, one a line, {BERT_UNKNOWN} among them")
        engine = Engine(models.WordPiece(ids, unk_token=BERT_UNKNOWN))
        engine.normalizer = normalizers.BertNormalizer(lowercase=True)
        engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        engine.decoder = decoders.WordPiece()
        return cls(engine.to_str(), context, start=BERT_START, end=BERT_END)

    def spans(self, text: str) -> list[tuple[int, int, int]]:
        """The id of each token of a text alone, and between which of its characters it lies."""
        encoding = self._engine.encode(CLEANINGS[self._marks["clean"]](text), add_special_tokens=False)
        return [(each, *place) for each, place in zip(encoding.ids, encoding.offsets, strict=True)]

    def id_of(self, token: str) -> int | None:
        """The id of a token, or None."""
        return self._engine.token_to_id(token)

    def _id(self, token: str) -> int:
        found = self._engine.token_to_id(token)
        if found is None:
            raise ValueError(f"the tokenizer lacks the token {token}")
        return found

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return self._engine.get_vocab_size()

    @property
    def full(self) -> bool:
        """Whether all rows are as long as the context."""
        return bool(self._marks["full"])

    @property
    def room(self) -> int:
        """Most tokens of a text itself, beside start and end."""
        return self.context - 1 - (self.start is not None)

    def __call__(self, texts: Sequence[str], *, too_long: Literal["cut", "error"] = "cut") -> Tensor:
        """(n, L) int64, L the longest row or the whole context; shorter rows are filled with end tokens.

        Args:
            texts: any.
            too_long: whether a text of more tokens than the context loses the last ones, or is an error.
        Raises:
            ValueError: for the first text that is too long, where that is an error.
        """
        begin = [] if self.start is None else [self.start]
        room = self.room
        rows = []
        for text, ids in zip(texts, self.encode(texts), strict=True):
            if len(ids) > room and too_long == "error":
                raise ValueError(f"{text[:60]!r} has {len(ids)} tokens, more than the {room} that there is room for")
            rows.append([*begin, *ids[:room], self.end])
        length = self.context if self.full else max(map(len, rows), default=0)
        tokens = torch.full((len(rows), length), self.end, dtype=torch.long)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text alone, without start, end or limit."""
        clean = CLEANINGS[self._marks["clean"]]
        return [
            encoding.ids
            for encoding in self._engine.encode_batch([clean(text) for text in texts], add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a row of ids."""
        return self._engine.decode(list(ids)).strip()

    def to_json(self) -> str:
        """The whole tokenizer as text, for `from_json`."""
        return json.dumps({"context": self.context, **self._marks, "tokenizer": json.loads(self._engine.to_str())})

    @classmethod
    def from_json(cls, text: str, context: int | None = None) -> Tokenizer:
        """Reads what `to_json` wrote; None takes the context that was written, too."""
        content: Mapping[str, Any] = json.loads(text)
        marks = {key: content[key] for key in ("start", "end", "clean", "full") if key in content}
        return cls(json.dumps(content["tokenizer"]), content["context"] if context is None else context, **marks)


def clean_clip(text: str) -> str:
    """What CLIP's code does to a text: repairs broken encodings, reads HTML's names twice, one space between words, in
    small letters."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(fix_text(text)))).strip().lower()


def clean_siglip(text: str) -> str:
    """SigLIP's canonical form: small letters, no punctuation, one space between words (big_vision's "canonicalize")."""
    return " ".join(text.translate(_NO_PUNCTUATION).lower().split())


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

CLEANINGS: Mapping[str, Callable[[str], str]] = {"none": str, "clip": clean_clip, "siglip": clean_siglip}


def _byte_signs() -> list[str]:
    """A visible sign for each byte, in the order of CLIP's vocabulary: those that are visible themselves come first."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [*map(chr, visible), *(chr(256 + place) for place in range(len(hidden)))]
