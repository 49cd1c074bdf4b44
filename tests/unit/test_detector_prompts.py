"""Names packed into prompts and sentences cut into words, and all that names nothing."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_detectors import PIECES, WORDS

from synoptic.detection.prompts import sentence, vocabulary
from synoptic.models.tokenizers import Tokenizer

TOKENIZER = Tokenizer.bert(PIECES, 64)
START, END, STOP = (PIECES.index(sign) for sign in ("[CLS]", "[SEP]", "."))


def ids(text: str) -> tuple[int, ...]:
    return tuple(PIECES.index(piece) for piece in text.split())


def test_names_become_phrases_of_one_prompt() -> None:
    found = vocabulary("a cat. red car ", TOKENIZER, 64)
    assert found.names == ("a cat", "red car")
    (chunk,) = found.chunks
    assert chunk.phrases == ((START,), ids("a cat ."), ids("red car ."), (END,))
    assert chunk.classes == (0, 1)
    assert chunk.tokens == ((1, 3), (4, 6))
    assert vocabulary(["a cat", "red car"], TOKENIZER, 64) == found


def test_a_long_list_is_packed_in_order_and_each_prompt_fits() -> None:
    names = [f"{first} {second}" for first in ("a", "red", "the") for second in ("cat", "dog", "car", "sofa", "lamp")]
    found = vocabulary(names, TOKENIZER, 12)
    assert [place for chunk in found.chunks for place in chunk.classes] == list(range(15))
    lengths = [sum(map(len, chunk.phrases)) for chunk in found.chunks]
    assert max(lengths) <= 12
    assert len(found.chunks) == 5  # three names of three tokens beside start and end
    for chunk in found.chunks:
        tokens = [each for phrase in chunk.phrases for each in phrase]
        said = [tuple(tokens[begin:end]) for begin, end in chunk.tokens]
        assert said == [ids(names[place]) for place in chunk.classes]


@given(st.lists(st.lists(st.sampled_from(WORDS[:8]), min_size=1, max_size=4).map(" ".join), min_size=1, unique=True))
def test_packing_loses_and_splits_nothing(names: list[str]) -> None:
    found = vocabulary(names, TOKENIZER, 9)
    assert [place for chunk in found.chunks for place in chunk.classes] == list(range(len(names)))
    assert all(sum(map(len, chunk.phrases)) <= 9 for chunk in found.chunks)


def test_stops_inside_a_name_do_not_cut_it() -> None:
    (chunk,) = vocabulary(["a.cat", "red? car."], TOKENIZER, 64).chunks
    assert chunk.phrases[1:-1] == (ids("a cat ."), ids("red car ."))


@pytest.mark.parametrize("text", ["", " ", "...", " . ? . ", []])
def test_a_text_that_names_nothing_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match=r"names nothing|no letters"):
        vocabulary(text, TOKENIZER, 64)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["cat", "cat"], "'cat' is there twice"),
        (["cat", "Cat "], "'cat' and 'Cat ' are the same to the model"),
        (["cat", "c\u00e1t"], "are the same to the model"),
        (["cat", "?!"[:1]], "no letters"),
        (["cat", ""], "no letters"),
        (["cat", 3], "expected names, got 3"),
        (["\u200b"], "no signs"),
        (["cat " * 70], "70 tokens, more than the 61"),
        (3, "expected names, got 3"),
    ],
)
def test_wrong_names_are_told(names: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        vocabulary(names, TOKENIZER, 64)


def test_words_that_the_model_does_not_know_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        vocabulary(["zebra", "cat"], TOKENIZER, 64)
    assert "'zebra'" in caplog.text
    assert "'cat'" not in caplog.text


def test_a_sentence_is_cut_into_phrases_and_words() -> None:
    found = sentence("Two Cats on the remote control. A red car?", TOKENIZER, 64)
    assert found.phrases == (
        (START,),
        ids("two cat ##s on the re ##mote control ."),
        ids("a red car ?"),
        (END,),
    )
    first, second, rest = found.words
    assert [found.text[slice(*word.span)] for word in first] == ["Two", "Cats", "on", "the", "remote", "control"]
    assert [word.tokens for word in first][:2] == [(1,), (2, 3)]
    assert [found.text[slice(*word.span)] for word in second] == ["A", "red", "car"]
    assert rest == ()
    assert found.phrase_of(11) == second
    assert found.phrase_of(9) == ()  # the stop


def test_punctuation_is_no_part_of_a_word() -> None:
    found = sentence('a red-car, "cat".', TOKENIZER, 64)
    (words, _) = found.words
    assert [found.text[slice(*word.span)] for word in words] == ["a", "red-car", "cat"]


def test_underscores_are_spaces_and_names_may_be_kept_apart() -> None:
    found = vocabulary(["red_car", "a cat", "dog"], TOKENIZER, 64, together=2)
    assert [chunk.classes for chunk in found.chunks] == [(0, 1), (2,)]
    assert found.names[0] == "red_car"
    assert found.chunks[0].phrases[1] == ids("red car .")


def test_questions_and_line_breaks_part_names_too() -> None:
    found = vocabulary("a cat? dog\nred \t car.\n", TOKENIZER, 64)
    assert found.names == ("a cat", "dog", "red car")


def test_commas_between_names_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(vocabulary("cat, dog", TOKENIZER, 64).names) == 1
    assert "names have full stops between them" in caplog.text


def test_a_sentence_ends_with_a_stop() -> None:
    assert sentence("a cat", TOKENIZER, 64).phrases == ((START,), ids("a cat ."), (END,))


def test_a_sentence_without_signs_is_refused() -> None:
    with pytest.raises(ValueError, match="no signs that the model reads"):
        sentence("\u200b", TOKENIZER, 64)


@pytest.mark.parametrize("text", ["", " . ", "?", '"', "-?", 3, ["a cat"]])
def test_a_sentence_that_says_nothing_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="says nothing"):
        sentence(text, TOKENIZER, 64)


def test_a_sentence_longer_than_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="71 tokens, more than the 62 of a prompt"):
        sentence("cat " * 70, TOKENIZER, 64)
