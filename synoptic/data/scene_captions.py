"""Captions of a built-in scene, each with the noun phrases that name its bodies and where they stand in the text."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations

import numpy as np

from synoptic.data.scene_description import Kind
from synoptic.data.words import with_article

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
MARGIN = 0.08  # a relation must hold by this much of the picture's side, or of the nearer body's depth
Words = tuple[str, ...]  # the attributes that a phrase mentions, out of ATTRIBUTES
ATTRIBUTES: Words = ("size", "texture", "colour", "shape")  # in the order in which English puts them
Relation = tuple[int, str, int]  # (one body, how it stands to, the other)
SHORT: Words = ("colour", "shape")


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: caption[start:end], and the indices of all visible bodies of which it is true."""

    start: int
    end: int
    bodies: tuple[int, ...]


@dataclass(frozen=True)
class Caption:
    """A sentence and its noun phrases in the order of their spans. Phrases that name no body are not listed."""

    text: str
    phrases: tuple[Phrase, ...]


@dataclass(frozen=True)
class Seen:
    """What a caption can say of one body: its kind, box (x, y, width, height), depth (metres) and whether it floats."""

    kind: Kind
    box: tuple[int, int, int, int]
    depth: float
    floating: bool

    def words(self, attributes: Words) -> str:
        return " ".join(getattr(self.kind, attribute) for attribute in attributes)


@dataclass
class _Sentence:
    """A caption in the making."""

    seen: Sequence[Seen]
    text: str = ""
    phrases: list[Phrase] = field(default_factory=list)

    def say(self, words: str) -> "_Sentence":
        self.text += words
        return self

    def name(self, body: int, attributes: Words) -> "_Sentence":
        words = self.seen[body].words(attributes)
        return self.point(with_article(words), _like(self.seen, body, attributes))

    def point(self, words: str, bodies: Iterable[int]) -> "_Sentence":
        start = len(self.text)
        self.text += words
        self.phrases.append(Phrase(start, len(self.text), tuple(bodies)))
        return self

    def enumerate(self, bodies: Iterable[int], attributes: Words) -> "_Sentence":
        """a sphere, two red cubes and a torus: bodies that the words do not tell apart are counted."""
        groups = list({_like(self.seen, body, attributes): body for body in bodies}.items())
        for number, (group, body) in enumerate(groups):
            if number:
                self.say(" and " if number == len(groups) - 1 else ", ")
            words = self.seen[body].words(attributes)
            if len(group) == 1:
                self.point(with_article(words), group)
            else:
                self.point(f"{NUMBERS[len(group)]} {_plural(words)}", group)
        return self

    def done(self) -> Caption:
        return Caption(self.text, tuple(self.phrases))


def describe(seen: Sequence[Seen], size: int, rng: np.random.Generator) -> tuple[Caption, ...]:
    """Five captions of a picture.

    Args:
        seen: the visible bodies, at least one.
        size: side of the picture in pixels.
    """
    return _describe_one(seen, rng) if len(seen) == 1 else _describe_several(seen, size, rng)


def _describe_one(seen: Sequence[Seen], rng: np.random.Generator) -> tuple[Caption, ...]:
    place = " floating above the ground" if seen[0].floating else " standing on the ground"
    partial: tuple[Words, ...] = (("texture", *SHORT), ("size", *SHORT))
    some = partial[rng.integers(len(partial))]
    opening = ("there is ", "one object: ", "a photo of ")[rng.integers(3)]
    odd: tuple[Words, ...] = (("shape",), ("texture", "shape"), ("size", "shape"), SHORT)
    return (
        _Sentence(seen).name(0, ATTRIBUTES).done(),
        _Sentence(seen).say("a picture of ").name(0, SHORT).done(),
        _Sentence(seen).name(0, some).say(place).done(),
        _Sentence(seen).say(opening).name(0, SHORT).done(),
        _Sentence(seen).say("a picture of ").name(0, odd[rng.integers(len(odd))]).done(),
    )


def _describe_several(seen: Sequence[Seen], size: int, rng: np.random.Generator) -> tuple[Caption, ...]:
    bodies = [int(body) for body in rng.permutation(len(seen))]
    relations = _relations(seen, size)
    picked = [relations[i] for i in rng.permutation(len(relations))[:2]]
    first, second = bodies[:2]
    plain = _Sentence(seen).enumerate(bodies[:2], SHORT).done()
    told = [_relate(seen, relation, full=number == 0) for number, relation in enumerate(picked)]
    told += [plain, _Sentence(seen).say("there is ").name(second, _telling(seen, second)).done()][: 2 - len(told)]
    place = " floating above the ground" if seen[first].floating else " standing on the ground"
    count = f"{NUMBERS[len(seen)]} objects"
    by_shape: Words = SHORT if rng.uniform() < 0.5 else ("shape",)
    return (
        told[0],
        _Sentence(seen).say("a picture of ").point(count, range(len(seen))).say(": ").enumerate(bodies, SHORT).done(),
        told[1],
        _Sentence(seen).name(first, ATTRIBUTES).say(place).done(),
        _Sentence(seen).say("a picture of ").enumerate(bodies, by_shape).done(),
    )


def _relate(seen: Sequence[Seen], relation: Relation, full: bool) -> Caption:
    one, holds, other = relation
    words = ATTRIBUTES if full else _telling(seen, one)
    return _Sentence(seen).name(one, words).say(f" {holds} ").name(other, _telling(seen, other)).done()


def _relations(seen: Sequence[Seen], size: int) -> list[Relation]:
    """All relations that clearly hold between bodies."""
    return [
        (one, relation, other)
        for one, other in permutations(range(len(seen)), 2)
        for relation, holds in RELATIONS.items()
        if holds(seen[one], seen[other], size)
    ]


def _is_left_of(one: Seen, other: Seen, size: int) -> bool:
    across, down = _from_to(one, other)
    return across > MARGIN * size and across > abs(down)


def _is_in_front_of(one: Seen, other: Seen, size: int) -> bool:
    # Only of bodies about one line of sight: of others one says left and right.
    across, _ = _from_to(one, other)
    return other.depth - one.depth > MARGIN * 2 * one.depth and abs(across) < (one.box[2] + other.box[2]) / 2


def _is_above(one: Seen, other: Seen, size: int) -> bool:
    across, _ = _from_to(one, other)
    over = one.box[1] + one.box[3] <= other.box[1] + 0.02 * size
    return one.floating and over and abs(across) < max(one.box[2], other.box[2]) / 2


RELATIONS: dict[str, Callable[[Seen, Seen, int], bool]] = {
    "left of": _is_left_of,
    "right of": lambda one, other, size: _is_left_of(other, one, size),
    "in front of": _is_in_front_of,
    "behind": lambda one, other, size: _is_in_front_of(other, one, size),
    "above": _is_above,
}


def _from_to(one: Seen, other: Seen) -> tuple[float, float]:
    """From the centre of one box to that of another: pixels to the right, pixels down."""
    x, y, width, height = one.box
    x2, y2, width2, height2 = other.box
    return x2 + width2 / 2 - x - width / 2, y2 + height2 / 2 - y - height / 2


def _like(seen: Sequence[Seen], body: int, attributes: Words) -> tuple[int, ...]:
    """The bodies, in order, of which the words for one are true."""
    words = seen[body].words(attributes)
    return tuple(i for i, other in enumerate(seen) if other.words(attributes) == words)


def _telling(seen: Sequence[Seen], body: int) -> Words:
    """The fewest attributes, colour and shape among them, that tell a body from the others; all where none do."""
    for count in range(3):
        for more in combinations(("size", "texture"), count):
            attributes = (*more, *SHORT)
            if len(_like(seen, body, attributes)) == 1:
                return attributes
    return ATTRIBUTES


def _plural(words: str) -> str:
    return words[:-2] + "i" if words.endswith("torus") else words + "s"
