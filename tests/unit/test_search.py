"""Searching a table of embeddings: the right pictures come first, whatever state the files beside it are in."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from picture_sets import fill
from PIL import Image
from safetensors.numpy import load_file, save_file

from synoptic.apps import index, ivf, search, table
from synoptic.apps.embeddings import embed
from synoptic.apps.index import Index
from synoptic.apps.search import Hit
from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.clip import Clip, ClipConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, ViTConfig
from synoptic.predict import VisionModel
from synoptic.types import Preprocess

TOKENIZER = Tokenizer.learn(["a red cone", "a blue cube"], vocabulary=300, context=12)
TEXT = TextConfig(
    vocabulary=TOKENIZER.vocabulary, context=12, end=TOKENIZER.end, width=8, depth=1, heads=2, embedding=6
)


def vision(network: torch.nn.Module, name: str) -> VisionModel:
    return VisionModel(network, Preprocess(16), name)


def vit(**changes: int) -> ViTConfig:
    return ViTConfig(**{"patch_size": 4, "width": 12, "depth": 1, "heads": 3, "image_size": 16} | changes)


def clip(seed: int = 0) -> VisionModel:
    torch.manual_seed(seed)
    return vision(Clip(ClipConfig(image=vit(), text=TEXT), TOKENIZER), f"clip{seed}")


def student() -> VisionModel:
    torch.manual_seed(0)
    adaptors = {
        name: AdaptorConfig(patches=10, summary=6, hidden=16, text=TEXT if name == "clip" else None)
        for name in ("clip", "dino")
    }
    config = StudentConfig(backbone=vit(summary_tokens=2), adaptors=adaptors)
    return vision(Student(config, {"clip": TOKENIZER}), "student")


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def grouped(rows: int, width: int = 16, seed: int = 0) -> np.ndarray:
    """(rows, width) in fifty groups."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, width))
    rng = np.random.default_rng(seed)
    return unit(centres[rng.integers(0, 50, rows)] + 0.3 * rng.standard_normal((rows, width)))


def made(path: Path, vectors: np.ndarray, dtype: table.Dtype = "float32") -> np.ndarray:
    """Writes a table; returns the vectors as it holds them."""
    vectors = vectors.astype(dtype)
    names = [f"{number}.png" for number in range(len(vectors))]
    columns = dict.fromkeys(table.TEXTS, names) | {"width": [1] * len(names), "height": [1] * len(names)}
    columns |= {"model": ["m"] * len(names), "weights_hash": ["0"] * len(names)}
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    rows = pa.table(columns, schema=table.schema(vectors.shape[1], "summary", dtype))
    table.write_table(path, [rows], table.Made())
    return vectors.astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "BLOCK", 4 * 16 * 100)  # a hundred rows of 16 channels


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_row_is_compared_exactly(tmp_path: Path, small_blocks: None, dtype: table.Dtype) -> None:
    vectors = made(tmp_path / "t.parquet", grouped(1030), dtype)
    searched = Index(tmp_path / "t.parquet")
    for query in grouped(5, seed=1):
        scores, rows = searched.search(query, 7)
        products = vectors @ query
        np.testing.assert_array_equal(rows, np.argsort(-products)[:7])
        np.testing.assert_allclose(scores, products[rows], atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"], "a small table needs no index"


def test_of_a_smaller_table_all_are_told(tmp_path: Path) -> None:
    vectors = made(tmp_path / "t.parquet", grouped(3))
    scores, rows = Index(tmp_path / "t.parquet").search(vectors[1], 10)
    assert rows[0] == 1 and sorted(rows) == [0, 1, 2] and (np.diff(scores) <= 0).all()


def test_a_query_of_another_width_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "t.parquet", grouped(3))
    with pytest.raises(ValueError, match=r"holds embeddings \(16,\), the query is \(4,\)"):
        Index(tmp_path / "t.parquet").search(np.ones(4, np.float32))


def test_embeddings_that_are_no_numbers_are_refused(tmp_path: Path, small_blocks: None) -> None:
    vectors = grouped(300)
    vectors[250, 3] = np.nan
    made(tmp_path / "t.parquet", vectors)
    with pytest.raises(ValueError, match=r"t\.parquet holds embeddings that are no finite numbers"):
        Index(tmp_path / "t.parquet").search(vectors[0])


@pytest.fixture
def large(tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of 3,000 rows, which is called large."""
    monkeypatch.setattr(index, "LARGE", 3000)
    made(tmp_path / "t.parquet", grouped(3000))
    return tmp_path / "t.parquet"


def recall(path: Path, queries: np.ndarray, k: int = 10, apart: bool = False) -> float:
    exact, quick = Index(path, exact=True), Index(path)
    assert quick._inverted is not None
    shared = [len(set(exact.search(query, k)[1]) & set(quick.search(query, k, apart)[1])) for query in queries]
    return float(np.mean(shared)) / k


def test_the_inverted_file_finds_what_it_promises_from_a_part_of_its_lists(large: Path) -> None:
    assert recall(large, grouped(100, seed=1)) > ivf.RECALL - 0.03
    inverted = Index(large)._inverted
    assert inverted is not None and inverted.lists == 75, "40 rows of the sample for each"
    assert inverted.probes < inverted.lists / 4
    scores, rows = inverted.search(grouped(1, seed=1)[0], 10)
    vectors = np.concatenate([block for _, block in Index(large, exact=True).table.vectors()])
    np.testing.assert_allclose(scores, vectors[rows] @ grouped(1, seed=1)[0], atol=1e-6)
    assert (np.diff(scores) <= 0).all()


def test_words_which_lie_apart_are_looked_for_in_more_lists(large: Path) -> None:
    """All words on one side of all pictures, as in CLIP's space (Liang et al. 2022, arXiv 2203.02053)."""
    side = np.zeros(16, np.float32)
    side[0] = 3.0
    made(large, unit(grouped(3000) - side))
    words = unit(grouped(100, seed=1) + side)
    as_pictures, as_words = recall(large, words), recall(large, words, apart=True)
    assert as_words > max(as_pictures, ivf.RECALL)


def test_what_has_no_neighbourhoods_is_read_almost_whole_and_found(large: Path) -> None:
    uniform = unit(np.random.default_rng(0).standard_normal((3100, 16)))
    made(large, uniform[:3000])
    assert recall(large, uniform[3000:]) > ivf.RECALL - 0.03
    inverted = Index(large)._inverted
    assert inverted is not None and inverted.probes > inverted.lists / 4


def test_as_many_are_found_as_are_asked_for(large: Path) -> None:
    scores, rows = Index(large).search(grouped(1, seed=1)[0], 3000)
    assert sorted(rows) == list(range(3000)) and len(scores) == 3000
    assert len(set(Index(large).search(grouped(1, seed=1)[0], 1500)[1])) == 1500


def test_halves_stay_halves_in_the_inverted_file(large: Path) -> None:
    vectors = made(large, grouped(3000), "float16")
    scores, rows = Index(large).search(vectors[17], 1)
    assert rows[0] == 17 and scores[0] == pytest.approx(1, abs=1e-3)
    assert load_file(f"{large}.ivf")["vectors"].dtype == np.float16


def test_the_inverted_file_is_made_once(large: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[int, int]] = []
    Index(large, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (9000, 9000) and told == sorted(told)
    before = Path(f"{large}.ivf").stat().st_mtime_ns
    Index(large)
    assert Path(f"{large}.ivf").stat().st_mtime_ns == before
    assert [record.message for record in caplog.records] == [
        f"making {large}.ivf: once, for all searches of this table"
    ]
    assert sorted(path.name for path in large.parent.iterdir()) == ["t.parquet", "t.parquet.ivf"]


def lie(change: Callable[[dict[str, np.ndarray]], object], **facts: str) -> Callable[[Path], None]:
    """Writes an inverted file anew with other contents."""

    def tell(path: Path) -> None:
        from safetensors import safe_open

        arrays = load_file(path)
        with safe_open(path, framework="numpy") as file:
            told = file.metadata() | facts
        change(arrays)
        save_file(arrays, path, told)

    return tell


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no index at all, and longer than a head"),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
        lie(lambda arrays: None, table="of another table"),
        lie(lambda arrays: None, probes="many"),
        lie(lambda arrays: None, probes="-1"),
        lie(lambda arrays: arrays.pop("rows")),
        lie(lambda arrays: arrays["rows"].fill(2**40)),
        lie(lambda arrays: arrays["rows"].fill(-1)),
        lie(lambda arrays: arrays.update(rows=arrays["rows"].astype(np.float32))),
        lie(lambda arrays: arrays["offsets"].__setitem__(1, 2**40)),
        lie(lambda arrays: arrays.update(vectors=arrays["vectors"][:, :3])),
        lie(lambda arrays: arrays.update(centroids=arrays["centroids"][:3])),
        lie(lambda arrays: arrays.update(centroids=arrays["centroids"].astype(np.float64))),
    ],
)
def test_a_damaged_or_foreign_inverted_file_is_made_anew(large: Path, damage: Callable[[Path], None]) -> None:
    expected = Index(large).search(grouped(1, seed=1)[0])
    path = Path(f"{large}.ivf")
    good = path.read_bytes()
    damage(path)
    assert path.read_bytes() != good
    rows = Index(large).search(grouped(1, seed=1)[0])[1]
    np.testing.assert_array_equal(rows, expected[1])
    assert path.read_bytes() == good


def test_a_table_that_has_changed_gets_another_inverted_file(large: Path) -> None:
    Index(large)
    vectors = made(large, grouped(3200, seed=3))
    assert Index(large).search(vectors[3100], 1)[1][0] == 3100


def test_where_nothing_can_be_written_every_row_is_looked_at(
    large: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ivf, "write_atomically", full)
    assert Index(large).search(grouped(3000)[5], 1)[1][0] == 5
    assert f"{large}.ivf cannot be written (No space left on device): looking at every row" in caplog.messages


TOGETHER = """
import numpy as np
{imports}
torch.set_num_threads(4); faiss.omp_set_num_threads(4)
for _ in range(3):
    torch.randn(600, 600) @ torch.randn(600, 600)
    torch.nn.functional.conv2d(torch.randn(4, 8, 64, 64), torch.randn(8, 8, 3, 3))
    faiss.knn(np.random.rand(200, 64).astype("f"), np.random.rand(5000, 64).astype("f"), 10)
"""


@pytest.mark.parametrize("imports", ["import torch; import faiss", "import faiss; import torch"])
def test_faiss_and_pytorch_work_in_one_process(imports: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    code = TOGETHER.format(imports=imports)
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=120).returncode == 0


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six pictures in colours, in a folder from which paths are seen; beside it `clip`, a model."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in "abcdef":
        fill(tmp_path / "photos", [f"{name}.png"])
        Image.fromarray(rng.integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(f"photos/{name}.png")
    clip().save("clip")
    return tmp_path


def test_a_picture_finds_itself_first_and_words_what_is_near_to_them(photos: Path) -> None:
    embed("photos", "clip", "e.parquet")
    hits = search.search("e.parquet", image="photos/c.png", k=3)
    assert hits[0] == Hit(pytest.approx(1, abs=1e-5), "photos/c.png", False) and len(hits) == 3
    model = clip()
    products = model.embed("photos") @ model.encode_text(["a red cone"])[0]
    told = search.search("e.parquet", text="a red cone")
    assert [hit.path for hit in told] == [f"photos/{'abcdef'[place]}.png" for place in np.argsort(-products)]
    np.testing.assert_allclose([hit.score for hit in told], np.sort(products)[::-1], atol=1e-5)


def test_the_model_is_found_from_anywhere_or_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed("photos", "clip", "e.parquet")
    (photos / "elsewhere").mkdir()
    monkeypatch.chdir(photos / "elsewhere")
    hits = search.search("../e.parquet", image="../photos/c.png", k=1)
    assert hits[0].path == "photos/c.png" and hits[0].missing, "paths are seen from where one stands"
    (photos / "clip").rename(photos / "moved")
    with pytest.raises(ValueError, match=r"made by .*clip; there is no model .*; or give model=MODEL"):
        search.search("../e.parquet", text="a cone")
    assert len(search.search("../e.parquet", text="a cone", model="../moved")) == 6


def test_another_model_is_refused_with_both_weights(photos: Path) -> None:
    embed("photos", clip(), "e.parquet")
    with pytest.raises(ValueError, match=r"e\.parquet: does not tell where its model clip0 is; give model=MODEL"):
        search.search("e.parquet", text="a cone")
    told = r"e\.parquet holds embeddings of clip0 with the weights \w{16}, and clip1 has \w{16}; give the model that"
    with pytest.raises(ValueError, match=told):
        search.search("e.parquet", text="a cone", model=clip(1))
    embed("photos", "vit_mini16", "r.parquet")
    with pytest.raises(ValueError, match="a built-in name stands for other random weights each time"):
        search.search("r.parquet", image="photos/a.png")


def test_words_are_compared_in_the_space_where_they_lie(photos: Path) -> None:
    model = student()
    for adaptor in (None, "clip", "dino"):
        embed("photos", model, f"{adaptor}.parquet", adaptor=adaptor)
    found = search.search("clip.parquet", text="a cone", model=model)
    products = model.embed("photos", "clip") @ model.encode_text(["a cone"])[0]
    np.testing.assert_allclose([hit.score for hit in found], np.sort(products)[::-1], atol=1e-5)
    with pytest.raises(ValueError, match=r"None\.parquet: lies in the model's own space, .*; embed with adaptor=clip"):
        search.search("None.parquet", text="a cone", model=model)
    with pytest.raises(ValueError, match=r"dino\.parquet: lies in the space of dino, where student knows no words; em"):
        search.search("dino.parquet", text="a cone", model=model)
    assert search.search("dino.parquet", image="photos/b.png", model=model)[0].path == "photos/b.png"


def test_a_model_without_words_says_so(photos: Path) -> None:
    model = vision(ViT(vit()), "mute")
    embed("photos", model, "e.parquet")
    with pytest.raises(ValueError, match="mute knows no words"):
        search.search("e.parquet", text="a cone", model=model)
    assert search.search("e.parquet", image="photos/b.png", model=model)[0].path == "photos/b.png"


def test_missing_pictures_are_marked_and_the_answer_is_written(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed("photos", "clip", "e.parquet")
    (photos / "photos" / "b.png").unlink()
    shown: list[list[search.Strip]] = []
    plain = search.sheet
    monkeypatch.setattr(
        search, "sheet", lambda t, n, strips, *a, **k: shown.append(strips) or plain(t, n, strips, *a, **k)
    )
    for ending in search.ENDINGS:
        hits = search.search("e.parquet", image="photos/c.png", out=f"new/folder/out{ending}")
    assert [hit.path for hit in hits if hit.missing] == ["photos/b.png"]
    written = json.loads(Path("new/folder/out.json").read_text())
    assert [Hit(**row) for row in written] == hits
    with open("new/folder/out.csv", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [hit.path for hit in hits]
    with Image.open("new/folder/out.png") as contact:
        contact.load()
    (strips,) = shown
    assert strips[0].panels[0].label == "asked for"
    assert [strip.name for strip in strips[1:]] == [f"{hit.path}  {hit.score:.3f}" for hit in hits]
    crosses = [hit.missing for hit in hits]
    assert [np.array_equal(strip.panels[0].picture, search._cross()) for strip in strips[1:]] == crosses


def table_without(*columns: str) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pq.read_table(path).drop(list(columns)), path)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)


def several(path: Path) -> None:
    read = pq.read_table(path)
    hashes = pa.array([str(number) for number in range(len(read))])
    pq.write_table(read.set_column(read.schema.get_field_index("weights_hash"), "weights_hash", hashes), path)


def no_text(path: Path) -> None:
    """The path of a picture is no UTF-8."""
    content = path.read_bytes()
    name = pq.read_table(path)["path"][0].as_py().encode()
    path.write_bytes(content.replace(name, b"\xff" + name[1:]))


def without_a_number(path: Path) -> None:
    read = pq.read_table(path)
    column = read["embedding"].combine_chunks()
    numbers = [None, *column.flatten().to_pylist()[1:]]
    holed = pa.FixedSizeListArray.from_arrays(pa.array(numbers, pa.float32()), column.type.list_size)
    pq.write_table(read.set_column(read.schema.get_field_index("embedding"), "embedding", holed), path)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (no_text, r"e\.parquet: is damaged \(.*UTF"),
        (without_a_number, r"e\.parquet has rows without an embedding, or with a part of one"),
        (lambda path: path.unlink(), r"e\.parquet does not exist; `synoptic embed` writes such a table"),
        (lambda path: path.write_bytes(b"PAR1"), r"e\.parquet is no whole Parquet file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), r"e\.parquet is no whole Parquet file"),
        (flipped, r"e\.parquet: is damaged \("),
        (table_without("path"), r"e\.parquet is no table of embeddings: it has no column path of texts"),
        (table_without("embedding"), r"no column embedding of float32 or float16 lists of one size"),
        (lambda path: pq.write_table(pq.read_table(path).slice(0, 0), path), r"e\.parquet holds no embeddings"),
        (several, r"e\.parquet holds embeddings of 6 models"),
        (
            lambda path: pq.write_table(pq.read_table(path).replace_schema_metadata({"synoptic": "[]"}), path),
            r"e\.parquet: how it was made cannot be read \(",
        ),
    ],
)
def test_a_bad_table_is_told_in_one_line(photos: Path, damage: Callable[[Path], None], told: str) -> None:
    embed("photos", "clip", "e.parquet")
    damage(Path("e.parquet"))
    with pytest.raises(ValueError, match=told) as raised:
        search.search("e.parquet", text="a cone")
    assert "\n" not in str(raised.value)


def test_a_table_with_more_columns_can_be_searched(photos: Path) -> None:
    embed("photos", "clip", "e.parquet")
    read = pq.read_table("e.parquet")
    pq.write_table(read.append_column("label", pa.array(range(len(read)))), "e.parquet")
    assert len(search.search("e.parquet", text="a cone", k=2)) == 2


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, 'give what to look for, either text="a red bus" or image=FILE'),
        ({"text": "a", "image": "photos/a.png"}, "give what to look for, either"),
        ({"text": "  "}, "text= is empty"),
        ({"image": "photos/z.png"}, r"image=photos/z\.png does not exist"),
        ({"image": "photos"}, "image=photos: give the file of one picture"),
        ({"image": "e.parquet"}, r"e\.parquet: not a picture"),
        ({"text": "a", "k": 0}, "k=0: ask for one picture at least"),
        (
            {"text": "a", "out": "a.gif"},
            r"out=a\.gif: give a name that ends in \.png \(a contact sheet\), \.json or \.csv",
        ),
        ({"text": "a", "out": "photos.png"}, r"out=photos\.png: is a folder"),
        (
            {"text": "a", "index": "p.parquet"},
            r"p\.parquet: holds patches, and neither words nor whole pictures lie in",
        ),
        ({"text": "a", "index": "photos"}, "photos is no whole Parquet file"),
    ],
)
def test_a_question_that_means_nothing_is_refused(photos: Path, asked: dict[str, object], told: str) -> None:
    (photos / "photos.png").mkdir()
    embed("photos", "clip", "e.parquet")
    embed("photos", "clip", "p.parquet", tokens="patches")
    with pytest.raises(ValueError, match=told):
        search.search(**{"index": "e.parquet", **asked})
