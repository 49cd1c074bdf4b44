"""Words for a detector: class names that are packed into prompts, and sentences whose phrases are found."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from synoptic.models.grounding_dino import STOPS
from synoptic.models.tokenizers import BERT_UNKNOWN, Tokenizer

log = logging.getLogger(__name__)

Span = tuple[int, int]
Phrases = tuple[tuple[int, ...], ...]

_CUTTING = re.compile("[.?]")  # signs that would cut a name in two
_PARTING = re.compile(r"[.?\n\r]")  # signs that part names of one text
_ASIDE = re.compile(r"[\s_]+")
_WITHIN = ("-", "'")  # signs that belong to the word they stand in


@dataclass(frozen=True)
class Chunk:
    """A prompt that names some classes.

    Attributes:
        phrases: ids of its phrases, from the start to the end of the text.
        classes: places of the classes among all that are asked for.
        tokens: of each class the first of its tokens, and the one behind its last.
    """

    phrases: Phrases
    classes: tuple[int, ...]
    tokens: tuple[Span, ...]


@dataclass(frozen=True)
class Vocabulary:
    """Classes that are looked for.

    Attributes:
        names: as they were given.
        chunks: prompts that name all of them, each no longer than the model reads.
    """

    names: tuple[str, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Word:
    """A word of a sentence.

    Attributes:
        tokens: places of its tokens among the sentence's.
        span: between which characters it lies.
    """

    tokens: tuple[int, ...]
    span: Span


@dataclass(frozen=True)
class Sentence:
    """A text whose phrases are looked for.

    Attributes:
        text: as it was given.
        phrases: ids of its phrases, from its start to its end.
        words: of each phrase between two stops.
    """

    text: str
    phrases: Phrases
    words: tuple[tuple[Word, ...], ...]

    def phrase_of(self, token: int) -> tuple[Word, ...]:
        """The words of the phrase in which a token stands; none of start, end and stops."""
        return next((words for words in self.words if any(token in word.tokens for word in words)), ())


def vocabulary(
    names: str | Sequence[str], tokenizer: Tokenizer, context: int, together: int | None = None
) -> Vocabulary:
    """Classes by name, packed in their order into as few prompts as they need.

    Args:
        names: a list; or one text with full stops, question marks or line breaks between them.
        tokenizer: of the detector.
        context: most tokens of a prompt.
        together: most names of a prompt; None takes as many as fit.
    Raises:
        ValueError: there are none; one is empty, there twice, or longer than a prompt.
    """
    if not isinstance(names, str | Sequence):
        raise ValueError(f"text: expected names, got {_short(repr(names))}; give a list such as ['a cat', 'a dog']")
    given = [name for name in _PARTING.split(names) if name.strip()] if isinstance(names, str) else list(names)
    if not given:
        raise ValueError(f"text={names!r}: names nothing to look for; give names such as 'a cat. a dog.'")
    if isinstance(names, str) and len(given) == 1 and "," in names:
        _tell_commas(names.strip())
    rows = tokenizer.encode([_cleaned(name) for name in given])
    room = context - 2  # beside start and end
    _check(given, rows, room - 1, tokenizer)
    chunks, begin, used = [], 0, 0
    for place, row in enumerate(rows):
        if used + len(row) + 1 > room or place - begin == together:
            chunks.append(_chunk(range(begin, place), rows[begin:place], tokenizer))
            begin, used = place, 0
        used += len(row) + 1
    chunks.append(_chunk(range(begin, len(rows)), rows[begin:], tokenizer))
    return Vocabulary(tuple(" ".join(name.split()) for name in given), tuple(chunks))


def spaced(name: str) -> str:
    """A name as the model reads it: an underscore is what data sets, and keys, write for a space."""
    return _ASIDE.sub(" ", name).strip()


@lru_cache(maxsize=64)  # names are read at several places, and told once
def _tell_commas(names: str) -> None:
    log.warning("text: %r is one name to the model; names have full stops between them", names)


def sentence(text: str, tokenizer: Tokenizer, context: int) -> Sentence:
    """A text whose phrases are looked for.

    Args:
        text: any, in the model's language.
        tokenizer: of the detector.
        context: most tokens of a prompt.
    Raises:
        ValueError: it says nothing, or has more tokens than a prompt.
    """
    if not isinstance(text, str) or all(sign.isspace() or _is_punctuation(sign) for sign in text):
        raise ValueError(f"text={text!r}: says nothing to look for; give words such as 'two cats on a sofa.'")
    tokens, stops = tokenizer.spans(text), _stops(tokenizer)
    if not tokens:
        raise ValueError(f"text={text!r}: has no signs that the model reads; give words")
    if tokens[-1][0] not in stops:
        tokens.append((stops[0], len(text), len(text)))
    if len(tokens) > context - 2:
        told = f"{_short(text)!r} has {len(tokens)} tokens, more than the {context - 2} of a prompt"
        raise ValueError(f"text: {told}; cut it in several texts")
    phrases: list[list[int]] = [[]]
    words: list[list[Word]] = [[]]
    for place, (each, begin, end) in enumerate(tokens, 1):
        phrases[-1].append(each)
        if each in stops:
            phrases.append([])
            words.append([])
        elif _parts_words(text[begin:end]):
            continue
        elif words[-1] and words[-1][-1].span[1] == begin:  # a further piece of the same word
            words[-1][-1] = Word((*words[-1][-1].tokens, place), (words[-1][-1].span[0], end))
        else:
            words[-1].append(Word((place,), (begin, end)))
    marks = (tokenizer.start or 0,), (tokenizer.end,)
    return Sentence(text, (marks[0], *map(tuple, phrases[:-1]), marks[1]), tuple(map(tuple, words)))


def _parts_words(signs: str) -> bool:
    """Whether signs are punctuation, which is no part of a word."""
    return signs not in _WITHIN and all(map(_is_punctuation, signs))


def _is_punctuation(sign: str) -> bool:
    return unicodedata.category(sign).startswith("P")


def _check(given: Sequence[str], rows: Sequence[Sequence[int]], room: int, tokenizer: Tokenizer) -> None:
    unknown = tokenizer.id_of(BERT_UNKNOWN)
    seen: dict[tuple[int, ...], str] = {}
    for name, row in zip(given, rows, strict=True):
        if not row:
            raise ValueError(f"text: the name {name!r} has no signs that the model reads; give words")
        if len(row) > room:
            raise ValueError(
                f"text: {_short(name)!r} has {len(row)} tokens, more than the {room} of a prompt; say it shorter"
            )
        if (first := seen.get(tuple(row))) is not None:
            alike = first.strip() == name.strip()
            told = f"{name.strip()!r} is there twice" if alike else f"{first!r} and {name!r} are the same to the model"
            raise ValueError(f"text: {told}; name each class once")
        seen[tuple(row)] = name
        if all(each == unknown for each in row):
            log.warning("text: the model knows no part of %r, and finds anything or nothing by it", name)


def _stops(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of the signs that end a phrase inside of a text, the full stop first."""
    return tuple(found for each in STOPS[2:] if (found := tokenizer.id_of(each)) is not None)


def _chunk(classes: Sequence[int], rows: Sequence[Sequence[int]], tokenizer: Tokenizer) -> Chunk:
    spans, place, stop = [], 1, _stops(tokenizer)[0]
    for row in rows:
        spans.append((place, place + len(row)))
        place += len(row) + 1
    phrases = ((tokenizer.start or 0,), *((*row, stop) for row in rows), (tokenizer.end,))
    return Chunk(phrases, tuple(classes), tuple(spans))


def _cleaned(name: str) -> str:
    """A name without the signs at which the model would cut it in two.

    Raises:
        ValueError: nothing is left of it.
    """
    if not isinstance(name, str):
        raise ValueError(
            f"text: expected names, got {_short(repr(name))}; give a list of them, such as ['a cat', 'a dog']"
        )
    found = _ASIDE.sub(" ", _CUTTING.sub(" ", name)).strip()
    if not found:
        raise ValueError(f"text: the name {name!r} has no letters; give words")
    return found


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
