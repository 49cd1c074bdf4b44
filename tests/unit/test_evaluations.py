"""All evaluations of one call: on scenes and on photographs, each picture looked at once, mistakes told first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from synoptic.data import scenes
from synoptic.data.sources import Source, open_source
from synoptic.evaluation import linear
from synoptic.evaluation.features import RawPixels, Space, embed
from synoptic.evaluation.protocols import build_evaluator, build_evaluators
from synoptic.judging import evaluate
from synoptic.models.vit import ViT, vit_config
from synoptic.predict import VisionModel
from synoptic.types import Features, Preprocess

RECOGNISERS = ("knn", "linear", "logistic", "retrieval")
SCORES = {
    "knn": ["knn", "knn_10", "knn_20", "knn_100", "knn_200"],
    "linear": ["linear", "linear_top5"],
    "logistic": ["logistic"],
    "retrieval": ["retrieval_map", "retrieval_p1"],
    "segmentation": ["segmentation_miou"],
    "attention": ["attention_jaccard", "attention_jaccard_mean"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sixty built-in scenes of one object."""
    config = scenes.SceneConfig(count=60, size=32, objects=(1, 1))
    return str(scenes.write(tmp_path_factory.mktemp("scenes") / "single", config, workers=1))


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "STEPS", (40, 40))


def untrained(depth: int = 2) -> VisionModel:
    torch.manual_seed(0)
    config = vit_config("vit_mini8", depth=depth, width=24, heads=2, hidden=48, image_size=32)
    return VisionModel(ViT(config), Preprocess(32), "untrained")


class Counting(VisionModel):
    """Notes how many pictures it is shown."""

    def __init__(self) -> None:
        plain = untrained()
        super().__init__(plain.model, plain.preprocess, plain.name)
        self.shown = 0

    def encode_image(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        self.shown += len(images)
        return super().encode_image(images, layers)


def test_all_evaluations_of_scenes(data: str):
    scores = evaluate(untrained(), SCORES, data)
    assert list(scores) == [name for names in SCORES.values() for name in names]
    assert all(0 <= score <= 1 for score in scores.values())
    assert scores == evaluate(untrained(), SCORES, data), "a second time"


def test_several_together_look_at_every_picture_once_and_say_what_each_says_alone(data: str):
    model = Counting()
    together = evaluate(model, RECOGNISERS, data)
    assert model.shown == len(open_source(data, "train")) + len(open_source(data, "test"))
    alone: dict[str, float] = {}
    for name in RECOGNISERS:
        alone |= dict(build_evaluator(name, data).run(untrained()))
    assert together == pytest.approx(alone, abs=1e-6)


def test_retrieval_alone_looks_at_the_judged_part_alone(data: str):
    model = Counting()
    evaluate(model, ["retrieval"], data)
    assert model.shown == 12


def test_those_that_read_vectors_are_joined_in_place(data: str):
    names = [type(each).__name__ for each in build_evaluators(["segmentation", "knn", "attention", "linear"], data)]
    assert names == ["Segmentation", "Together", "AttentionOverlap"]
    assert [type(each).__name__ for each in build_evaluators(["knn", "knn"], data)] == ["KNN"]
    joined = build_evaluators(["retrieval", "logistic"], data)
    assert [type(each).__name__ for each in joined] == ["Together", "CaptionRetrieval"]


def test_what_a_model_lacks_is_told_before_it_is_shown_a_picture(data: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Source, "read", lambda *_: pytest.fail("a picture was read"))
    torch.manual_seed(0)
    config = vit_config("vit_mini8", depth=1, width=24, heads=2, hidden=48, image_size=32, summary_tokens=0)
    model = VisionModel(ViT(config), Preprocess(32), "headless")
    with pytest.raises(ValueError, match="on=attention: the model is no Vision Transformer with a summary token"):
        evaluate(model, ["knn", "attention"], data)


@pytest.mark.parametrize(("depth", "blocks"), [(1, [-1]), (6, [-4, -3, -2, -1])])
def test_vectors_of_blocks_are_those_of_the_layers(data: str, depth: int, blocks: list[int]):
    model, source = untrained(depth), open_source(data, "test")
    spaces = [Space(block=block, pooling=pooling, unit=False) for block in range(-4, 0) for pooling in POOLINGS]
    found = embed(model, source, spaces).vectors
    assert {space.block for space in found} == set(blocks)
    images = torch.stack([torch.from_numpy(source.read(i)).permute(2, 0, 1) / 255 for i in range(len(source))])
    layers = model(images, blocks).layers
    for block, layer in zip(blocks, layers, strict=True):
        torch.testing.assert_close(found[Space(block=block, unit=False)], layer.summary, rtol=1e-4, atol=1e-5)
        patches = found[Space(block=block, pooling="patches", unit=False)]
        torch.testing.assert_close(patches, layer.patches.mean(1), rtol=1e-4, atol=1e-5)
    unit = embed(model, source, [Space(block=-1)]).vectors[Space(block=-1)]
    np.testing.assert_allclose(unit.norm(dim=1), 1, rtol=1e-5)


POOLINGS = ("summary", "patches")


def test_a_model_without_blocks_is_probed_by_its_answer(data: str):
    scores = dict(build_evaluator("linear", data).run(RawPixels(8)))
    assert list(scores) == SCORES["linear"]


def test_photographs(data_dir: Path, tmp_path: Path):
    """Five classes, a few pictures of each."""
    for part, count in (("train", 12), ("test", 4)):
        for folder in sorted((data_dir / "imagenette96" / part).iterdir())[:5]:
            (tmp_path / part / folder.name).mkdir(parents=True)
            for path in sorted(folder.iterdir())[:count]:
                (tmp_path / part / folder.name / path.name).symlink_to(path)
    scores = evaluate(untrained(), RECOGNISERS, str(tmp_path))
    assert "linear" in scores
    assert "linear_top5" not in scores
    assert scores["retrieval_map"] > 4 / 20 - 0.05  # chance is about the share of a class
    with pytest.raises(ValueError, match="has no masks"):
        evaluate(untrained(), ["attention"], str(tmp_path))
