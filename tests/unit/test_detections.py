"""What was found, in the forms in which others read it, and drawn."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from synoptic.apps.detection_files import beneath
from synoptic.detection.detections import Detections, to_coco, to_csv, to_json
from synoptic.detection.drawing import colour_of

FOUND = Detections(
    np.array([[10, 20, 30, 60], [0, 0, 99.5, 79.25]], np.float32),
    np.array([0.9, 0.25], np.float32),
    np.array([1, 0]),
    ("cat", "red car"),
    (80, 100),
    "a/b.jpg",
)


def test_names_of_what_was_found() -> None:
    assert len(FOUND) == 2
    assert FOUND.found == ["red car", "cat"]


def test_a_dictionary_is_read_back() -> None:
    values = json.loads(json.dumps(FOUND.to_dict()))
    assert values["objects"][0] == {"label": 1, "name": "red car", "score": 0.9, "box": [10, 20, 30, 60]}
    again = Detections.from_dict(values, FOUND.names)
    np.testing.assert_array_equal(again.boxes, FOUND.boxes)
    np.testing.assert_array_equal(again.labels, FOUND.labels)
    assert (again.size, again.path, again.names) == (FOUND.size, FOUND.path, FOUND.names)


def test_words_of_a_sentence_are_kept() -> None:
    said = Detections(FOUND.boxes[:1], FOUND.scores[:1], np.array([0]), ("red car",), (80, 100), "x", (((2, 9),),))
    assert Detections.from_dict(said.to_dict(), ("cat", "red car")).spans == (((2, 9),),)


def test_some_objects_are_chosen() -> None:
    sure = FOUND[FOUND.scores > 0.5]
    assert sure.scores.tolist() == FOUND.scores[FOUND.scores > 0.5].tolist()
    assert (sure.names, sure.size) == (FOUND.names, FOUND.size)
    assert len(FOUND[:1]) == 1
    said = Detections(FOUND.boxes[:1], FOUND.scores[:1], np.array([0]), ("car",), (80, 100), "x", (((2, 9),),))
    assert said[[0]].spans == (((2, 9),),)


def test_category_ids_are_as_many_as_names() -> None:
    with pytest.raises(ValueError, match="1 category_ids were given for"):
        FOUND.to_coco(1, [17])


def test_a_turned_picture_is_drawn_upright() -> None:
    picture = Image.new("RGB", (FOUND.size[0], FOUND.size[1]))
    picture.getexif()[0x0112] = 6  # turned by a quarter
    assert FOUND.draw(picture).size == (FOUND.size[1], FOUND.size[0])
    with pytest.raises(ValueError, match=r"an array \(H, W, 3\) of bytes or a file, got float64"):
        FOUND.draw(np.zeros((*FOUND.size, 3)))


def test_results_are_coco_s() -> None:
    first, second = FOUND.to_coco(7, category_ids=[18, 3])
    assert first == {"image_id": 7, "category_id": 3, "bbox": [10, 20, 20, 40], "score": 0.9}
    assert second["bbox"] == [0, 0, 99.5, 79.25]


def test_a_data_set_is_read_by_coco_s_own_code(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    (tmp_path / "found.json").write_text(to_coco([FOUND, FOUND], FOUND.names))
    coco = COCO(tmp_path / "found.json")
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["a/b.jpg"] * 2
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == ["cat", "red car"]
    assert len(coco.loadAnns(coco.getAnnIds(imgIds=[2], catIds=[2]))) == 1


def test_lines_of_yolo_are_shares_of_the_picture() -> None:
    assert FOUND.to_yolo() == "1 0.200000 0.500000 0.200000 0.500000\n0 0.497500 0.495312 0.995000 0.990625\n"


def test_a_table_has_a_line_an_object() -> None:
    rows = list(csv.DictReader(to_csv([FOUND]).splitlines()))
    assert rows[0] == {
        **{"path": "a/b.jpg", "label": "1", "name": "red car", "score": "0.90000"},
        **{"left": "10.00", "top": "20.00", "right": "30.00", "bottom": "60.00"},
    }


def test_json_has_a_line_an_object_and_tells_what_was_asked() -> None:
    none = Detections(FOUND.boxes[:0], FOUND.scores[:0], FOUND.labels[:0], FOUND.names, (5, 6), "empty.jpg")
    text = to_json([FOUND, none], FOUND.names, {"threshold": 0.3})
    told = json.loads(text)
    assert told["asked"] == {"threshold": 0.3}
    assert told["names"] == ["cat", "red car"]
    assert [len(each["objects"]) for each in told["images"]] == [2, 0]
    assert text.count("\n") < 12


def test_supervision_is_handed_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=dict))  # type: ignore[arg-type]
    theirs = FOUND.to_supervision()
    assert theirs["xyxy"] is FOUND.boxes
    assert theirs["data"]["class_name"].tolist() == ["red car", "cat"]


def test_without_supervision_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pip install supervision"):
        FOUND.to_supervision()


def test_boxes_are_drawn_in_the_colour_of_their_class(tmp_path: Path) -> None:
    grey = np.full((80, 100, 3), 128, np.uint8)
    drawn = np.asarray(FOUND.draw(grey))
    assert drawn.shape == grey.shape
    assert tuple(drawn[59, 20]) == colour_of(1)
    assert (drawn[30:50, 14:26] == 128).all()
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(np.asarray(FOUND.draw(tmp_path / "grey.png")), drawn)
    assert (grey == 128).all()


def test_a_picture_of_another_size_is_not_drawn_on() -> None:
    with pytest.raises(ValueError, match="is of 10 x 10 pixels, and these objects are of one of 100 x 80"):
        FOUND.draw(Image.new("RGB", (10, 10)))
    unnamed = Detections(FOUND.boxes, FOUND.scores, FOUND.labels, FOUND.names, FOUND.size)
    with pytest.raises(ValueError, match="given without a file"):
        unnamed.draw()


def test_files_lie_as_their_pictures_do() -> None:
    paths = [Path("in/a/x.jpg"), Path("in/b/x.jpg"), Path("in/b/y.jpg"), Path("in/b/y.png")]
    names = [str(path) for path in beneath(paths, ".txt")]
    assert names == ["a/x.txt", "b/x.txt", "b/y.jpg.txt", "b/y.png.txt"]
    assert beneath([], ".txt") == []
    assert beneath([Path("in/x.jpg")], ".txt") == [Path("x.txt")]
