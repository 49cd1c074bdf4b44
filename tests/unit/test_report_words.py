"""What a report shows of a model that knows words: its scores are the evaluators', its pictures are marked rightly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from synoptic.apps import report_words
from synoptic.apps.figures import reliability
from synoptic.apps.report_page import Cards, Gallery, Page, Section, Table, render
from synoptic.apps.report_parts import Run, percent, training_curves
from synoptic.apps.report_words import words_sections
from synoptic.data import scenes
from synoptic.data.sources import Source, open_source
from synoptic.evaluation.calibration import calibration
from synoptic.evaluation.captions import CaptionRetrieval
from synoptic.evaluation.protocols import zeroshot
from synoptic.models.clip import Clip, ClipConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, vit_config
from synoptic.predict import VisionModel
from synoptic.types import Preprocess

SMALL = {"depth": 1, "width": 24, "heads": 2, "hidden": 48, "image_size": 32}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    config = scenes.SceneConfig(count=60, size=32, objects=(1, 1))
    return open_source(str(scenes.write(tmp_path_factory.mktemp("scenes") / "single", config, workers=1)), "test")


@pytest.fixture(scope="module")
def model() -> VisionModel:
    torch.manual_seed(0)
    words = Tokenizer.learn(["a red cone", "a picture of a blue cube"], vocabulary=300, context=60)
    text = TextConfig(vocabulary=300, context=60, end=words.end, width=16, depth=1, heads=1, embedding=24)
    clip = Clip(ClipConfig(image=vit_config("vit_mini8", **SMALL), text=text), words)
    return VisionModel(clip, Preprocess(32), "clip")


def named(sections: list[Section]) -> dict[str, Section]:
    return {section.title.partition(":")[0]: section for section in sections}


def block(section: Section, kind: type):
    return next(each for each in section.blocks if isinstance(each, kind))


def test_classes_and_captions_have_their_sections(model: VisionModel, source: Source):
    found = named(words_sections("run", model, source))
    assert list(found) == ["Asked in words", "Most surely wrong", "Captions and pictures"]
    evaluator = zeroshot(source)
    scores = dict(evaluator.run(model))
    (text,) = found["Asked in words"].text
    assert f"Right in {percent(scores['zeroshot'])} of {len(source)} validation pictures, with 64 classes" in text
    assert f"error is {percent(scores['zeroshot_ece'])}" in text
    page = render(Page("over", "title", [], [*found.values()]))
    assert "<svg" in page and "how often right" in page


def test_the_worst_mistakes_come_first_and_are_mistakes(model: VisionModel, source: Source):
    cards = block(named(words_sections("run", model, source))["Most surely wrong"], Cards).cards
    assert 0 < len(cards) <= report_words.WORST
    assert all(card.picture.right is False for card in cards)
    recognised = zeroshot(source).judge(model)
    above = recognised.scores.max(1) - recognised.scores[np.arange(len(source)), recognised.truth]
    first = cards[0]
    worst = zeroshot(source).prompts[recognised.truth[above.argmax()]][0]
    assert first.title == worst


def test_captions_show_what_they_find_and_mark_their_own(model: VisionModel, source: Source):
    section = named(words_sections("run", model, source))["Captions and pictures"]
    found = CaptionRetrieval(source).judge(model)
    table, gallery = block(section, Table), block(section, Gallery)
    shares = [row[1].text for row in table.rows]
    assert shares == [percent(each) for way in (0, 1) for each in (found.recall(1)[way], found.chance(1)[way])]
    asked = np.linspace(0, len(found.texts) - 1, report_words.ASKED).round().astype(int)
    for caption, row in zip(asked, gallery.rows, strict=True):
        assert row[0].caption == f"“{found.texts[caption]}”"
        own = [place == found.owner[caption] for place in found.pictures[caption, :5]]
        assert [bool(picture.right) for picture in row[1:]] == own
        assert all(picture.uri == row[0].uri for picture in row[1:] if picture.right)


def test_pictures_without_classes_or_captions_say_less(model: VisionModel, source: Source):
    captioned = Source(source.root, source.paths, captions=source.captions)
    assert list(named(words_sections("run", model, captioned))) == ["Asked in words", "Captions and pictures"]
    assert words_sections("run", model, Source(source.root, source.paths)) == []
    silent = VisionModel(ViT(vit_config("vit_mini8", **SMALL)), Preprocess(32), "vit")
    assert words_sections("run", silent, source) == []


def test_a_reliability_diagram_has_a_dot_for_each_bin_that_has_answers():
    found = calibration(np.array([[0.9, 0.1], [0.7, 0.3], [0.71, 0.29]]), np.array([0, 1, 0]))
    svg = reliability(found)
    assert svg.count("<use ") >= 2 and "how sure" in svg and "var(--tone-0)" in svg
    assert reliability(found) == svg


def test_recall_is_one_plot_a_direction():
    scores = {f"{way}_r{k}": k / 20 for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    metrics = [{"step": step, "loss": 1.0, "evaluation": {"knn": 0.5, **scores}} for step in (1, 2)]
    run = Run("a", Path("a"), {"steps": 2}, {}, metrics, {})
    titles = [curve.title for curve in training_curves([run], [0]).curves]
    assert [title for title in titles if "text" in title.lower()] == [
        "Image to text, validation pictures",
        "Text to image, validation pictures",
    ]
    plot = next(curve.svg for curve in training_curves([run], [0]).curves if curve.title.startswith("Image"))
    assert all(f"R@{k}" in plot for k in (1, 5, 10))
    two = training_curves([run, Run("b", Path("b"), {"steps": 2}, {}, metrics, {})], [0, 1]).curves
    assert "Image to text R@5, validation pictures" in [curve.title for curve in two]
