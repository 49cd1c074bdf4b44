"""The table of embeddings follows its pictures without embedding again, and no kill takes much of the work away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from picture_sets import fill

from synoptic.apps import embeddings, parts, table
from synoptic.apps.embeddings import Tally, embed, planned
from synoptic.files import sole_writer
from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.vit import ViT, vit_config
from synoptic.predict import VisionModel
from synoptic.types import Preprocess
from synoptic.weights.options import LoadOptions

SMALL = {"depth": 1, "width": 24, "heads": 2, "hidden": 48, "image_size": 16}


def vision(seed: int = 0) -> VisionModel:
    torch.manual_seed(seed)
    return VisionModel(ViT(vit_config("vit_mini8", **SMALL)), Preprocess(16), f"small{seed}")


def student() -> VisionModel:
    torch.manual_seed(0)
    adaptors = {"dino": AdaptorConfig(patches=10, summary=6, hidden=16)}
    return VisionModel(
        Student(StudentConfig(backbone=vit_config("vit_mini8", **SMALL), adaptors=adaptors)), Preprocess(16), "student"
    )


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures a model has seen, a number a batch."""
    counts: list[int] = []
    plain = VisionModel.__call__

    def counted(self: VisionModel, images: torch.Tensor, *rest, **keys):
        counts.append(len(images))
        return plain(self, images, *rest, **keys)

    monkeypatch.setattr(VisionModel, "__call__", counted)
    return counts


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pictures, in a folder from which paths are seen."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "photos", ["a.png", "b.png", "c.png", "d.png"])
    return Path("photos")


def rows(path: Path | str = "e.parquet") -> dict[str, np.ndarray]:
    """Path -> embedding."""
    read = pq.read_table(path)
    vectors = map(np.array, read["embedding"].to_pylist())
    return dict(zip(read["path"].to_pylist(), vectors, strict=True))


def test_what_is_known_is_not_embedded_again(pictures: Path, seen: list[int]) -> None:
    assert embed("photos", vision(), "e.parquet") == Tally(new=4)
    before, bytes_before = rows(), Path("e.parquet").read_bytes()
    assert embed("photos", vision(), "e.parquet") == Tally(kept=4)
    assert Path("e.parquet").read_bytes() == bytes_before and seen == [4]
    (pictures / "a.png").unlink()
    (pictures / "b.png").write_bytes((pictures / "c.png").read_bytes())
    (pictures / "d.png").rename(pictures / "z.png")
    fill(pictures, ["0.png", "1.png", "2.png", "3.png", "new.png"])
    for name in ("0.png", "1.png", "2.png", "3.png"):
        (pictures / name).unlink()
    tally = embed("photos", vision(), "e.parquet")
    assert tally == Tally(new=1, changed=1, renamed=1, dropped=1, kept=1)
    assert str(tally) == "1 new, 1 changed, 1 renamed, 1 dropped, 1 kept"
    assert seen == [4, 2]
    after = rows()
    assert list(after) == [f"photos/{name}.png" for name in ("c", "z", "b", "new")], "new ones come last"
    np.testing.assert_array_equal(after["photos/z.png"], before["photos/d.png"])
    np.testing.assert_allclose(after["photos/b.png"], before["photos/c.png"], atol=1e-6)
    embed("photos", vision(), "fresh.parquet")
    fresh = rows("fresh.parquet")
    assert fresh.keys() == after.keys()
    for name, vector in fresh.items():
        np.testing.assert_allclose(after[name], vector, atol=1e-6)


def test_a_table_of_other_pictures_is_not_emptied_from_another_folder(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From there none of its paths is seen, though all files are there."""
    embed("photos", vision(), "e.parquet")
    fill(tmp_path / "elsewhere" / "others", ["x.png"], size=(12, 12))
    monkeypatch.chdir(tmp_path / "elsewhere")
    table = tmp_path / "e.parquet"
    with pytest.raises(ValueError, match=r"holds 4 pictures, none of which is there any more or named by IMAGES"):
        embed("others", vision(), table)
    assert len(rows(table)) == 4
    assert embed("others", vision(), table, overwrite=True) == Tally(new=1)


def test_patches_follow_their_picture(pictures: Path, seen: list[int]) -> None:
    embed("photos", vision(), "e.parquet", tokens="patches")
    (pictures / "a.png").unlink()
    (pictures / "c.png").rename(pictures / "z.png")
    assert embed("photos", vision(), "e.parquet", tokens="patches") == Tally(renamed=1, dropped=1, kept=2)
    found = pq.read_table("e.parquet").select(["path", "row", "column"]).to_pylist()
    assert [(r["path"], r["row"], r["column"]) for r in found] == [
        (f"photos/{name}.png", row, column) for name in ("b", "z", "d") for row in (0, 1) for column in (0, 1)
    ]
    assert seen == [4]


def test_a_broken_picture_is_left_out_each_time_and_the_rest_is_kept(pictures: Path) -> None:
    embed("photos", vision(), "e.parquet")
    (pictures / "a.png").write_bytes(b"broken")
    (pictures / "new.png").write_bytes(b"broken")
    assert embed("photos", vision(), "e.parquet") == Tally(kept=3, dropped=1, left_out=2)
    assert embed("photos", vision(), "e.parquet") == Tally(kept=3, left_out=2)


def test_pictures_that_were_not_named_are_not_dropped(pictures: Path) -> None:
    embed("photos", vision(), "e.parquet")
    fill(Path("others"), ["a.png"], size=(12, 12))
    with pytest.raises(
        ValueError, match=r"^e\.parquet holds 4 pictures that are there and that IMAGES does not name, su"
    ):
        embed("others", vision(), "e.parquet")
    with pytest.raises(ValueError, match="holds 3 pictures"):
        embed("photos/a.png", vision(), "e.parquet")
    assert len(rows()) == 4
    assert embed("others", vision(), "e.parquet", overwrite=True) == Tally(new=1)
    assert list(rows()) == ["others/a.png"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"model": vision(1)},
            r"e\.parquet holds embeddings of student with the weights \w{16}, and small1 has \w{16}; ov",
        ),
        ({"tokens": "patches"}, r"e\.parquet holds embeddings with tokens=summary, not patches; overwrite=true makes"),
        ({"adaptor": "dino"}, r"e\.parquet holds embeddings with adaptor=none, not dino"),
        ({"dtype": "float16"}, r"e\.parquet holds embeddings with dtype=float32, not float16"),
        ({"adaptor": "sam"}, "student has no adaptor 'sam'; it has dino"),
    ],
)
def test_a_table_of_another_kind_is_refused(pictures: Path, change: dict[str, object], told: str) -> None:
    embed("photos", student(), "e.parquet")
    before = Path("e.parquet").read_bytes()
    with pytest.raises(ValueError, match=told):
        embed("photos", **{"model": student(), "out": "e.parquet", **change})
    assert Path("e.parquet").read_bytes() == before
    assert sorted(os.listdir()) == ["e.parquet", "photos"], "nothing is left beside it"


def test_what_is_no_table_is_refused_or_replaced(pictures: Path) -> None:
    Path("e.parquet").write_bytes(b"precious")
    with pytest.raises(
        ValueError, match=r"e\.parquet is no whole Parquet file \(.*\); embed with overwrite=true makes"
    ):
        embed("photos", vision(), "e.parquet")
    assert Path("e.parquet").read_bytes() == b"precious"
    embed("photos", vision(), "e.parquet", overwrite=True)
    label = pa.array(range(4))
    pq.write_table(pq.read_table("e.parquet").append_column("label", label), "e.parquet")
    with pytest.raises(ValueError, match="has columns that embed does not write"):
        embed("photos", vision(), "e.parquet")


def test_a_file_written_before_there_was_a_record_is_brought_up_to_date(pictures: Path) -> None:
    embed("photos", vision(), "e.parquet")
    pq.write_table(pq.read_table("e.parquet").replace_schema_metadata(None), "e.parquet")
    assert embed("photos", vision(), "e.parquet") == Tally(kept=4)


def test_half_precision_takes_half_the_space_and_three_digits(pictures: Path) -> None:
    embed("photos", vision(), "e.parquet")
    embed("photos", vision(), "h.parquet", dtype="float16")
    assert pq.read_schema("h.parquet").field("embedding").type == pa.list_(pa.float16(), 24)
    for name, vector in rows("h.parquet").items():
        np.testing.assert_allclose(vector, rows()[name], atol=5e-4)
    (pictures / "a.png").unlink()
    assert embed("photos", vision(), "h.parquet", dtype="float16") == Tally(kept=3, dropped=1)


KILLED = """
import os
from synoptic.apps import parts
from synoptic.apps.embeddings import embed
parts.SECONDS = -1.0
add, done = parts.Parts.add, []
def counted(self, rows):
    add(self, rows)
    done.append(rows)
    if len(done) == 2:
        os._exit(9)
parts.Parts.add = counted
embed("many", "model", "e.parquet")
"""


def test_a_killed_call_loses_little_and_the_next_goes_on(pictures: Path, seen: list[int]) -> None:
    fill(Path("many"), [f"{number:03d}.png" for number in range(200)])
    vision().save("model")
    killed = subprocess.run([sys.executable, "-c", KILLED], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == 9
    assert not Path("e.parquet").exists()
    assert embed("many", "model", "e.parquet") == Tally(new=200)
    assert seen == [64, 8], "the first two batches were done"
    embed("many", "model", "fresh.parquet")
    assert list(rows()) == list(rows("fresh.parquet"))
    np.testing.assert_allclose(
        np.stack(list(rows().values())), np.stack(list(rows("fresh.parquet").values())), atol=1e-6
    )
    assert sorted(os.listdir()) == ["e.parquet", "fresh.parquet", "many", "model", "photos"]


def test_an_interrupted_call_keeps_all_that_was_done(
    pictures: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(Path("many"), [f"{number:03d}.png" for number in range(80)])

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        embed("many", vision(), "e.parquet", progress=interrupt)
    assert embed("many", vision(), "e.parquet") == Tally(new=80)
    assert seen == [64, 16]


def test_unfinished_work_of_another_model_is_not_mixed_in(pictures: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed("photos", vision(), "e.parquet", progress=interrupt)
    with pytest.raises(
        ValueError, match=r"\.e\.parquet\.parts/0+\.parquet holds embeddings of small0 .* overwrite=true"
    ):
        embed("photos", vision(1), "e.parquet")
    assert embed("photos", vision(1), "e.parquet", overwrite=True) == Tally(new=4)


def test_two_processes_do_not_write_one_table(pictures: Path) -> None:
    with sole_writer(Path(".e.parquet.parts")), pytest.raises(ValueError, match="another process is writing there"):
        embed("photos", vision(), "e.parquet")


def test_blocks_are_of_one_size_whatever_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "BLOCK", 4 * 3 * 10)  # ten rows of three channels

    def part(start: int, count: int) -> pa.Table:
        vectors = pa.array(np.arange(3 * start, 3 * (start + count), dtype=np.float32))
        names = [str(number) for number in range(start, start + count)]
        columns = dict.fromkeys(table.TEXTS, names) | {"width": [1] * count, "height": [1] * count}
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(vectors, 3)
        return pa.table(columns, schema=table.schema(3, "summary", "float32"))

    table.write_table(tmp_path / "t.parquet", [part(0, 4), part(4, 0), part(4, 27), part(31, 2)], table.Made("m"))
    groups = pq.ParquetFile(tmp_path / "t.parquet").metadata
    assert [groups.row_group(place).num_rows for place in range(groups.num_row_groups)] == [10, 10, 10, 3]
    read = table.Table(tmp_path / "t.parquet")
    blocks = list(read.vectors())
    assert [(start, len(block)) for start, block in blocks] == [(0, 10), (10, 10), (20, 10), (30, 3)]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]).ravel(), np.arange(99))
    assert read.paths([32, 0, 10, 9, 10]) == ["32", "0", "10", "9", "10"]
    assert read.made == table.Made("m")


def test_a_content_that_moved_is_taken_from_a_picture_that_is_gone() -> None:
    plan = planned({"a": "1", "b": "1", "c": "2", "d": ""}, [("a", "1"), ("x", "2"), ("y", "2")])
    assert plan.rows == {("a", "1"): "a", ("y", "2"): "c"}
    assert plan.missing == ["b", "d"], "a copy is embedded; what cannot be read is tried"


def test_parts_are_written_by_their_size_and_their_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(pa.array(np.ones(6, np.float32)), 3)})
    monkeypatch.setattr(parts, "BLOCK", 40)
    with parts.parts_of(tmp_path / "e.parquet", table.Made()) as held:
        held.add(one)
        assert not held.paths()
        held.add(one)
        assert len(held.paths()) == 1, "48 bytes are more than 40"
        monkeypatch.setattr(parts, "SECONDS", -1)
        held.add(one)
        assert [len(pq.read_table(path)) for path in held.paths()] == [4, 2]
        held.clear()
    assert not list(tmp_path.iterdir())


def test_a_table_names_its_model_so_that_it_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files by their whole path; names as they are, though a folder of that name lies there."""
    monkeypatch.chdir(tmp_path)
    for name in ("head.pth", "vit_nano8", "run"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(embeddings, "load", lambda model, **said: None)
    made = {
        model: embeddings._loaded(model, LoadOptions(linear_head="head.pth"), "summary", None)[1]
        for model in ("vit_nano8", "dinov2_vits14", "hf:a/b", "run")
    }
    assert {made[model].load["linear_head"] for model in made} == {str(tmp_path / "head.pth")}
    assert [found.model for found in made.values()] == ["vit_nano8", "dinov2_vits14", "hf:a/b", str(tmp_path / "run")]
