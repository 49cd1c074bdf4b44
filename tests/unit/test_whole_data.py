"""What is true of all the pictures of a run together: what tells them from others, and how many may be broken."""

import json

import pytest
from picture_sets import coco, fill

from synoptic.data.sources import concatenate, open_source, share_errors

# --- what tells data apart


def test_a_fingerprint_tells_data_apart_wherever_they_lie(tmp_path):
    names = ["cat/1.png", "cat/2.png", "dog/3.png"]
    one, same = (open_source(str(fill(tmp_path / place, names)), "all") for place in ("here", "there/deep"))
    assert one.fingerprint(False) == same.fingerprint(False)
    assert one.fingerprint(False) == concatenate([one.select([0]), same.select([1, 2])]).fingerprint(False)
    others = [
        ["cat/1.png", "cat/2.png"],
        ["cat/1.png", "cat/2.png", "dog/4.png"],
        ["cat/1.png", "dog/2.png", "dog/3.png"],
    ]
    found = {
        open_source(str(fill(tmp_path / str(number), other)), "all").fingerprint(False)
        for number, other in enumerate(others)
    }
    assert len(found | {one.fingerprint(False)}) == 4


def test_captions_count_where_they_are_used(tmp_path):
    fill(tmp_path / "images", ["1.png", "2.png"])
    prints = []
    for captions in ({"1.png": ["a"], "2.png": ["b", "c"]}, {"1.png": ["a", "b"], "2.png": ["c"]}):
        source = open_source(str(coco(tmp_path / "captions.json", captions)), "all")
        prints.append((source.fingerprint(False), source.fingerprint(True)))
    assert prints[0][0] == prints[1][0]
    assert len({*prints[0], *prints[1]}) == 3


# --- unreadable pictures of several parts


def test_parts_that_share_their_list_are_judged_together(tmp_path):
    """One broken picture of ten is no reason to stop where it is one of a hundred."""
    train = open_source(str(fill(tmp_path / "train", [f"{n:02d}.png" for n in range(90)])), "all")
    validation = open_source(str(fill(tmp_path / "val", [f"{n}.png" for n in range(10)])), "all")
    (tmp_path / "val" / "4.png").write_bytes(b"broken")
    share_errors([train, validation])
    train.record_errors(tmp_path / "errors.jsonl")
    sample = validation.sample(5)
    assert [path.name for path in sample.paths] == ["0.png", "2.png", "4.png", "6.png", "8.png"]
    assert [index for index, _ in sample.pictures()] == [0, 1, 3, 4]
    assert 2 in sample.errors and 4 in validation.errors and 4 not in train.errors
    assert (len(sample.errors), len(validation.errors), len(train.errors)) == (1, 1, 0)
    assert len(list(validation.pictures())) == 9
    (line,) = (tmp_path / "errors.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == str(tmp_path / "val" / "4.png")
    for name in range(5):
        (tmp_path / "train" / f"{name:02d}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"train,.*val: 6 of 100 pictures cannot be read"):
        list(train.pictures())


def test_a_sample_of_few_is_all_of_them(tmp_path):
    source = open_source(str(fill(tmp_path, ["1.png", "2.png"])), "all")
    assert source.sample(2) is source
