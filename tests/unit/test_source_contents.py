"""What named data holds: pictures that are read or passed over, built-in scenes, real photographs."""

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from picture_sets import fill
from PIL import Image

from synoptic.data.sources import open_source

# --- reading


def test_unreadable_pictures_are_passed_over_and_recorded(tmp_path):
    fill(tmp_path / "set", [f"{number:03d}.png" for number in range(60)])
    for name in ("007.png", "030.png"):
        (tmp_path / "set" / name).write_bytes(b"rubbish")
    source = open_source(str(tmp_path / "set"), "all")
    source.record_errors(tmp_path / "data_errors.jsonl")
    for _ in range(2):
        found = list(source.pictures(longest=5))
        assert [index for index, _ in found] == [index for index in range(60) if index not in (7, 30)]
        assert all(picture.shape == (4, 5, 3) for _, picture in found)
    lines = [json.loads(line) for line in (tmp_path / "data_errors.jsonl").read_text().splitlines()]
    assert [(Path(line["path"]).name, line["reason"]) for line in lines] == [
        ("007.png", "not a picture"),
        ("030.png", "not a picture"),
    ]


def test_too_many_unreadable_pictures_are_an_error(tmp_path):
    fill(tmp_path, [f"{number}.png" for number in range(20)])
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(b"rubbish")
    source = open_source(str(tmp_path), "all")
    with pytest.raises(ValueError, match="2 of 20 pictures cannot be read, over 5%"):
        list(source.pictures())


def test_a_source_survives_the_way_between_processes(tmp_path):
    source = pickle.loads(pickle.dumps(open_source(str(fill(tmp_path, ["a/1.png", "b/2.png"])), "all")))
    assert source.classes == ("a", "b") and source.read(1).shape == (8, 10, 3)


# --- scenes


def test_built_in_scenes(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = "scenes:count=30,size=32,objects=1,seed=3"
    train, validation, test = (open_source(spec, part, captions=True) for part in ("train", "validation", "test"))
    assert caplog.text.count("drawing 30 scenes") == 1
    assert (len(train) + len(validation), len(test)) == (24, 6)
    assert train.read(0).shape == (32, 32, 3)
    assert train.labels is not None and all(len(captions) == 5 for captions in train.captions)
    for source in (train, test):
        assert all(
            path.parent.name == source.classes[label] for path, label in zip(source.paths, source.labels, strict=True)
        )
    assert set(test.classes) >= set(train.classes) and test.classes[: len(train.classes)] == train.classes
    fill(tmp_path / "more", ["1.png", "2.png"])
    assert len(open_source(f"{tmp_path}/more,{spec}", "all")) == 2 + 24


def test_scenes_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot write .* set XDG_CACHE_HOME"):
        open_source("scenes:count=10,size=32")


# --- real photographs


def test_imagenette(data_dir):
    train, validation, test = (
        open_source(str(data_dir / "imagenette96"), part) for part in ("train", "validation", "test")
    )
    assert (len(train), len(validation), len(test)) == (4500, 500, 1000)
    assert len(train.classes) == 10 and train.classes == test.classes
    assert np.bincount(test.labels).tolist() == [100] * 10
    assert np.bincount(validation.labels, minlength=10).min() > 20
    assert len(list(test.pictures())) == 1000


def test_coco_captions(data_dir):
    path = data_dir / "coco_mini" / "captions_train.json"
    train, validation = (open_source(str(path), part, captions=True) for part in ("train", "validation"))
    assert (len(train), len(validation)) == (280, 31)
    assert all(len(captions) == 5 for captions in train.captions)
    assert all(path.is_file() for path in train.paths)


def test_camvid_masks(data_dir):
    for part, count in (("train", 184), ("validation", 50), ("test", 117)):
        source = open_source(str(data_dir / "camvid240"), part)
        assert len(source) == count == len(source.masks)
        assert source.read(0).shape[:2] == np.asarray(Image.open(source.masks[0])).shape[:2]
