"""Captions in tables and JSON: which columns, which pictures, and what is told of those that make no sense."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_sets import coco, fill

from synoptic.data.pictures import PictureError
from synoptic.data.sources import Source, open_source

CAPTIONS = {"1.png": ["one", "eins"], "a/2.png": ["two, with a comma"], "3.png": ['a "third"\nof two lines']}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path / "images", list(CAPTIONS))
    return tmp_path


def table(path: Path, delimiter: str = ",", columns: tuple[str, str] = ("path", "caption"), **options: str) -> Path:
    with path.open("w", newline="", encoding=options.get("encoding", "utf-8")) as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=options.get("lineterminator", "\r\n"))
        writer.writerow(columns)
        writer.writerows((name, text) for name, texts in CAPTIONS.items() for text in texts)
    return path


def parquet(file: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def opened(path: Path, images: Path | str | None = None, **options: bool) -> Source:
    return open_source(str(path), "all", images=None if images is None else str(images), **options)


def told(source: Source) -> dict[str, list[str]]:
    return {key: list(texts) for key, texts in zip(source.keys, source.captions, strict=True)}


# --- forms


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("c.csv", {}),
        ("c.CSV", {"lineterminator": "\n"}),
        ("c.csv", {"delimiter": "\t", "columns": ("filepath", "title")}),  # as open_clip has them
        ("c.csv", {"delimiter": ";", "encoding": "utf-8-sig", "columns": ("File Name", "Text")}),  # as Excel has them
        ("c.tsv", {"delimiter": "\t", "encoding": "utf-16", "columns": ("IMAGE", "sentence")}),
        ("results.csv", {"delimiter": "|", "columns": ("image_name", " comment")}),  # as Flickr30k has them
    ],
)
def test_a_table_says_what_a_json_says(folder, name, options):
    described = opened(coco(folder / "c.json", CAPTIONS))
    source = opened(table(folder / name, **options), folder / "images")
    assert told(source) == told(described) == CAPTIONS
    assert source.paths == described.paths and source.fingerprint(True) == described.fingerprint(True)


def test_parquet_with_a_row_a_caption_or_lists_of_them(folder):
    rows = [(name, text) for name, texts in CAPTIONS.items() for text in texts]
    flat = parquet(folder / "flat.parquet", path=[name for name, _ in rows], caption=[text for _, text in rows])
    lists = parquet(
        folder / "lists.parquet", file_name=list(CAPTIONS), captions=[*list(CAPTIONS.values())], n=[1, 2, 3]
    )
    coded = parquet(
        folder / "coded.parquet",
        image=pa.array([name for name, _ in rows]).dictionary_encode(),
        text=pa.array([text for _, text in rows], pa.large_string()),
    )
    for path in (flat, lists, coded):
        assert told(opened(path, folder / "images")) == CAPTIONS


def test_other_columns_do_not_matter_and_the_first_name_counts(folder):
    path = written(
        folder / "c.csv", ",text,id,caption,image,path\n0,wrong,7,right,no.png,1.png\n\n1,wrong,8,too,no.png,3.png\n"
    )
    assert told(opened(path, folder / "images")) == {"1.png": ["right"], "3.png": ["too"]}


def test_paths_are_relative_to_the_table_or_to_images(folder, monkeypatch):
    path = written(folder / "c.csv", "path,caption\nimages/1.png,x\n./images/1.png,y\n")
    source = opened(path)
    assert source.paths == [folder / "images" / "1.png"] and source.captions == [("x", "y")]
    assert source.root == folder and source.keys == ["images/1.png"]
    monkeypatch.chdir(folder)
    assert opened(Path("c.csv")).read(0).shape == (8, 10, 3)


def test_absolute_paths_have_keys_that_move_with_the_pictures(folder, tmp_path_factory):
    """A table is its user's own, and nothing but a picture comes of the files that it names."""
    other = tmp_path_factory.mktemp("other")
    fill(other / "images", list(CAPTIONS))
    prints = []
    for root in (folder, other):
        rows = "".join(f"{root}/images/{name},x\n" for name in CAPTIONS)
        source = opened(written(root / "c.csv", "path,caption\n" + rows))
        assert source.keys == sorted(CAPTIONS) and source.root == root / "images"
        prints.append(source.fingerprint(True))
    assert prints[0] == prints[1]
    climbing = opened(written(folder / "images" / "a" / "c.csv", "path,caption\n../1.png,x\n2.png,y\n"))
    assert climbing.keys == ["1.png", "a/2.png"] and climbing.read(0).shape == (8, 10, 3)


# --- where the pictures lie


def test_images_says_where_the_pictures_of_a_json_lie(folder, tmp_path_factory):
    path = coco(tmp_path_factory.mktemp("elsewhere") / "c.json", CAPTIONS)
    with pytest.raises(ValueError, match=r"describes pictures in .*, which is not there; images=DIR says"):
        opened(path)
    assert told(opened(path, folder / "images")) == CAPTIONS


def test_images_of_several_sets(folder):
    fill(folder / "more", ["x.png"])
    fill(folder / "plain", ["y.png"])
    first, second = table(folder / "1.csv"), written(folder / "2.tsv", "path\ttext\nx.png\tmore\n")
    images = f"{folder}/images,{folder}/more"
    source = open_source(f"{first},{folder}/plain,{second}", "all", images=images)
    assert source.keys == [*sorted(CAPTIONS), "y.png", "x.png"]
    assert source.paths[-1] == folder / "more" / "x.png"
    assert len(open_source(f"{first},{first}", "all", images=f"{folder}/images")) == 6  # one for all


@pytest.mark.parametrize(
    ("data", "images", "message"),
    [
        ("{0}/c.csv", "{0}/imags", r"images=.*/imags does not exist; did you mean .*/images\?"),
        ("{0}/c.csv", "", "images is empty"),
        ("{0}/d.csv", "{0}/images", "d.csv does not exist; did you mean .*c.csv"),
        ("{0}/images", "{0}/images", "only a captions JSON or a table asks for it, and data has none; leave it out"),
        ("{0}/c.csv", "{0}/images,{0}/images/a", "names 2 folders for the 1 captions files in data; give one for all"),
    ],
)
def test_images_that_say_nothing(folder, data, images, message):
    table(folder / "c.csv")
    with pytest.raises(ValueError, match=message):
        open_source(data.format(folder), images=images.format(folder))


def test_missing_pictures_are_left_out_and_listed_but_not_all_of_them(folder):
    path = table(folder / "c.csv")
    with pytest.raises(ValueError, match=r"c.csv: none of its pictures is there, such as .*; images=DIR says where"):
        opened(path)
    (folder / "images" / "1.png").unlink()
    source = opened(path, folder / "images")
    source.allow_unreadable(0.5)
    source.record_errors(folder / "errors.jsonl")
    assert len(source) == 3 and [index for index, _ in source.pictures()] == [1, 2]
    with pytest.raises(PictureError, match=r"1.png: no such file or directory"):
        source.read(0)
    (line,) = (folder / "errors.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "no such file or directory"


# --- captions that are none


@pytest.mark.parametrize("form", ["json", "csv", "parquet"])
def test_empty_captions_are_left_out_and_counted(folder, form, caplog):
    captions = {"1.png": ["", " one "], "a/2.png": [" "], "3.png": ["three"]}
    rows = [(name, text) for name, texts in captions.items() for text in texts]
    path = {
        "json": lambda: coco(folder / "c.json", captions),
        "csv": lambda: written(folder / "c.csv", "path,text\n" + "".join(f"{name},{text}\n" for name, text in rows)),
        "parquet": lambda: parquet(folder / "c.parquet", path=list(captions), text=list(captions.values())),
    }[form]()
    source = opened(path, folder / "images")
    opened(path, folder / "images")
    assert told(source) == {"1.png": ["one"], "3.png": ["three"], "a/2.png": []}
    assert caplog.text.count(f"{path}: left out 2 empty captions") == 1
    assert opened(path, folder / "images", captions=True).keys == ["1.png", "3.png"]


def test_no_captions_at_all(folder):
    path = written(folder / "c.csv", "path,text\n1.png,\n3.png, \n")
    with pytest.raises(ValueError, match=r"c.csv has no captions: none of its rows has one"):
        opened(path, folder / "images", captions=True)
    path = parquet(folder / "c.parquet", path=["1.png"], text=pa.array([None], pa.string()))
    assert opened(path, folder / "images").captions == [()]


def test_half_a_character_does_not_reach_a_tokenizer(folder):
    path = folder / "c.json"
    path.write_text(
        json.dumps(
            {"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"image_id": 1, "caption": "a \ud83d"}]}
        )
    )
    assert opened(path).captions == [("a ?",)]


def test_a_name_that_no_file_can_have_is_told(folder):
    message = "c.*: names the picture 'b\\\\x00.png', and no file's name has a null byte"
    for path in (
        written(folder / "c.csv", "path,caption\n1.png,a dog\nb\0.png,a cat\n"),
        parquet(folder / "c.parquet", path=["1.png", "b\0.png"], text=["a dog", "a cat"]),
        written(folder / "c.json", json.dumps({"images": [{"id": 1, "file_name": "b\0.png"}]})),
    ):
        with pytest.raises(ValueError, match=message):
            opened(path, folder / "images")


def test_a_picture_may_be_spelled_in_two_ways_in_a_json(folder):
    images = [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "./1.png"}]
    notes = [{"image_id": number, "caption": text} for number, text in ((1, "a dog"), (2, "a cat"))]
    path = written(folder / "c.json", json.dumps({"images": images, "annotations": notes}))
    assert opened(path, folder / "images").captions == [("a dog", "a cat")]


# --- tables that are none


NO_TABLES = [
    ("c.csv", "1.png,a dog\n3.png,a cat\n", "has no header: put a first line such as path,caption above '1.png,a dog'"),
    ("c.tsv", "a/1.JPG\ta dog\n", r"has no header: .* above 'a/1.JPG\\ta dog'"),
    (
        "c.csv",
        "photo,caption\n1.png,x\n",
        r"needs a column of paths \(path, .*\) and one of captions \(caption, .*; its first line is 'photo,caption'",
    ),
    ("c.csv", "path,beschreibung\n1.png,x\n", "its first line is 'path,beschreibung'"),
    ("c.csv", "x" * 500, r"its first line is 'x{80}\.\.\.'"),
    ("c.csv", "", "c.csv is empty"),
    ("c.csv", "\r\n\r\n", "c.csv is empty"),
    ("c.csv", "path,caption\n", "lists no picture"),
    (
        "c.csv",
        "path,caption\n1.png,a dog, running\n3.png,a cat\n",
        r"1 of 2 rows do not fit the header's 2 columns, such as line 2 \('1.png,a dog, running'\); .* double quotes",
    ),
    ("c.csv", "path,caption\n1.png\n,lonely\n3.png,a cat\n", r"2 of 3 rows do not fit .* line 2 \('1.png'\); name"),
    ("c.csv", 'path,caption\n1.png,"a dog\n3.png,a cat\n', "c.csv, line 3: .*is a quote never closed"),
    ("c.csv", b"path,caption\n1.png,caf\xe9\n", "c.csv, line 2: is no text in UTF-8; save the table as UTF-8"),
    ("c.csv", b"\xff\xfepath\x00", "is no text in UTF-8"),
    ("c.csv", b"PAR1\xff\xff", "is no text in UTF-8"),
    ("c.parquet", "path,caption\n1.png,x\n", "c.parquet is no Parquet table"),
    ("c.parquet", "", "c.parquet is no Parquet table"),
]


@pytest.mark.parametrize(("name", "content", "message"), NO_TABLES)
def test_what_is_no_table(folder, name, content, message):
    path = written(folder / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        opened(path, folder / "images")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_parquet_that_is_damaged(folder):
    path = parquet(folder / "c.parquet", path=["1.png"] * 50, text=["a dog"] * 50)
    content = bytearray(path.read_bytes())
    content[4:80] = bytes(byte ^ 0x55 for byte in content[4:80])
    for damaged in (bytes(content), path.read_bytes().replace(b"a dog", b"a \xffog")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"c\.parquet is no Parquet table, or damaged: "):
            opened(path, folder / "images")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["1.png"], "words": ["x"]}, "needs a column of paths .* its columns are path, words"),
        ({"image": [{"bytes": b"x", "path": "1.png"}], "text": ["x"]}, "column image holds struct<.*, and should"),
        ({"path": ["1.png"], "text": [3]}, "column text holds int64, and should hold texts"),
        ({"path": ["1.png"], "text": [[3]]}, "column text holds list<.*int64.*>, and should hold texts"),
        ({"path": ["1.png", None], "text": ["x", "y"]}, "1 of 2 rows name no picture in path"),
        ({"path": pa.array([], pa.string()), "text": pa.array([], pa.string())}, "lists no picture"),
    ],
)
def test_parquet_that_holds_something_else(folder, columns, message):
    with pytest.raises(ValueError, match=message):
        opened(parquet(folder / "c.parquet", **columns), folder / "images")
