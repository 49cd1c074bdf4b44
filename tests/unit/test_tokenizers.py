"""What holds for any text that CLIP's byte-pair encoding and SigLIP's canonical form are given."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synoptic.models.tokenizers import Tokenizer, clean_clip, clean_siglip

TEXTS = st.one_of(st.text(max_size=300), st.text("abc 'stéß&;<|>0123.,\t\n日本🙂", max_size=300))
SPACES = st.lists(st.sampled_from([" ", "  ", "\t", "\n", "\r\n", " \u3000", "\u00a0"]), min_size=1, max_size=5)
WORDS = st.text("abcxyzABC'0189.,-日本語🙂", min_size=1, max_size=12)  # without what ftfy takes for broken encodings
SIGLIP = Tokenizer.learn(["a red cone", "it is a cube"] * 5, vocabulary=300, context=16, siglip=True)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    folder = os.environ.get("SYNOPTIC_DATA")
    if not folder:
        pytest.skip("SYNOPTIC_DATA says where CLIP's vocabulary lies")
    with gzip.open(Path(folder) / "vocab" / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        return Tokenizer.clip(file.read().split("\n"))


@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_rows_are_never_longer_than_77_and_end_once(tokenizer: Tokenizer, texts: list[str]) -> None:
    rows = tokenizer(texts)
    assert rows.shape[0] == len(texts) and rows.shape[1] <= 77
    assert (rows[:, 0] == tokenizer.start).all() and (rows[:, -1] == tokenizer.end).all()
    assert (rows >= 0).all() and (rows < tokenizer.vocabulary).all()


@given(text=TEXTS)
def test_a_text_is_read_back_but_for_spaces(tokenizer: Tokenizer, text: str) -> None:
    """Ends of words become spaces, as in CLIP's own code: "it's" comes back as "it 's"."""
    ids = tokenizer.encode([text])[0]
    assert without_spaces(tokenizer.decode(ids)) == without_spaces(clean_clip(text))


@given(words=st.lists(WORDS, min_size=1, max_size=8), spaces=SPACES)
def test_ids_do_not_depend_on_what_the_space_between_words_is(
    tokenizer: Tokenizer, words: list[str], spaces: list[str]
) -> None:
    spaced = "".join(f"{spaces[place % len(spaces)]}{word}" for place, word in enumerate(words)) + spaces[-1]
    assert tokenizer.encode([spaced]) == tokenizer.encode([" ".join(words)])


@given(text=TEXTS)
def test_siglips_rows_are_full_and_know_no_punctuation(text: str) -> None:
    (row,) = SIGLIP([text])
    assert len(row) == 16 and row[-1] == SIGLIP.end
    assert SIGLIP.encode([text]) == SIGLIP.encode([f"  {clean_siglip(text)}!  "])


def test_siglips_form_is_that_of_its_makers() -> None:
    assert clean_siglip("  A photo of a CAT,\n(sitting)! ") == "a photo of a cat sitting"


def without_spaces(text: str) -> str:
    return "".join(text.split())
