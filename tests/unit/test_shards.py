"""Pictures in WebDataset shards: which there are, what is known of them, and shards that are not as they should be."""

from __future__ import annotations

import gzip
import io
import json
import logging
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from picture_sets import fill, png, shard, tiff

from synoptic.config import LoaderConfig
from synoptic.data import shard_names, shards
from synoptic.data.loader import Loader
from synoptic.data.look import tell_depth
from synoptic.data.members import Member
from synoptic.data.pictures import PictureError
from synoptic.data.shard_names import braces, pattern_of
from synoptic.data.sources import Source, open_source, parts_of


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def opened(spec: Path | str, split: str = "all", **options: bool) -> Source:
    return open_source(str(spec), split, **options)


def samples(*names: str) -> dict[str, bytes | str]:
    """A picture and a caption for each name."""
    return {f"{name}.{kind}": content for name in names for kind, content in (("png", png()), ("txt", f"of {name}"))}


# --- what is in a shard


def test_pictures_captions_and_classes(tmp_path):
    members = {
        "a/2.PNG": png(2),
        "a/2.json": json.dumps({"caption": ["two", "zwei", "two"], "label": "cat", "width": 10}),
        "a/2.cls": "0",
        "b.x/1.png": png(1),
        "b.x/1.txt": "\ufeff one\n",
        "b.x/1.json": json.dumps({"text": ["one", "eins"], "title": "of a page"}),
        "b.x/1.cls": "7\n",
    }
    source = opened(shard(tmp_path / "x.tar", members))
    assert source.keys == ["a/2.PNG", "b.x/1.png"]
    assert source.captions == [("two", "zwei", "two"), ("one", "eins")]
    assert source.classes == ("7", "cat") and source.labels.tolist() == [1, 0]
    assert [source.read(index)[0, 0, 0] for index in range(2)] == [2, 1]
    assert source.name(1) == f"{tmp_path}/x.tar/b.x/1.png" and source.paths[1].name == "1.png"
    assert source.read(0, longest=5).shape == (4, 5, 3)


def test_a_class_that_some_lack_is_none_and_told(tmp_path, caplog):
    assert opened(shard(tmp_path / "x.tar", {"1.png": png(), "1.cls": "3", "2.png": png()})).labels is None
    assert f"{tmp_path / 'x.tar'}: no classes are used, since 1 of its 2 pictures have none" in caplog.text
    caplog.clear()
    assert opened(shard(tmp_path / "y.tar", {"1.png": png()})).labels is None and not caplog.text


def test_what_webdataset_wrote(tmp_path):
    with webdataset.ShardWriter(f"{tmp_path}/x-%03d.tar", maxcount=2, verbose=0) as writer:
        for number in range(5):
            named = {
                "__key__": f"{number:05d}",
                "png": png(number),
                "json": {"caption": f"number {number}"},
                "cls": number % 2,
            }
            writer.write(named)
    for spec in (f"{tmp_path}/x-{{000..002}}.tar", f"{tmp_path}/x-*.tar", f"{tmp_path}/x-00{{0,1,2}}.tar", tmp_path):
        source = opened(spec)
        assert [source.read(index)[0, 0, 0] for index in range(5)] == [0, 1, 2, 3, 4]
        assert source.captions == [(f"number {number}",) for number in range(5)]
        assert source.classes == ("0", "1") and source.labels.tolist() == [0, 1, 0, 1, 0]


def test_members_in_any_order_and_among_others(tmp_path, caplog):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}) as archive:

        def add(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **attributes: str) -> None:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.pax_headers = kind, len(content), attributes
            member.linkname = "1.png" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            archive.addfile(member, io.BytesIO(content))

        long = "é" * 300
        add("./1.txt", b"one")
        add("folder", kind=tarfile.DIRTYPE)
        add(f"{long}/2.png", png(2), mtime="1.5", path=f"{long}/2.png")
        add("__meta__/x.png", png())
        add("._1.png", b"of macOS")
        add("README", b"no ending")
        add("link.png", kind=tarfile.SYMTYPE)
        add("hard.png", kind=tarfile.LNKTYPE)
        add("3.txt", b"no picture")
        add("1.png", png(1))
        add("1.jpg", png(3))
        add("1.seg.png", png(4))
        add(f"{long}/2.txt", b"zwei")
    source = opened(tmp_path / "x.tar")
    assert source.keys == ["1.png", f"{long}/2.png"] and source.captions == [("one",), ("zwei",)]
    assert [source.read(index)[0, 0, 0] for index in range(2)] == [1, 2]
    told = "links and other members that are no files (2), members of a key and kind that was there already (1)"
    assert f"{told}, samples without a picture (1)" in caplog.text


def test_texts_that_are_none_are_counted(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(shards, "LARGEST_TEXT", 100)
    texts = {
        "1.txt": b" ",
        "2.txt": b"\xff",
        "3.json": b"{",
        "4.json": b'{"caption": [3, "", "x"]}',
        "5.txt": b"x" * 101,
    }
    texts |= {"6.json": b"[1]", "7.json": b"[" * 90}
    source = opened(shard(tmp_path / "x.tar", {f"{number}.png": png() for number in range(1, 8)} | texts))
    assert source.captions == [(), (), (), ("x",), (), (), ()]
    for told in ("empty captions (2)", "texts that are not JSON (2)", "texts that are not UTF-8 (1)", "MiB (1)"):
        assert told in caplog.text
    assert opened(tmp_path / "x.tar", captions=True).keys == ["4.png"]


def test_no_captions_at_all(tmp_path):
    path = shard(tmp_path / "x.tar", {"1.png": png(), "2.png": png()})
    with pytest.raises(ValueError, match=r"x.tar has no captions: none of its pictures has a .txt, or a .json with"):
        opened(path, captions=True)
    with pytest.raises(ValueError, match=r"has no captions: none of its pictures has a .txt"):
        opened(tmp_path, captions=True)


def test_keys_tell_shards_apart_where_they_share_names(tmp_path):
    for name in "ab":
        shard(tmp_path / f"{name}.tar", samples("1", "2"))
    source = opened(tmp_path / "{a,b}.tar")
    assert source.keys == ["a.tar/1.png", "b.tar/1.png", "a.tar/2.png", "b.tar/2.png"]
    assert [path.archive.name for path in source.paths] == ["a.tar", "b.tar", "a.tar", "b.tar"]


def test_all_bands_and_all_bits(tmp_path, caplog):
    bands = np.arange(9 * 10 * 4, dtype=np.uint16).reshape(9, 10, 4) * 99
    array = io.BytesIO()
    np.save(array, bands)
    contents = {"1.tif": tiff(tmp_path / "1.tif", bands).read_bytes(), "2.npy": array.getvalue()}
    source = opened(shard(tmp_path / "x.tar", contents))
    for index in range(2):
        np.testing.assert_array_equal(source.read(index, bands=4), bands / np.float32(65535))
    lies = io.BytesIO()
    np.lib.format.write_array_header_1_0(lies, {"descr": "<f4", "fortran_order": False, "shape": (10**7, 10**7, 4)})
    with pytest.raises(PictureError):
        opened(shard(tmp_path / "y.tar", {"1.npy": lies.getvalue()})).read(0, bands=4)
    grey = tiff(tmp_path / "3.tif", bands[:, :, :1]).read_bytes()
    tell_depth(opened(shard(tmp_path / "z.tar", {"3.tif": grey})), [0])
    assert "1 of 1 pictures looked at have 16 bits, such as" in caplog.text and "z.tar/3.tif" in caplog.text


# --- which shards


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x-{000..002}.tar", ["x-000.tar", "x-001.tar", "x-002.tar"]),
        ("x-{8..11}.tar", ["x-8.tar", "x-9.tar", "x-10.tar", "x-11.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("x.tar", ["x.tar"]),
    ],
)
def test_braces(pattern, names):
    assert [str(path) for path in braces(pattern)] == names


@pytest.mark.parametrize(
    "pattern",
    ["x-{000..012}.tar", "x-{8..11}.tar", "a1/x{00..99}.tar", "{a-7-of-9,a-8-of-9}.tar", "{b,a}.tar", "{7,3,9}.tar"],
)
def test_the_pattern_behind_names_that_a_shell_made(pattern):
    assert pattern_of([str(path) for path in braces(pattern)]) == pattern


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("x-{0..3}.tar", r"x-{0..3}.tar: 2 of its 4 shards are missing, such as .*x-2.tar"),
        ("x-{0..2}.tar", r"x-{0..2}.tar: a shard is missing, .*x-2.tar"),
        ("x-{0..}.tar", r"{0..} should count, as in {000..009}, or choose"),
        ("x-{3..0}.tar", "{3..0} should count upwards"),
        ("x-{0..99}{0..99}.tar", "means more than 1,000 shards"),
        ("y-*.tar", "no file matches .*y-"),
        ("x-9.tar", "x-9.tar does not exist; did you mean"),
        ("none", "none holds no picture with a name such as 0001.jpg"),
    ],
)
def test_shards_that_are_not_there(tmp_path, monkeypatch, spec, message):
    monkeypatch.setattr(shard_names, "MOST", 1000)
    for number in range(2):
        shard(tmp_path / f"x-{number}.tar", samples(str(number)))
    shard(tmp_path / "none" / "x.tar", {"notes.txt": "x"})
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / spec)


def test_a_folder_of_shards_may_have_parts_and_other_sets_beside_it(tmp_path):
    for part, labels in (("train", "ac"), ("test", "cb")):
        members = {
            f"{n}.{kind}": png() if kind == "png" else label
            for n, label in enumerate(labels)
            for kind in ("png", "cls")
        }
        shard(tmp_path / "set" / part / "0.tar", members)
    assert parts_of(str(tmp_path / "set")) == ("train", "test")
    test = opened(tmp_path / "set", "test")
    assert test.classes == ("a", "c", "b") and test.labels.tolist() == [1, 2]
    fill(tmp_path / "folder", ["x.png"])
    both = opened(f"{tmp_path}/set/train/{{0,0}}.tar,{tmp_path}/folder")
    assert len(both) == 5 and both.read(4).shape == (8, 10, 3)


def test_tars_beside_pictures_are_no_shards(tmp_path):
    shard(fill(tmp_path, ["a.png"]) / "backup.tar", samples("1"))
    shard(fill(tmp_path / "deep", ["x/a.png"]) / "backup.tar", samples("1"))
    assert opened(tmp_path / "deep").keys == ["x/a.png"]
    (tmp_path / "deep" / "x" / "a.png").unlink()
    assert opened(tmp_path).keys == ["a.png"]


# --- shards that are not as they should be


def data_places(path: Path) -> dict[str, int]:
    """Where the bytes of each member begin."""
    with tarfile.open(path) as archive:
        return {member.name: member.offset_data for member in archive}


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def test_of_a_cut_shard_what_is_before_is_used(tmp_path, caplog):
    path = shard(tmp_path / "x.tar", samples("1", "2", "3"))
    whole, places = path.read_bytes(), data_places(path)
    for size, keys in (
        (places["2.txt"] - 3, ["1.png", "2.png"]),  # in a header
        (places["3.png"] + 9, ["1.png", "2.png"]),  # in a picture
        (places["2.txt"] + 5, ["1.png", "2.png"]),  # behind a text, in what fills up its block
        (places["2.txt"] + 512, ["1.png", "2.png"]),  # between two members
    ):
        caplog.clear()
        path = tmp_path / f"cut{size}.tar"
        path.write_bytes(whole[:size])
        for _ in range(2):
            assert opened(path).keys == keys
        assert caplog.text.count(f"{path} is cut short: the {len(keys)} pictures before are used") == 1
    caplog.clear()
    assert len(opened(tmp_path / "x.tar")) == 3 and "cut short" not in caplog.text


def test_one_cut_shard_among_others(tmp_path, caplog):
    for number in range(3):
        shard(tmp_path / f"{number}.tar", samples(f"{number}a", f"{number}b"))
    cut(tmp_path / "1.tar", 512 + 10)
    assert [key[0] for key in opened(tmp_path / "{0..2}.tar").keys] == ["0", "0", "2", "2"]
    assert f"{tmp_path}/1.tar is cut short: the 0 pictures before are used" in caplog.text
    with pytest.raises(ValueError, match=r"1.tar holds no picture .* before the place where .*1.tar is cut short"):
        opened(tmp_path / "1.tar")


def test_damage_in_the_middle_is_a_cut(tmp_path, caplog):
    path = shard(tmp_path / "x.tar", samples("1", "2", "3"))
    content = bytearray(path.read_bytes())
    start = data_places(path)["3.png"]
    content[start - 512 : start] = b"rubbish!" * 64
    path.write_bytes(content)
    assert opened(path).keys == ["1.png", "2.png"] and "is cut short" in caplog.text


@pytest.mark.parametrize("content", [b"", b"rubbish", b"rubbish!" * 300])
def test_what_is_no_archive(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.tar is no tar archive, or has nothing before it is cut .*; fetch it anew"):
        opened(tmp_path / "x.tar")


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz"])
def test_a_compressed_shard_says_how_to_unpack_it(tmp_path, name):
    content = shard(tmp_path / "plain", samples("1")).read_bytes()
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / name
    path.write_bytes(gzip.compress(content))
    for spec in (path, tmp_path / "set"):
        with pytest.raises(ValueError, match=r"x.t\S+ is compressed, .*: unpack it with gunzip$"):
            opened(spec)


def test_headers_that_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "LARGEST_HEADER", 2000)
    path = shard(tmp_path / "x.tar", {"1.png": png(), "x" * 3000 + ".png": png(), "2.png": png()})
    assert opened(path).keys == ["1.png"]


def test_sizes_that_are_lies(tmp_path):
    """A header may say anything; what it says is not believed further than the file goes."""
    for size in (10**9, 8**11 - 1, 2**62, -512):
        member = tarfile.TarInfo("2.png")
        member.size = size
        content = shard(tmp_path / "plain", samples("1")).read_bytes()
        end = data_places(tmp_path / "plain")["1.txt"] + 512
        (tmp_path / "x.tar").write_bytes(content[:end] + member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
        assert opened(tmp_path / "x.tar").keys == ["1.png"]


def test_broken_pictures_are_left_out_and_listed(tmp_path):
    members = {f"{number:02}.png": png(number) for number in range(40)} | {"03.png": b"", "07.png": b"rubbish"}
    source = opened(shard(tmp_path / "x.tar", members))
    source.allow_unreadable(0.1)
    source.record_errors(tmp_path / "errors.jsonl")
    loader = Loader(source, 40, 0, None, LoaderConfig(workers=1))
    (batch,) = loader.batches(0, 1)
    assert not {3, 7} & set(batch.index.tolist())
    lines = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert sorted((line["path"], line["reason"]) for line in lines) == [
        (f"{tmp_path}/x.tar/03.png", "empty file"),
        (f"{tmp_path}/x.tar/07.png", "not a picture"),
    ]


def test_a_picture_whose_shard_shrinks_or_goes(tmp_path, monkeypatch):
    source = opened(shard(tmp_path / "x.tar", {"1.png": png()}))
    cut(tmp_path / "x.tar", 520)
    with pytest.raises(PictureError, match=r"x.tar/1.png: its archive is cut short"):
        source.read(0)
    (tmp_path / "x.tar").unlink()
    with pytest.raises(PictureError, match=r"x.tar/1.png: no such file"):
        source.read(0)
    with pytest.raises(PictureError, match=r"too large: 2.0 GB in an archive"):
        Source(tmp_path, [Member(tmp_path / "x.tar", "1.png", 0, 2 * 10**9)]).read(0)


def test_a_source_of_shards_goes_to_other_processes(tmp_path):
    source = opened(shard(tmp_path / "x.tar", samples("1", "2")))
    again = pickle.loads(pickle.dumps(source))
    assert again.paths == source.paths and again.read(1).shape == (8, 10, 3)


# --- the cache


def test_shards_are_looked_through_once(tmp_path, monkeypatch):
    path = shard(tmp_path / "x.tar", samples("1", "2"))
    first = opened(path)
    looked = []
    monkeypatch.setattr(shards, "_found", lambda path: looked.append(path))
    again = opened(path)
    assert not looked and again.paths == first.paths and again.captions == first.captions


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"file": [0]}'])
def test_a_changed_shard_or_a_broken_cache_is_found_anew(tmp_path, content):
    path = shard(tmp_path / "x.tar", samples("1", "2"))
    assert len(opened(path)) == 2
    shard(path, samples("1", "2", "3"))
    assert len(opened(path)) == 3
    (cached,) = shards.cache_folder("shards").iterdir()
    cached.write_bytes(content)
    assert len(opened(path)) == 3
    assert cached.read_bytes() != content


def test_no_place_for_a_cache_is_no_reason_to_stop(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(opened(shard(tmp_path / "x.tar", samples("1")))) == 1
    assert "looked through each time anew" in caplog.text
