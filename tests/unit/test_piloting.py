"""Rankings of candidates: by what was judged, as sure as their seeds agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import synoptic
from synoptic import piloting
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
    for each in ("leakage, two as dino sees it", "agreement on two", f"pilot: {places}/one, seed 0"):
        assert each in " ".join(told.split())
    record = json.loads((places / "out" / "pilot.json").read_text())
    assert (record["steps"], record["seeds"], record["model"]) == (2, 1, "vit_nano8")
    found = record["candidates"]
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


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data": ["one", "nowhere"]}, "nowhere"),
        ({"on": ["kn", "two"]}, r"on=kn: is no evaluation \(did you mean knn\?\), and as data: "),
        ({"on": ["few"]}, r"on=few: has \d+ pictures to ask about, which are too few; give at least 12"),
        ({"on": ["segmentation", "plain"]}, "masks"),
        ({"keys": {"windows": [3], "head_blocks": 2}}, "pilot: head_blocks decides nothing"),
        ({"keys": {"teacher": {"clip": {}}}}, r"teacher\.clip: is no teacher"),
    ],
    ids=str,
)
def test_mistakes_are_found_before_anything_is_trained(
    places: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(places)
    for name, count in (("few", 10), ("plain", 130)):
        (places / name).mkdir(exist_ok=True)
        for number in range(count):
            Image.new("RGB", (32, 32), (number, 2 * number % 255, 0)).save(places / name / f"{number}.png")
    monkeypatch.setattr(piloting, "train", lambda *_, **__: pytest.fail("a training began"))
    given = {"data": ["one", "two"], "teachers": "dino:dino", "on": ["two"], "out": "mistaken", **keys}
    with pytest.raises(ValueError, match=message) as error:
        synoptic.pilot(**given)
    assert "\n" not in str(error.value)


def test_a_candidate_keeps_its_folder_wherever_it_stands(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(places)
    keys = {"keys": {"model": "vit_nano8", "size": 32, "batch": 8}, "steps": 2, "seeds": 1}
    first = synoptic.pilot(["one", "two"], "dino:dino", ["two"], "turned", **keys)
    second = synoptic.pilot(["two", "one"], "dino:dino", ["two"], "turned", **keys)
    assert [each.data for each in first] == [each.data for each in second]
    assert [each.scores for each in first] == [each.scores for each in second]
    assert len([path for path in (places / "turned").iterdir() if path.is_dir()]) == 2
