"""Average precision as COCO's own code finds it, of all and of each category, and files that are none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_detectors import small_detector

import synoptic
from synoptic.apps.cli import main
from synoptic.detection.detections import Detections
from synoptic.evaluation.detection import CocoDetection, read_annotated

SIZE = (60, 80)
BOXES = [  # picture, category, left, top, width, height
    (1, 7, 10, 10, 30, 20),
    (1, 3, 50, 30, 20, 20),
    (2, 7, 5, 5, 40, 40),
    (2, 7, 50, 5, 10, 10),
]


def content() -> dict[str, Any]:
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "height": SIZE[0], "width": SIZE[1]} for n in (1, 2, 3)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "red car"}, {"id": 9, "name": "lamp"}],
        "annotations": [
            {"id": n, "image_id": picture, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (picture, category, *box) in enumerate(BOXES, 1)
        ],
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    for n in (1, 2, 3):
        Image.fromarray(random.integers(0, 256, (*SIZE, 3), np.uint8)).save(tmp_path / "images" / f"{n}.png")
    (tmp_path / "instances.json").write_text(json.dumps(content()))
    return tmp_path / "instances.json"


class Teller:
    """Answers with boxes that it is told: picture, label, left, top, width, height, score."""

    def __init__(self, told: Sequence[tuple[float, ...]]):
        self.told = told

    def objects(
        self, paths: Sequence[Path], names: Sequence[str], limit: int, names_per_prompt: int | None = None
    ) -> Iterator[Detections | None]:
        for path in paths:
            rows = np.array([row[1:] for row in self.told if row[0] == int(path.stem)], np.float32).reshape(-1, 6)
            boxes = np.concatenate([rows[:, 1:3], rows[:, 1:3] + rows[:, 3:5]], 1)
            yield Detections(boxes, rows[:, 5], rows[:, 0].astype(int), tuple(names), SIZE, str(path))


RIGHT = [(p, {7: 0, 3: 1}[c], *box, 0.9) for p, c, *box in BOXES]


def test_all_found_is_all(data: Path) -> None:
    scores = dict(CocoDetection(read_annotated(data)).run(Teller(RIGHT)))
    assert (scores["ap"], scores["ap_50"], scores["ar_100"]) == pytest.approx((1.0, 1.0, 1.0))
    assert (scores["ap/cat"], scores["ap/red car"]) == pytest.approx((1.0, 1.0))
    assert "ap/lamp" not in scores  # of which there are no boxes


def test_progress_is_told_of_each_picture(data: Path) -> None:
    told: list[tuple[int, int]] = []
    list(CocoDetection(read_annotated(data), lambda *place: told.append(place)).run(Teller(RIGHT)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_nothing_found_is_nothing(data: Path) -> None:
    scores = dict(CocoDetection(read_annotated(data)).run(Teller([])))
    assert scores["ap"] == scores["ap/cat"] == 0.0


def test_scores_are_those_of_coco_s_own_way(data: Path, tmp_path: Path) -> None:
    """Through its own files, as `pycocotools` is used."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    random = np.random.default_rng(1)
    told = [
        (p, label, *(np.array(box) + random.normal(0, 2, 4)).clip(1).tolist(), float(random.random()))
        for p, label, *box, _ in (*RIGHT, *RIGHT, (3, 2, 10, 10, 20, 20, 0.5))
    ]
    evaluator = CocoDetection(read_annotated(data))
    scores = dict(evaluator.run(Teller(told)))
    (tmp_path / "results.json").write_text(json.dumps(evaluator.results(Teller(told))[0]))
    truth = COCO(str(data))
    theirs = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    assert scores["ap"] == pytest.approx(theirs.stats[0])
    assert scores["ap_50"] == pytest.approx(theirs.stats[1])
    assert scores["ar_100"] == pytest.approx(theirs.stats[8])
    assert 0 < scores["ap"] < 1


def test_pictures_that_cannot_be_read_are_counted_and_named(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    small_detector().save(data.parent / "weights")
    (data.parent / "images" / "1.png").unlink()
    (data.parent / "images" / "3.png").write_text("junk")
    page, out = data.parent / "page.html", data.parent / "scores.json"
    words = [str(data.parent / "weights"), "on=detection", f"data={data}", "names_per_prompt=1"]
    assert main(["evaluate", *words, f"report={page}", f"out={out}"]) == 0
    assert "2 of the pictures could not be read" in page.read_text()
    assert json.loads(out.read_text())["unread"] == 2
    assert "left out 3.png" in caplog.text


def test_names_per_prompt_decide_what_is_asked(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    model = small_detector()
    ground = type(model.model).ground

    def counted(self: Any, pyramid: Any, words: Any, every: bool = False) -> Any:
        asked.append(len(words.phrases[0]))
        return ground(self, pyramid, words, every)

    monkeypatch.setattr(type(model.model), "ground", counted)
    synoptic.evaluate(model, "detection", str(data), names_per_prompt=1)
    assert asked == [3] * 9  # start, a name and end, of three names and pictures
    with pytest.raises(ValueError, match="names_per_prompt= decides nothing"):
        synoptic.evaluate(model, "knn", str(data), names_per_prompt=1)


def test_the_worst_mistakes_are_named(data: Path) -> None:
    told = [
        (1, 0, 10, 10, 30, 20, 0.5),  # right
        (1, 1, 11, 10, 30, 20, 0.9),  # a red car where a cat is
        (2, 0, 5, 5, 40, 40, 0.8),  # right
        (2, 0, 6, 5, 40, 40, 0.7),  # the same cat again
        (3, 2, 10, 10, 20, 20, 0.6),  # nothing
    ]
    judged = CocoDetection(read_annotated(data)).judge(Teller(told))
    mistakes = judged.mistakes(10)
    assert [(each.path.stem, each.name, each.kind) for each in mistakes] == [
        ("1", "red car", "is cat"),
        ("2", "cat", "found twice"),
        ("3", "lamp", "nothing there"),
    ]
    assert [name for name, _ in mistakes[0].there] == ["cat", "red car"]
    assert len(judged.mistakes(2)) == 2
    assert judged.counts() == [3, 1, 0]


def test_curves_fall_from_all_right_to_all_found(data: Path) -> None:
    judged = CocoDetection(read_annotated(data)).judge(Teller([*RIGHT, (3, 0, 1, 1, 20, 20, 0.1)]))
    recall, precision = judged.curve(0)
    assert (recall[0], recall[-1]) == (0.0, 1.0)
    assert precision == pytest.approx(1.0)
    both = [judged.curve(0, place)[1] for place in (0, 1)]
    np.testing.assert_allclose(precision, np.mean(both, 0))


def test_a_page_tells_and_shows(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_detector().save(data.parent / "weights")
    page, out = data.parent / "page.html", data.parent / "scores.json"
    words = [f"model={data.parent / 'weights'}", "on=detection", f"data={data}", f"report={page}", f"out={out}"]
    assert main(["evaluate", *words]) == 0
    html = page.read_text()
    assert all(each in html for each in ("Precision over recall", "Worst mistakes", "Categories", "red car", "<svg"))
    assert "data:image/jpeg" in html
    assert "lamp</" not in html.split("Categories")[1].split("<table")[1].split("</table>")[0]
    assert json.loads(out.read_text())["ap"] >= 0
    assert str(page) in capsys.readouterr().out
    assert main(["evaluate", *words[:1], "on=knn", *words[2:4]]) == 2
    assert "is for on=detection alone" in capsys.readouterr().err
    assert main(["evaluate", *words, "sizes=32"]) == 2
    assert "sizes= decides nothing for on=detection" in capsys.readouterr().err


def test_a_detector_is_judged_by_name(data: Path, tmp_path: Path) -> None:
    model = small_detector()
    scores = synoptic.evaluate(model, on=["detection"], data=str(data), out=tmp_path / "scores.json")
    assert 0 <= scores["ap"] <= 1
    assert json.loads((tmp_path / "scores.json").read_text())["ap"] == scores["ap"]
    (data.parent / "images" / "3.png").write_text("junk")
    (data.parent / "images" / "2.png").unlink()
    assert 0 <= synoptic.evaluate(model, on=["detection"], data=str(data))["ap"] <= 1


def test_who_finds_nothing_is_told(data: Path) -> None:
    with pytest.raises(ValueError, match="finds no objects"):
        synoptic.evaluate(synoptic.load("vit_nano8"), on=["detection"], data=str(data))
    with pytest.raises(ValueError, match="should be a JSON file of COCO's form"):
        synoptic.evaluate(small_detector(), on=["detection"], data=str(data.parent))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.pop("images"), "is no JSON of COCO's form"),
        (lambda c: c["annotations"][0].pop("bbox"), "is no JSON of COCO's form"),
        (lambda c: c["annotations"][0].update(category_id=77), "category 77"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2]), "no left, top, width and height"),
        (lambda c: c["annotations"][0].update(bbox="abcd"), "no left, top, width and height"),
        (lambda c: c["annotations"][0].update(bbox=[0, 0, -1, 5]), "no left, top, width and height"),
        (lambda c: c["annotations"][0].update(image_id=[1]), "is no JSON of COCO's form"),
        (lambda c: c.update(annotations=[]), "no object to be found"),
        (lambda c: [each.update(iscrowd=1) for each in c["annotations"]], "no object to be found"),
        (lambda c: c["categories"].append({"id": 8, "name": "cat"}), "no different names"),
        (lambda c: c["categories"].append({"id": 7, "name": "dog"}), "two of one category's id"),
        (lambda c: [each.update(file_name="x.png") for each in c["images"]], "holds none of the 3 pictures"),
    ],
)
def test_files_that_make_no_sense_are_refused(data: Path, change: Any, told: str) -> None:
    values = content()
    change(values)
    data.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=told):
        read_annotated(data)
