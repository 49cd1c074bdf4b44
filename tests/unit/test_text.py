"""Words: the tokenizer that is learned from captions, and the text tower."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from synoptic.models.text import TextConfig, TextTower
from synoptic.models.tokenizers import Tokenizer

CAPTIONS = ["a small red cone left of a blue torus", "a striped cube", "a large blue cube behind a red cone"]
TOKENIZER = Tokenizer.learn(CAPTIONS * 10, vocabulary=320, context=12)


def tower() -> TextTower:
    torch.manual_seed(0)
    config = TextConfig(
        vocabulary=TOKENIZER.vocabulary, context=12, end=TOKENIZER.end, width=16, depth=2, heads=2, embedding=6
    )
    model = TextTower(config)
    nn.init.normal_(model.token_embedding.weight)
    return model.eval()


def test_rows_begin_and_finish_with_their_tokens() -> None:
    rows = TOKENIZER(["a red cone", "", "a blue cube"])
    assert rows.dtype == torch.int64
    assert (rows[:, 0] == TOKENIZER.start).all()
    assert (rows[:, -1] == TOKENIZER.end).all()
    assert (rows[1, 1:] == TOKENIZER.end).all()
    assert rows.shape[1] == max(int((row != TOKENIZER.end).sum()) for row in rows) + 1


def test_long_texts_are_cut_and_still_finish() -> None:
    rows = TOKENIZER(["cone " * 100, "cone"])
    assert rows.shape == (2, 12)
    assert rows[0, -1] == TOKENIZER.end
    assert (rows[0, :-1] != TOKENIZER.end).all()


def test_frequent_words_become_one_token_and_case_does_not_matter() -> None:
    assert TOKENIZER(["cone"]).shape == (1, 3)
    assert torch.equal(TOKENIZER(["A Red CONE"]), TOKENIZER(["a red cone"]))


@given(st.text(st.characters(codec="utf-8", categories=["Ll", "Nd", "Lo", "Po", "Zs", "So"]), max_size=6))
def test_any_text_can_be_written_and_read_back(text: str) -> None:
    row = Tokenizer(TOKENIZER._engine.to_str(), context=200)([text])[0].tolist()
    ids = row[1 : row.index(TOKENIZER.end)]
    assert TOKENIZER.decode(ids) == unicodedata.normalize("NFC", text).strip()


def test_the_vocabulary_has_an_upper_bound_and_learning_repeats() -> None:
    again = Tokenizer.learn(CAPTIONS * 10, vocabulary=320, context=12)
    assert again.to_json() == TOKENIZER.to_json()
    assert TOKENIZER.vocabulary <= 320
    assert int(TOKENIZER(CAPTIONS).max()) < TOKENIZER.vocabulary


def test_a_tokenizer_survives_its_json() -> None:
    again = Tokenizer.from_json(TOKENIZER.to_json())
    assert torch.equal(again(CAPTIONS), TOKENIZER(CAPTIONS))
    assert (again.context, again.vocabulary, again.end) == (12, TOKENIZER.vocabulary, TOKENIZER.end)


def test_a_tokenizer_without_start_and_end_is_refused() -> None:
    definition = json.loads(TOKENIZER.to_json())["tokenizer"]
    definition["added_tokens"] = []
    definition["model"]["vocab"] = {"a": 0}
    definition["model"]["merges"] = []
    with pytest.raises(ValueError, match="lacks the token"):
        Tokenizer(json.dumps(definition), 12)


def test_no_texts_make_no_rows() -> None:
    assert TOKENIZER([]).shape == (0, 0)


def test_what_follows_the_end_has_no_effect() -> None:
    rows = TOKENIZER(["a red cone"])
    junk = torch.cat([rows, torch.tensor([[5, 6, TOKENIZER.end]])], dim=1)
    torch.testing.assert_close(tower()(junk), tower()(rows))


def test_a_row_without_an_end_is_read_at_its_last_token() -> None:
    model, row = tower(), TOKENIZER(["a red cone"])[:, :-1]
    without = model(row)
    model.config = replace(model.config, end=int(row[0, -1]))
    torch.testing.assert_close(without, model(row))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 200, "heads": 3}, "heads=3 does not divide width=200"),
        ({"heads": 0}, "heads=0 should be from 1 to"),
        ({"depth": 0}, "depth=0 should be from 1 to"),
        ({"depth": 10**9}, "depth=1000000000 should be from 0 to 1024"),
        ({"embedding": 0}, "embedding=0 should be from 1 to"),
        ({"context": 2}, "context=2 should be from 3 to"),
        ({"vocabulary": 2}, "vocabulary=2 should be from 3 to"),
        ({"end": 320}, "end=320 is none of the ids of vocabulary=320"),
    ],
)
def test_towers_that_cannot_be_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextConfig(**{"vocabulary": 320, "context": 12, "end": 1} | changes)


@pytest.mark.parametrize("context", [2, "12", None])
def test_a_tokenizer_needs_room_for_a_word(context: Any) -> None:
    with pytest.raises(ValueError, match="should be 3 or more tokens"):
        Tokenizer(TOKENIZER._engine.to_str(), context)


def test_a_text_is_encoded_alike_in_any_batch() -> None:
    model = tower()
    alone = torch.cat([model(TOKENIZER([caption])) for caption in CAPTIONS])
    torch.testing.assert_close(model(TOKENIZER(CAPTIONS)), alone)


def test_every_token_before_the_end_matters_and_so_does_their_order() -> None:
    model = tower()
    texts = ["a red cone", "a blue cone", "a cone red", "red cone"]
    answers = model(TOKENIZER(texts))
    assert answers.shape == (4, 6)
    assert torch.pdist(answers).min() > 1e-3


def test_a_token_sees_itself_and_those_before_it_alone() -> None:
    rows = TOKENIZER(["a red cone"])
    block = tower().blocks[0]
    tokens = torch.randn(rows.shape[1], 16)
    groups = ((1, len(tokens)),)
    changed = tokens.clone()
    changed[2] += 1
    differs = (block(tokens, groups) != block(changed, groups)).any(-1).tolist()
    assert differs == [False, False, *[True] * (rows.shape[1] - 2)]


def test_initialisation_keeps_the_residual_stream_small() -> None:
    torch.manual_seed(0)
    model = TextTower(TextConfig(vocabulary=300, context=16, end=1, width=64, depth=6, heads=4, embedding=32))
    assert abs(model.token_embedding.weight.std() - 0.02) < 0.001
    assert abs(model.blocks[0].attn.proj.weight.std() - 64**-0.5 * 12**-0.5) < 0.002
    for block in model.blocks:
        assert not block.attn.qkv.bias.any() and not block.attn.proj.bias.any()
        assert 0 < block.mlp.fc1.bias.abs().max() <= 64**-0.5, "PyTorch's own"
