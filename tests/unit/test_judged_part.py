"""Which pictures a model is judged by, where a data set has no test part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from picture_sets import COLOURS, paint

from synoptic.data.sources import open_source
from synoptic.evaluation.protocols import build_evaluator, judged_part
from synoptic.evaluation.recognition import KNN, ZeroShot
from synoptic.judging import evaluate
from synoptic.models.vit import ViT, vit_config
from synoptic.predict import VisionModel
from synoptic.types import Preprocess


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder on forty pictures without a test part, of which it set a quarter apart."""
    paint(tmp_path / "set", {f"{n}/{i}.png": COLOURS[n] for n in ("red", "blue") for i in range(20)})
    model = VisionModel(ViT(vit_config("vit_mini16", depth=1, width=48, hidden=96)), Preprocess(48), "tiny")
    model.save(tmp_path / "run" / "weights")
    settings = {"data": str(tmp_path / "set"), "loader": {"validation": 0.25}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    return tmp_path / "run"


def test_without_a_test_part_a_run_is_judged_by_what_it_set_apart(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    data, judged = str(tmp_path / "set"), []
    monkeypatch.setattr(KNN, "run", lambda knn, model: judged.append(knn) or iter([("knn", 1.0)]))
    for model in (run, run / "weights", str(run / "weights" / "model.safetensors")):
        caplog.clear()
        evaluate(model, ["knn"], f"{data}/", tmp_path / "scores.json")
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]  # the other: a small bank
        assert "judging by the 0.25 of its pictures that the model's run set apart for validation" in caplog.text
        assert judged[-1].queries.paths == open_source(data, "validation", validation=0.25).paths
        assert judged[-1].bank.paths == open_source(data, "train", validation=0.25).paths
    assert json.loads((tmp_path / "scores.json").read_text())["part"] == "validation"


@pytest.mark.parametrize(
    "config", ["no JSON", '{"data": "other", "loader": {"validation": 0.25}}', "{}", '{"loader": {"validation": "x"}}']
)
def test_models_that_may_have_seen_the_judged_pictures_are_judged_with_a_warning(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, config: str
):
    (run / "config.json").write_text(config)
    evaluate(run, ["knn"], str(tmp_path / "set"))
    assert "judging by 0.1 of its pictures, on which the model may have been trained" in caplog.text


def test_the_part_that_is_judged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for part in ("train", "validation"):
        paint(tmp_path / part, {"red/1.png": COLOURS["red"], "red/2.png": COLOURS["red"]})
    assert judged_part(str(tmp_path), 0.5) == "validation"
    assert "has no test part: judging by its validation part" in caplog.text
    caplog.clear()
    paint(tmp_path / "test", {"red/1.png": COLOURS["red"]})
    assert judged_part(str(tmp_path)) == "test"
    assert not caplog.records


def test_data_without_parts_are_judged_whole_where_nothing_is_learned_from_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    paint(tmp_path, {f"{name}/{i}.png": colour for name, colour in COLOURS.items() for i in range(4)})
    data = str(tmp_path)
    assert judged_part(data, None, ["zeroshot", "retrieval", "attention"]) == "all"
    assert "judging by all of its pictures, on which the model may have been trained" in caplog.text
    for learning in ("knn", "linear", "logistic", "segmentation"):
        assert judged_part(data, None, ["zeroshot", learning]) == "validation"
    assert judged_part(data, 0.25, ["zeroshot"]) == "validation", "a run was trained on the rest"
    evaluator = build_evaluator("zeroshot", data)
    assert isinstance(evaluator, ZeroShot)
    assert len(evaluator.source) == 12
