"""Packing pictures into shards: what comes back, to us and to WebDataset, and what is left as it is."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset
from picture_sets import coco, fill, shard

from synoptic.config import LoaderConfig
from synoptic.data.loader import Loader
from synoptic.data.packing import pack
from synoptic.data.sources import Source, open_source
from synoptic.files import sole_writer

CAPTIONS = {f"{number:02}.png": [f"{number}", f"nr. {number}"][: number % 3] for number in range(12)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures with none, one or two captions."""
    fill(tmp_path / "images", list(CAPTIONS))
    coco(tmp_path / "captions.json", CAPTIONS)
    return tmp_path


def opened(spec: Path | str, **options: bool) -> Source:
    return open_source(str(spec), "all", **options)


def sizes(paths: list[Path]) -> list[int]:
    return [len(opened(path)) for path in paths]


# --- what comes back


def test_what_is_packed_comes_back(folder):
    source = opened(folder)
    shards = pack(source, f"{folder}/new/x-{{0..2}}.tar")
    assert [path.name for path in shards] == ["x-0.tar", "x-1.tar", "x-2.tar"] and sizes(shards) == [4, 4, 4]
    again = opened(folder / "new")
    assert again.keys == source.keys and again.captions == source.captions == [
        tuple(texts) for texts in CAPTIONS.values()
    ]
    assert again.fingerprint(True) == source.fingerprint(True)
    for place, path in zip(again.paths, source.paths, strict=True):
        assert place.read_bytes() == path.read_bytes()


def test_the_same_batches_come_of_folders_tables_and_shards(folder):
    """So a run that was begun with the one goes on with the other."""
    captions = {name: [f"of {name}", *texts, f"of {name}"] for name, texts in CAPTIONS.items()}
    pack(opened(coco(folder / "captions.json", captions)), f"{folder}/new/x-{{0..2}}.tar")
    rows = [(name, text) for name, texts in captions.items() for text in texts]
    (folder / "c.csv").write_text("path,text\n" + "".join(f"{name},{text}\n" for name, text in rows))
    sources = [
        open_source(str(folder / name), part, captions=True, images=images)
        for part in ("train", "validation")
        for name, images in (("captions.json", None), ("c.csv", f"{folder}/images"), ("new", None))
    ]
    for same in (sources[:3], sources[3:]):
        batches = [list(Loader(each, 5, 3, None, LoaderConfig()).batches(0, 4)) for each in same]
        for first, *others in zip(*batches, strict=True):
            for other in others:
                assert (first.images == other.images).all() and first.captions == other.captions
                assert first.index.tolist() == other.index.tolist()
    assert len({source.fingerprint(True) for source in sources}) == 2


def test_what_webdataset_reads_back(tmp_path):
    fill(tmp_path / "images", ["cat/1.png", "cat/2.v2.png", "dog/1.jpg"])
    coco(tmp_path / "captions.json", {"cat/1.png": ["one"], "dog/1.jpg": ["eins", "zwei"]})
    source = opened(tmp_path)
    pack(source, f"{tmp_path}/x-{{00..01}}.tar")
    read = {
        sample["__key__"]: sample
        for sample in webdataset.WebDataset(f"{tmp_path}/x-{{00..01}}.tar", shardshuffle=False).decode()
    }
    raw = {
        sample["__key__"]: sample
        for sample in webdataset.WebDataset(f"{tmp_path}/x-{{00..01}}.tar", shardshuffle=False)
    }
    assert sorted(read) == ["cat/1", "cat/2_v2", "dog/1"]
    assert [read[key]["cls"] for key in sorted(read)] == [0, 0, 1]
    assert [read[key]["json"] for key in sorted(read)] == [
        {"label": "cat"},
        {"label": "cat"},
        {"caption": ["eins", "zwei"], "label": "dog"},
    ]
    assert read["cat/1"]["txt"] == "one" and "txt" not in read["dog/1"]
    assert raw["cat/1"]["png"] == (tmp_path / "images/cat/1.png").read_bytes()
    assert raw["dog/1"]["jpg"] == (tmp_path / "images/dog/1.jpg").read_bytes()
    again = opened(tmp_path / "x-{00..01}.tar")
    assert again.classes == source.classes and again.labels.tolist() == source.labels.tolist()
    assert again.captions == source.captions


def test_a_seed_decides_the_order(folder):
    source, contents = opened(folder), {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (path,) = pack(source, f"{folder}/{name}.tar", seed)
        contents[name] = path.read_bytes()
        with tarfile.open(path) as archive:
            order = [member.name for member in archive if member.name.endswith("png")]
        assert sorted(order) == source.keys and order != source.keys
    assert contents["a"] == contents["b"] != contents["c"]


def test_shards_are_packed_anew(folder):
    pack(opened(folder), f"{folder}/one.tar")
    paths = pack(opened(folder / "one.tar"), f"{folder}/{{0..4}}.tar")
    assert Counter(sizes(paths)) == {2: 3, 3: 2}
    assert opened(folder / "{0..4}.tar").fingerprint(True) == opened(folder).fingerprint(True)


def test_names_that_would_become_one_are_numbered(tmp_path):
    fill(tmp_path / "set", ["1.png", "1.jpg", "1-2.png", "a.b/c.d.png", "a.b/c_d.png"])
    fill(tmp_path / "other", ["1.png"])
    source = opened(f"{tmp_path}/set,{tmp_path}/other")
    pack(source, f"{tmp_path}/x.tar")
    keys = ["1-2.png", "1-3.png", "1-4.png", "1.jpg", "a.b/c_d-2.png", "a.b/c_d.png"]
    assert sorted(opened(tmp_path / "x.tar").keys) == keys
    assert len(list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False))) == 6


def test_names_that_lead_elsewhere_are_not_passed_on(tmp_path):
    picture = (fill(tmp_path / "images", ["1.png"]) / "1.png").read_bytes()
    given = shard(tmp_path / "given.tar", {"../../a.png": picture, "/b/./c.png": picture, "../a.png": picture})
    (packed,) = pack(opened(given), str(tmp_path / "x.tar"))
    with tarfile.open(packed) as archive:
        assert sorted(archive.getnames()) == ["a-2.png", "a.png", "b/c.png"]


def test_any_names_and_captions(tmp_path):
    names = [
        "é/ü ñ.png",
        "x" * 200 + ".png",
        "a" * 120 + "/" + "b" * 120 + ".JPG",
        "new\nline.png",
        "{1,2}.png",
        "\udcff.png",
    ]
    fill(tmp_path / "images", names)
    coco(tmp_path / "captions.json", {name: ["ein Löwe 🦁\nzwei", "x"][:1] for name in names})
    pack(opened(tmp_path), f"{tmp_path}/x.tar")
    again = opened(tmp_path / "x.tar")
    assert sorted(again.keys) == sorted(names) and set(again.captions) == {("ein Löwe 🦁\nzwei",)}
    assert again.read(0).shape == (8, 10, 3)


def test_arrays_of_bands(tmp_path):
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.full((9, 10, 4), number, np.uint16))
    pack(opened(tmp_path), f"{tmp_path}/new/x.tar")
    again = opened(tmp_path / "new")
    assert again.keys == ["0.npy", "1.npy", "2.npy"] and (again.read(2, bands=4) == 2 / np.float32(65535)).all()


# --- what cannot be packed


def test_pictures_that_are_not_there_are_left_out(folder):
    (folder / "images" / "03.png").unlink()
    (folder / "images" / "05.png").write_bytes(b"")
    source = opened(folder / "captions.json")
    with pytest.raises(
        ValueError, match=r"1 of 12 pictures cannot be read, over 5%, such as .*; repair or remove them"
    ):
        pack(source, f"{folder}/x.tar")
    assert not list(folder.glob("*x.tar*"))
    source.allow_unreadable(0.2)
    pack(source, f"{folder}/x.tar")
    assert len(opened(folder / "x.tar")) == 10 and len(source.errors) == 2


def test_a_name_that_tells_no_picture_is_left_out(folder):
    (folder / "images" / "03.png").rename(folder / "images" / "03.bin")
    coco(folder / "captions.json", {f"{number:02}.{'bin' if number == 3 else 'png'}": [] for number in range(12)})
    source = opened(folder / "captions.json")
    source.allow_unreadable(0.2)
    pack(source, f"{folder}/x.tar")
    assert len(opened(folder / "x.tar")) == 11 and 3 in source.errors


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("x.zip", r"shards are .tar files, as in x-{000..009}.tar"),
        ("x.tar.gz", r"shards are .tar files"),
        ("x-{00..20}.tar", "names 21 shards for 12 pictures; give fewer"),
        ("x-{a,a}.tar", "names a file twice"),
        ("x-{0..}.tar", "should count"),
        ("captions.json/x.tar", "cannot be written"),
    ],
)
def test_impossible_shards(folder, out, message):
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=message):
        pack(opened(folder), f"{folder}/{out}")
    assert sorted(folder.rglob("*")) == before


# --- what is there already


def test_other_files_are_not_overwritten_unasked(folder):
    source = opened(folder)
    other = shard(folder / "x-1.tar", {"notes.txt": "mine"})
    before = other.read_bytes()
    with pytest.raises(ValueError, match=r"x-1.tar holds something else; overwrite=true replaces it"):
        pack(source, f"{folder}/x-{{0..1}}.tar")
    assert other.read_bytes() == before and not (folder / "x-0.tar").exists()
    assert sizes(pack(source, f"{folder}/x-{{0..1}}.tar", overwrite=True)) == [6, 6]
    for changed in ({"seed": 1}, {"out": "x-{0..2}.tar"}):
        with pytest.raises(ValueError, match="holds something else"):
            pack(source, f"{folder}/{changed.get('out', 'x-{0..1}.tar')}", seed=changed.get("seed", 0))
    coco(folder / "captions.json", CAPTIONS | {"00.png": ["new"]})
    with pytest.raises(ValueError, match="holds something else"):
        pack(opened(folder), f"{folder}/x-{{0..1}}.tar")


def test_shards_are_not_packed_onto_themselves(folder):
    pack(opened(folder), f"{folder}/new/x-{{0..1}}.tar")
    before = (folder / "new" / "x-0.tar").read_bytes()
    with pytest.raises(ValueError, match="is where the pictures are read from; give another place"):
        pack(opened(folder / "new"), f"{folder}/new/../new/x-0.tar", seed=1, overwrite=True)
    assert (folder / "new" / "x-0.tar").read_bytes() == before


def test_a_stopped_pack_goes_on(folder, monkeypatch):
    source = opened(folder)
    whole = [path.read_bytes() for path in pack(source, f"{folder}/whole/x-{{0..3}}.tar")]

    def stop(done: int, total: int) -> None:
        if done == 8:  # in the third of four shards
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, f"{folder}/new/x-{{0..3}}.tar", progress=stop)
    (folder / "new" / ".x-2.tar.tmp").write_bytes(b"what a killed process left")
    there = {path: path.stat().st_mtime_ns for path in (folder / "new").glob("x*.tar")}
    assert len(there) == 2
    told = []
    paths = pack(source, f"{folder}/new/x-{{0..3}}.tar", progress=lambda *progress: told.append(progress))
    assert [path.read_bytes() for path in paths] == whole
    assert all(path.stat().st_mtime_ns == before for path, before in there.items())
    assert told[-1] == (12, 12) and not list((folder / "new").glob(".*.tmp"))


def test_two_cannot_pack_into_one_place(folder):
    with sole_writer(folder / "new"), pytest.raises(ValueError, match="another process is writing there"):
        pack(opened(folder), f"{folder}/new/x.tar")


def test_masks_are_said_to_be_left_out(folder, caplog):
    fill(folder / "masks", list(CAPTIONS))
    pack(opened(folder), f"{folder}/x.tar")
    assert "its masks are not packed" in caplog.text


def test_classes_are_part_of_what_a_shard_is_made_of(folder):
    source = opened(folder)
    pack(source, f"{folder}/x.tar")
    source.classes, source.labels = ("a",), np.zeros(12, np.int64)
    with pytest.raises(ValueError, match="holds something else"):
        pack(source, f"{folder}/x.tar")
