"""Rankings of candidates: by what was judged, as sure as their seeds agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import synoptic
from synoptic.apps import cli
from synoptic.models.vit import ViT, vit_config
from synoptic.piloting import ranked
from synoptic.predict import VisionModel
from synoptic.types import Preprocess


def test_the_best_mean_comes_first_and_as_often_as_its_seeds_say() -> None:
    scores = {
        "worse": {"agreement on x": [0.1, 0.2, 0.1], "knn on x": [0.1, 0.2, 0.3]},
        "best": {"agreement on x": [0.8, 0.9, 0.8], "knn on x": [0.9, 0.9, 1.0]},
    }
    best, worse = ranked(scores, {})
    assert (best.data, best.rank, best.best, worse.best) == ("best", 1, 1.0, 0.0)
    assert best.mean == pytest.approx(5.3 / 6)
    assert 0.85 <= best.low < best.mean < best.high <= 0.9


def test_seeds_that_disagree_make_no_sure_ranking() -> None:
    scores = {"a": {"x": [0.1, 0.9, 0.5]}, "b": {"x": [0.9, 0.1, 0.45]}}
    first, second = ranked(scores, {})
    assert 0.2 < second.best < 0.6 and first.best + second.best == pytest.approx(1.0)
    (alone, _) = ranked({"a": {"x": [0.5]}, "b": {"x": [0.4]}}, {})
    assert (alone.low, alone.high) == (0.5, 0.5)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pilot")
    for seed, name in enumerate(("one", "two")):
        words = ["scenes", f"out={folder / name}", "count=60", "size=32", "objects=1", f"seed={seed}"]
        assert cli.main(words) == 0
    torch.manual_seed(0)
    VisionModel(ViT(vit_config("vit_nano8", image_size=32)), Preprocess(32), "dino").save(folder / "dino")
    return folder


def test_a_pilot_trains_judges_and_ranks(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"data={places}/one,{places}/two", f"teachers=dino:{places}/dino", f"on=knn,{places}/two"]
    sizes = ["model=vit_nano8", "size=32", "steps=2", "seeds=1", "batch=8", f"out={places}/out"]
    assert cli.main(["pilot", *words, *sizes]) == 0
    told = capsys.readouterr().out
    assert "coverage" in told and f"pilot: {places}/one, seed 0" in told
    found = json.loads((places / "out" / "pilot.json").read_text())
    assert sorted(each["rank"] for each in found) == [1, 2]
    assert set(found[0]["scores"]) == {f"agreement on {places}/two", f"knn on {places}/two"}
    itself = next(each for each in found if each["data"].endswith("two"))
    assert 0.0 <= itself["overlaps"][f"{places}/two"]["dino"]["coverage"] <= 1.0
    assert (places / "out" / "pilot.png").stat().st_size > 1000
    assert cli.main(["pilot", *words, *sizes]) == 0  # and goes on from what is there


@pytest.mark.parametrize(
    ("data", "on", "message"),
    [
        (["a"], ["x"], "give two or more different sets"),
        (["a", "a"], ["x"], "give two or more different sets"),
        (["a", "b"], ["knn"], "names no data set that the student is to be good on"),
    ],
)
def test_what_cannot_be_ranked_is_told(data: list[str], on: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        synoptic.pilot(data, "dino:x", on, tmp_path)
