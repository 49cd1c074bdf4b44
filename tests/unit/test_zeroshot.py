"""Classifiers made of words: what they say, what is kept of them on disk, and what they are kept by."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from synoptic import text_encoder, zeroshot
from synoptic.cache import Cache
from synoptic.data.prompts import class_prompts
from synoptic.models.clip import Clip, ClipConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViTConfig
from synoptic.predict import VisionModel
from synoptic.types import Preprocess
from synoptic.zeroshot import ZeroShotHead, class_embeddings

LABELS = [f"thing {number}" for number in range(30)]
TOKENIZER = Tokenizer.learn(["a red cone", "a blue cube", *LABELS], vocabulary=300, context=12)


def clip(tokenizer: Tokenizer | None = TOKENIZER, seed: int = 0, **changes: Any) -> VisionModel:
    torch.manual_seed(seed)
    text: dict[str, Any] = {"vocabulary": TOKENIZER.vocabulary, "context": 12, "end": TOKENIZER.end, "width": 8}
    text |= {"depth": 1, "heads": 2, "embedding": 6, **changes}
    image = ViTConfig(patch_size=4, width=12, depth=1, heads=3, image_size=16)
    network = Clip(ClipConfig(image=image, text=TextConfig(**text)), tokenizer)
    for parameter in network.text.parameters():
        nn.init.normal_(parameter, std=0.3)
    return VisionModel(network, Preprocess(16), "tiny")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is kept; every head counts as one of many prompts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(text_encoder, "FEW", 0)
    return tmp_path / "synoptic" / "classes"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts went through a text tower, each time that it was asked."""
    counts: list[int] = []
    plain = text_encoder.TextEncoder._encode

    def counting(self: Any, texts: Sequence[str], batch_size: int = 256) -> Any:
        counts.append(len(texts))
        return plain(self, texts, batch_size)

    monkeypatch.setattr(text_encoder.TextEncoder, "_encode", counting)
    return counts


def test_a_head_says_what_the_model_says():
    model, pictures = clip(), np.random.default_rng(0).random((3, 16, 16, 3)).astype(np.float32)
    head = model.zero_shot_head(LABELS, "7")
    vectors = torch.from_numpy(model.embed(pictures))
    assert head.ranked(vectors) == model.classify(pictures, LABELS, "7")
    assert head.ranked(vectors, 2) == [answers[:2] for answers in model.classify(pictures, LABELS, "7")]
    torch.testing.assert_close(head.probabilities(vectors).sum(1), torch.ones(3))
    assert head.scale == pytest.approx(1 / 0.07)


def test_a_model_of_words_has_no_classes_of_its_own():
    with pytest.raises(ValueError, match="has no classes of its own: give labels="):
        clip().classify(np.zeros((16, 16, 3), np.uint8))
    assert clip().classes == 0


def test_a_class_is_the_mean_direction_of_its_prompts_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch):
    vectors = {"a": [3.0, 0.0], "b": [0.0, 0.5], "c": [-1.0, 0.0], "d": [0.0, -2.0]}
    expected = torch.tensor([[0.5**0.5, 0.5**0.5], [-1.0, 0.0], [0.0, -1.0]])
    told: list[tuple[int, int]] = []
    for chunk in (1, 2, 3, 100):
        monkeypatch.setattr(zeroshot, "CHUNK", chunk)
        found = class_embeddings(
            lambda texts: np.array([vectors[text] for text in texts]),
            [["a", "b"], ["c"], ["d"]],
            lambda *counts: told.append(counts),
        )
        torch.testing.assert_close(found, expected)
        assert told[-1] == (4, 4)


def test_of_equally_likely_labels_the_first_comes_first():
    head = ZeroShotHead(("a", "b", "c"), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]), 2.0)
    assert [answer["label"] for answer in head.ranked(torch.tensor([[1.0, 0.0]]))[0]] == ["b", "c", "a"]


def test_many_prompts_are_encoded_once_and_then_read(kept: Path, encoded: list[int]):
    first = clip().zero_shot_head(LABELS, "80").classes
    assert sum(encoded) == 2400
    assert torch.equal(clip().zero_shot_head(LABELS, "80").classes, first)
    assert sum(encoded) == 2400
    clip().classify(np.zeros((16, 16, 3), np.uint8), LABELS, "80")
    assert sum(encoded) == 2400
    assert len(list(kept.iterdir())) == 1


def test_few_prompts_are_encoded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    clip().zero_shot_head(LABELS)
    assert not list(tmp_path.iterdir())


def test_whatever_decides_a_head_tells_kept_ones_apart(kept: Path, encoded: list[int]):
    def count() -> int:
        return len(list(kept.iterdir()))

    other_words = Tokenizer.from_json(TOKENIZER.to_json().replace('"clean": "none"', '"clean": "siglip"'))
    short = Tokenizer.from_json(TOKENIZER.to_json().replace('"context": 12', '"context": 8'))
    for number, model in enumerate(
        [clip(), clip(seed=1), clip(heads=4), clip(activation="quick_gelu"), clip(other_words), clip(short)], start=1
    ):
        model.zero_shot_head(LABELS)
        assert count() == number
    clip().zero_shot_head(LABELS, ["the {}"])
    clip().zero_shot_head({label: [f"a {label}"] for label in LABELS[::-1]})
    assert count() == 8
    half = clip()
    half.model.bfloat16()
    half.zero_shot_head(LABELS)
    assert count() == 9
    picture = clip()
    nn.init.zeros_(picture.model.projection.weight)
    picture.model.logit_scale.data += 1
    done = sum(encoded)
    assert picture.zero_shot_head(LABELS).scale == pytest.approx(np.e / 0.07)
    assert (count(), sum(encoded)) == (9, done), "the picture encoder and the scale decide nothing of it"


@pytest.mark.parametrize("spoil", ["short", "flipped", "empty", "other"])
def test_a_damaged_file_is_computed_anew(kept: Path, caplog: pytest.LogCaptureFixture, spoil: str):
    first = clip().zero_shot_head(LABELS).classes
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    flipped = bytes([*whole[:-3], whole[-3] ^ 255, *whole[-2:]])
    file.write_bytes({"short": whole[:-9], "flipped": flipped, "empty": b"", "other": b"x" * 400}[spoil])
    assert torch.equal(clip().zero_shot_head(LABELS).classes, first)
    assert any("is damaged and computed anew" in message for message in caplog.messages)
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(text_encoder, "FEW", 0)
    assert len(clip().zero_shot_head(LABELS).classes) == 30
    assert any("cannot be written" in message for message in caplog.messages)


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    array = np.arange(1000, dtype=np.float32)
    cache = Cache("arrays", largest=9000)  # two of 4 kB
    for age, name in ((3, "a"), (2, "b")):
        cache.save(name, array)
        path = cache.folder / f"{name}.safetensors"
        os.utime(path, (path.stat().st_mtime - 1000 * age,) * 2)
    left = cache.folder / "left.tmp"
    left.write_bytes(b"of a process that was killed")
    os.utime(left, (0, 0))
    np.testing.assert_array_equal(cache.load("a"), array)  # used, so that b is older now
    cache.save("c", array)
    assert {path.stem for path in cache.folder.iterdir()} == {"a", "c"}
    Cache("arrays", largest=1).save("d", array)
    assert [path.stem for path in cache.folder.iterdir()] == ["d"], "the newest stays, however large"


def test_texts_that_are_cut_are_counted_once(caplog: pytest.LogCaptureFixture):
    model = clip()
    long = "a red cone and a blue cube and a red cone and a blue cube"
    exact = next(text for n in range(3, 40) if len(TOKENIZER.encode([text := ("a " * n).strip()])[0]) == 10)
    with caplog.at_level(logging.WARNING):
        model.encode_text([long, "a red cone", exact] * 200)
        assert [record.getMessage() for record in caplog.records] == [
            "tiny reads texts of up to 12 tokens: 200 of 600 are longer and were cut"
        ]
        caplog.clear()
        model.zero_shot_head([*LABELS, long], "80")
    assert [message.partition(": ")[2] for message in caplog.messages if "were cut" in message] == [
        f"{sum(len(ids) > 10 for ids in TOKENIZER.encode(all_prompts(long)))} of 2480 are longer and were cut"
    ]
    row = TOKENIZER([long])
    torch.testing.assert_close(
        torch.from_numpy(model.encode_text([long])), F.normalize(model.model.encode_text(row).float(), dim=1).detach()
    )


def all_prompts(label: str) -> list[str]:
    return [text for group in class_prompts([*LABELS, label], "80").values() for text in group]


def test_a_model_without_a_vocabulary_is_named():
    with pytest.raises(ValueError, match=r"tiny came without a vocabulary: load it with load.vocabulary=FILE"):
        clip(None).zero_shot_head(LABELS, "80")
