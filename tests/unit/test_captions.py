"""Retrieval between pictures and captions, and calibration: both by their definitions, with chance and intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from synoptic.data.sources import Source, open_source
from synoptic.evaluation.calibration import calibration
from synoptic.evaluation.captions import CaptionRetrieval, Retrieved
from synoptic.evaluation.intervals import interval
from synoptic.evaluation.protocols import build_evaluator, retrieval
from synoptic.evaluation.retrieval import Retrieval
from synoptic.judging import evaluate
from synoptic.models.clip import Clip, ClipConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, ViTConfig
from synoptic.predict import VisionModel
from synoptic.types import Features, Preprocess

IMAGE = ViTConfig(patch_size=4, width=12, depth=1, heads=3, image_size=8)
COUNTS = (2, 1, 3, 1, 2, 1, 1, 2, 1, 1, 2, 0)  # captions of each of twelve pictures


@pytest.fixture
def captioned(tmp_path: Path) -> str:
    """A captions JSON alone; picture i is a grey of 20 i, and its captions say so."""
    (tmp_path / "images").mkdir()
    for number in range(len(COUNTS)):
        Image.new("RGB", (8, 8), (20 * number,) * 3).save(tmp_path / "images" / f"{number:02}.png")
    content = {
        "images": [{"id": number, "file_name": f"{number:02}.png"} for number in range(len(COUNTS))],
        "annotations": [
            {"image_id": number, "caption": f"{number} in words {again}"}
            for number, count in enumerate(COUNTS)
            for again in range(count)
        ],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content))
    return str(tmp_path / "captions.json")


class Reading:
    """Knows of each picture its number, on a circle; captions lie beside it, `off` numbers away."""

    preprocess, text_space = Preprocess(8), None

    def __init__(self, off: float = 0.0):
        self.off = off

    def encode_image(self, images: Tensor) -> Features:
        vectors = on_circle((images[:, 0, 0, 0] * 255 / 20).round())
        return Features(vectors[:, None], (1, 1), vectors)

    def encode_text(self, texts: Sequence[str], adaptor: str | None = None) -> np.ndarray:
        return on_circle(torch.tensor([float(text.split()[0]) + self.off for text in texts])).numpy()

    def logit_scale(self, adaptor: str | None = None) -> float:
        return 1.0

    def speaks(self, adaptor: str | None = None) -> bool:
        return True


def on_circle(numbers: Tensor) -> Tensor:
    angles = numbers * 2 * torch.pi / 40
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_recall_counts_any_caption_of_a_picture_and_the_picture_of_every_caption(captioned: str):
    evaluator = CaptionRetrieval(open_source(captioned, "all"), bounds=False)
    right = dict(evaluator.run(Reading()))
    recalls = [f"{way}_r{k}" for k in (1, 5, 10) for way in ("image_to_text", "text_to_image")]
    assert list(right) == [*recalls, "r_mean"]
    assert set(right.values()) == {1.0}
    # Captions stand 0.6 beyond their picture: the next picture is nearer to each but the last, whose next is not there.
    off = dict(evaluator.run(Reading(0.6)))
    assert off["text_to_image_r1"] == COUNTS[10] / sum(COUNTS)
    assert off["image_to_text_r1"] == 1 / 11, "the first has none before it"
    assert off["text_to_image_r5"] == 1.0
    assert off["r_mean"] == pytest.approx(sum(off[name] for name in recalls) / 6)
    # Of picture 3 the captions in order of nearness are the 3 of picture 2, then its own one.
    found = evaluator.judge(Reading(0.6))
    assert [found.texts[place] for place in found.captions[3, :4]] == [
        *(f"2 in words {again}" for again in range(3)),
        "3 in words 0",
    ]
    assert found.pictures.shape == (sum(COUNTS), 10)


def test_chance_and_interval_stand_beside_each_share(captioned: str):
    scores = dict(CaptionRetrieval(open_source(captioned, "all")).run(Reading(0.6)))
    total = sum(COUNTS)
    missed = [comb(total - own, 5) / comb(total, 5) for own in COUNTS if own]
    assert scores["image_to_text_r5_chance"] == pytest.approx(1 - np.mean(missed))
    assert scores["text_to_image_r5_chance"] == pytest.approx(5 / 11)
    for way in ("image_to_text", "text_to_image"):
        low, high = scores[f"{way}_r1_low"], scores[f"{way}_r1_high"]
        assert (low, high) == interval(scores[f"{way}_r1"], 11)
        assert 0 <= low < scores[f"{way}_r1"] < high <= 1


def test_chance_is_what_random_vectors_find():
    """The formula against many draws of a model that knows nothing."""
    source = Source(Path("x"), [Path(f"x/{n}") for n in range(6)], captions=[("a",) * n for n in (1, 2, 3, 1, 1, 2)])
    random, owner = np.random.default_rng(0), np.repeat(np.arange(6), (1, 2, 3, 1, 1, 2))
    found = []
    for _ in range(3000):
        captions = np.argsort(random.random((6, 10)), axis=1)
        pictures = np.argsort(random.random((10, 6)), axis=1)
        found.append(Retrieved(np.arange(6), ["a"] * 10, owner, captions, pictures).recall(2))
    assert len(source) == 6
    expected = Retrieved(np.arange(6), ["a"] * 10, owner, captions, pictures).chance(2)
    np.testing.assert_allclose(np.mean(found, axis=0), expected, atol=0.012)


def test_a_captions_file_is_judged_whole(captioned: str):
    scores = dict(build_evaluator("retrieval", captioned).run(Reading()))
    assert scores["image_to_text_r1"] == 1.0
    assert scores["text_to_image_r1_chance"] == pytest.approx(1 / 11)


def test_retrieval_answers_by_what_is_known_of_the_pictures(captioned: str, tmp_path: Path):
    captions = open_source(captioned, "all")
    assert [type(each) for each in retrieval(captions)] == [CaptionRetrieval]
    labels = np.zeros(12, np.int64)
    both = Source(captions.root, captions.paths, ("grey",), labels, captions.captions)
    assert [type(each) for each in retrieval(both)] == [Retrieval, CaptionRetrieval]
    assert [type(each) for each in retrieval(Source(captions.root, captions.paths, ("grey",), labels))] == [Retrieval]
    with pytest.raises(ValueError, match="has neither labels nor captions"):
        retrieval(Source(captions.root, captions.paths))
    one = Source(captions.root, captions.paths, captions=[("a",), *[()] * 11])
    with pytest.raises(ValueError, match="1 of its 12 pictures have captions, and retrieval needs two"):
        retrieval(one)


def test_a_model_without_words_is_asked_about_captions_only_where_there_is_nothing_else(captioned: str):
    silent = VisionModel(ViT(IMAGE), Preprocess(8), "vit")
    captions = open_source(captioned, "all")
    both = Source(captions.root, captions.paths, ("grey",), np.zeros(12, np.int64), captions.captions)
    assert [name for each in retrieval(both) for name, _ in each.run(silent)] == ["retrieval_map", "retrieval_p1"]
    with pytest.raises(ValueError, match="vit knows no words"):
        dict(retrieval(captions)[0].run(silent))


@given(
    st.lists(st.tuples(st.floats(0.5, 1), st.booleans()), min_size=1, max_size=60),
    st.sampled_from([1, 4, 15]),
)
def test_calibration_is_guos_sum_over_bins(answers: list[tuple[float, bool]], bins: int):
    probabilities = np.array([[sure, 1 - sure] for sure, _ in answers])
    predicted = probabilities.argmax(1)
    truth = np.array([said if right else 1 - said for said, (_, right) in zip(predicted, answers, strict=True)])
    found = calibration(probabilities, truth, bins)
    expected = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = [(p.max(), r) for p, (_, r) in zip(probabilities, answers, strict=True) if low < p.max() <= high]
        if inside:
            sure, right = zip(*inside, strict=True)
            expected += len(inside) / len(answers) * abs(np.mean(right) - np.mean(sure))
    assert found.counts.sum() == len(answers)
    assert found.error == pytest.approx(expected, abs=2 / bins * 1e-6 + 1e-9)


def test_calibration_of_known_cases():
    half = np.full((10, 2), 0.5)
    assert calibration(half, np.array([0, 1] * 5)).error == pytest.approx(0)
    sure = np.tile([[1.0, 0.0]], (10, 1))
    assert calibration(sure, np.zeros(10, np.int64)).error == 0
    assert calibration(sure, np.ones(10, np.int64)).error == 1
    found = calibration(np.array([[0.9, 0.1], [0.7, 0.3]]), np.array([0, 1]))
    assert found.error == pytest.approx((0.1 + 0.7) / 2)
    assert (found.counts[13], found.counts[10], len(found.counts)) == (1, 1, 15)


def test_photographs(data_dir: Path):
    """The test captions of coco_mini, whole: of 102 pictures a model that knows nothing finds what chance finds."""
    torch.manual_seed(0)
    words = Tokenizer.learn(["a cat on a bed"], vocabulary=300, context=12)
    text = TextConfig(vocabulary=300, context=12, end=words.end, width=8, depth=1, heads=2, embedding=6)
    model = VisionModel(Clip(ClipConfig(image=IMAGE, text=text), words), Preprocess(8), "clip")
    scores = evaluate(model, "retrieval", str(data_dir / "coco_mini" / "captions_test.json"))
    assert scores["text_to_image_r10_chance"] == pytest.approx(10 / 102)
    assert scores["text_to_image_r10_low"] < 10 / 102 < scores["text_to_image_r10_high"]
