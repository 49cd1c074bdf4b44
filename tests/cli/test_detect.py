"""`synoptic detect`, as it is typed: forms, drawings, going on where it was stopped, and mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_detectors import small_detector

import synoptic
from synoptic.apps import detection_files
from synoptic.apps.cli import main
from synoptic.detection.finder import Finder


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small detector in a weights folder."""
    folder = tmp_path_factory.mktemp("detector") / "weights"
    small_detector().save(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures of two shapes, one of them in a folder of its own, and a file that is none."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, size in (("a.jpg", (60, 90)), ("b.png", (60, 90)), ("more/a.jpg", (80, 40))):
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_text("junk")
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    code = main(["detect", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_without_a_file_it_tells_a_line_an_object(
    capsys: pytest.CaptureFixture[str], detector: Path, pictures: Path
) -> None:
    code, out, _ = run(
        capsys, pictures / "a.jpg", f"model={detector}", "text=a cat. red car.", "threshold=0", "limit=3"
    )
    assert code == 0
    rows = [line.split("\t") for line in out.splitlines()]
    assert len(rows) == 3
    assert {row[1] for row in rows} <= {"a cat", "red car"}
    assert all(len(row[3].split()) == 4 for row in rows)
    code, out, _ = run(capsys, pictures / "a.jpg", f"model={detector}", "text=a cat", "threshold=1")
    assert (code, out) == (0, f"{pictures / 'a.jpg'}\tnothing found\n")


def test_a_folder_becomes_one_json_and_broken_files_are_told(
    capsys: pytest.CaptureFixture[str], detector: Path, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "found.json"
    words = [pictures, f"model={detector}", "text=a cat. red car.", "threshold=0", "limit=4", f"out={out}", "batch=2"]
    code, said, err = run(capsys, *words, f"draw={tmp_path / 'drawn'}")
    assert code == 0
    assert said == f"{out}\n"
    assert f"left out {pictures / 'broken.jpg'}: " in caplog.text
    assert "left out 1 unreadable picture" in err
    told = json.loads(out.read_text())
    assert [Path(each["path"]).relative_to(pictures).as_posix() for each in told["images"]] == [
        "a.jpg",
        "b.png",
        "more/a.jpg",
    ]
    assert all(len(each["objects"]) == 4 for each in told["images"])
    assert told["names"] == ["a cat", "red car"]
    drawn = sorted(path.relative_to(tmp_path / "drawn").as_posix() for path in (tmp_path / "drawn").rglob("*.jpg"))
    assert drawn == ["a.jpg", "b.jpg", "more/a.jpg"]
    assert Image.open(tmp_path / "drawn" / "more" / "a.jpg").size == (40, 80)
    assert not list(tmp_path.glob(".*journal"))
    model = synoptic.load(detector)
    alone: Any = model.detect(pictures / "a.jpg", "a cat. red car.", threshold=0.0, limit=4)
    scores = [each["score"] for each in told["images"][0]["objects"]]
    np.testing.assert_allclose(scores, alone.scores, atol=1e-4)


def test_other_forms(capsys: pytest.CaptureFixture[str], detector: Path, pictures: Path, tmp_path: Path) -> None:
    words = [pictures, f"model={detector}", "text=a cat. red car.", "threshold=0", "limit=2"]
    assert run(capsys, *words, f"out={tmp_path / 'x.csv'}")[0] == 0
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 7
    assert run(capsys, *words, f"out={tmp_path / 'x.json'}", "form=coco")[0] == 0
    coco = json.loads((tmp_path / "x.json").read_text())
    assert (len(coco["images"]), len(coco["annotations"]), len(coco["categories"])) == (3, 6, 2)
    assert run(capsys, *words, f"out={tmp_path / 'labels'}", "form=yolo")[0] == 0
    assert (tmp_path / "labels" / "classes.txt").read_text() == "a cat\nred car\n"
    assert len((tmp_path / "labels" / "more" / "a.txt").read_text().splitlines()) == 2


def test_names_from_a_file_and_a_sentence(
    capsys: pytest.CaptureFixture[str], detector: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("a cat\n\nred car\n")
    words = [pictures / "a.jpg", f"model={detector}", "threshold=0", "limit=2", f"out={tmp_path / 'x.json'}"]
    assert run(capsys, *words, f"text={tmp_path / 'names.txt'}")[0] == 0
    assert json.loads((tmp_path / "x.json").read_text())["names"] == ["a cat", "red car"]
    assert run(capsys, *words, "text=two cats on the sofa.", "phrases=true")[0] == 0
    told = json.loads((tmp_path / "x.json").read_text())
    objects = told["images"][0]["objects"]
    assert [each["name"] for each in objects] == [told["names"][each["label"]] for each in objects]
    assert all("spans" in each for each in objects)


def test_a_stopped_command_goes_on(
    capsys: pytest.CaptureFixture[str],
    detector: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With another batch and drawings, too."""
    words = [pictures, f"model={detector}", "text=a cat. red car.", "threshold=0", "limit=4"]
    assert run(capsys, *words, f"out={tmp_path / 'whole.json'}")[0] == 0
    add, found = detection_files.Journal.add, []

    def stopped(self: Any, what: Any) -> None:
        if found:
            raise KeyboardInterrupt
        found.append(what.path)
        add(self, what)

    out = tmp_path / "parts.json"
    monkeypatch.setattr(detection_files.Journal, "add", stopped)
    assert run(capsys, *words, f"out={out}")[0] == 130
    assert not out.exists()
    journal = tmp_path / ".parts.json.journal"
    with journal.open("ab") as file:
        file.write(b'{"path": "cut')  # as a kill in the middle of a line leaves it
    monkeypatch.setattr(detection_files.Journal, "add", add)
    looked_at: list[str] = []
    find = Finder.find

    def watched(self: Finder, inputs: Any, *rest: Any) -> Any:
        looked_at.extend(map(str, inputs))
        return find(self, inputs, *rest)

    monkeypatch.setattr(Finder, "find", watched)
    code, _, err = run(capsys, *words, f"out={out}", "batch=2", f"draw={tmp_path / 'drawn'}")
    assert code == 0
    assert found[0] not in looked_at
    assert len(list((tmp_path / "drawn").rglob("*.jpg"))) == 3
    assert "left out 1 unreadable picture" in err
    assert json.loads(out.read_text())["images"] == json.loads((tmp_path / "whole.json").read_text())["images"]
    assert not journal.exists()


def test_what_another_command_has_begun_is_not_mixed_in(
    capsys: pytest.CaptureFixture[str], detector: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, words = tmp_path / "x.json", [pictures, f"model={detector}", "threshold=0"]
    write = detection_files.write
    monkeypatch.setattr(detection_files, "write", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(capsys, *words, "text=a cat", f"out={out}")[0] == 130
    monkeypatch.setattr(detection_files, "write", write)
    code, _, err = run(capsys, *words, "text=red car", f"out={out}")
    assert code == 2
    assert "another command has begun" in err
    assert run(capsys, *words, "text=red car", f"out={out}", "overwrite=true")[0] == 0
    assert json.loads(out.read_text())["names"] == ["red car"]


def test_a_journal_is_of_one_model_and_tells_broken_files_again(
    capsys: pytest.CaptureFixture[str], detector: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, model = tmp_path / "x.json", tmp_path / "model"
    shutil.copytree(detector, model)
    words = [pictures, f"model={model}", "text=a cat", "threshold=0", f"out={out}"]
    write = detection_files.write
    monkeypatch.setattr(detection_files, "write", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(capsys, *words)[0] == 130
    monkeypatch.setattr(detection_files, "write", write)
    shutil.rmtree(model)
    small_detector(1).save(model)
    assert "another command has begun" in run(capsys, *words)[2]
    shutil.rmtree(model)
    shutil.copytree(detector, model)
    code, _, err = run(capsys, *words)
    assert (code, "left out 1 unreadable picture" in err) == (0, True)


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    hold = "import sys; from pathlib import Path; from synoptic.apps.detection_files import Journal\n"
    hold += "with Journal(Path(sys.argv[1]), {}): print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ValueError, match="another process is writing there"), detection_files.Journal(out, {}):
            pass
        other.communicate(b"\n")
    with detection_files.Journal(out, {}):
        pass


def test_labels_have_a_folder_of_their_own(
    capsys: pytest.CaptureFixture[str], detector: Path, pictures: Path, tmp_path: Path
) -> None:
    words = [pictures, f"model={detector}", "text=a cat", f"out={tmp_path / 'labels'}", "form=yolo"]
    assert run(capsys, *words)[0] == 0
    code, _, err = run(capsys, *words)
    assert (code, "holds files, among which labels would be mixed" in err) == (2, True)
    assert run(capsys, *words, "overwrite=true")[0] == 0
    shutil.copy(pictures / "a.jpg", pictures / "classes.jpg")
    code, _, err = run(capsys, *words, "overwrite=true")
    assert (code, "rename it" in err) == (2, True)


def test_labels_of_other_pictures_are_not_mixed_in(
    capsys: pytest.CaptureFixture[str], detector: Path, pictures: Path, tmp_path: Path
) -> None:
    words = [f"model={detector}", f"out={tmp_path / 'labels'}", "form=yolo"]
    assert run(capsys, pictures, "text=a cat. dog.", *words)[0] == 0
    code, _, err = run(capsys, pictures / "a.jpg", "text=dog", *words, "overwrite=true")
    assert (code, "holds labels of other pictures (b.txt)" in err) == (2, True)
    (pictures / "b.png").write_text("junk")  # whose label is of other names
    assert run(capsys, pictures, "text=dog", *words, "overwrite=true")[0] == 0
    assert sorted(path.name for path in (tmp_path / "labels").rglob("*.txt")) == ["a.txt", "a.txt", "classes.txt"]


def test_a_picture_that_is_listed_twice_has_one_label(
    capsys: pytest.CaptureFixture[str], detector: Path, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "list.txt").write_text("a.jpg\nb.png\na.jpg\n")
    words = [f"model={detector}", "text=a cat", f"out={tmp_path / 'labels'}", "form=yolo"]
    assert run(capsys, pictures / "list.txt", *words)[0] == 0
    assert {path.name for path in (tmp_path / "labels").iterdir()} == {"a.txt", "b.txt", "classes.txt"}


def test_a_picture_wider_than_a_jpeg_is_drawn_smaller(
    capsys: pytest.CaptureFixture[str], detector: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (70_000, 40), "grey").save(tmp_path / "wide.png")
    words = [f"model={detector}", "text=a cat", f"out={tmp_path / 'x.json'}", f"draw={tmp_path / 'drawn'}"]
    assert run(capsys, tmp_path / "wide.png", *words)[0] == 0
    assert Image.open(tmp_path / "drawn" / "wide.jpg").size == (65_500, 37)


@pytest.mark.parametrize("key", ["thresholds.a_cat", "thresholds.a cat"])
def test_thresholds_are_typed_of_names_with_spaces(
    capsys: pytest.CaptureFixture[str], detector: Path, pictures: Path, key: str
) -> None:
    words = [pictures / "a.jpg", f"model={detector}", "text=a cat. dog-lamp.", "threshold=0", f"{key}=1"]
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert {line.split("\t")[1] for line in out.splitlines()} == {"dog-lamp"}
    assert "nothing found" in run(capsys, *words, "thresholds.dog-lamp=1")[1]


def test_a_damaged_journal_is_told(
    capsys: pytest.CaptureFixture[str], detector: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / ".x.json.journal").write_bytes(b"{\x01}\n")
    words = [pictures, f"model={detector}", "text=a cat", f"out={tmp_path / 'x.json'}"]
    code, _, err = run(capsys, *words)
    assert (code, "overwrite=true throws it away and begins anew" in err) == (2, True)
    assert run(capsys, *words, "overwrite=true")[0] == 0


def test_many_names_are_told_apart_in_no_time() -> None:
    paths = [Path(f"/x/{number}.jpg") for number in range(50_000)]
    start = time.perf_counter()
    assert detection_files.beneath(paths, ".txt")[-1] == Path("49999.txt")
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["text=..."], "names nothing to look for"),
        (["text=a cat. a cat."], "'a cat' is there twice"),
        (["text=a cat", "form=coco"], "form=coco decides nothing without out="),
        (["text=a cat", "out=x.txt"], "ends in .json or .csv"),
        (["text=a cat", "out=x.csv", "form=json"], "form=json is written into a .json file"),
        (["text=a cat", "threshold=2"], "threshold=2.0 should be from 0 to 1"),
        (["text=a cat", "thresholds.dog=0.5"], "thresholds.dog: is none of the names"),
        (["text=nowhere.txt"], "no such file"),
        (["text=names.csv"], "text=names.csv: is no .txt file"),
        (["text=TMP/latin.txt"], "latin.txt: is no UTF-8 text"),
        (["text=TMP/blank.txt"], "blank.txt: is empty"),
        (["text=a cat", "draw=TMP/blank.txt"], "blank.txt: is a file; give a folder"),
        (["text=a cat", "draw=/proc/drawn"], "draw=/proc/drawn: cannot be written"),
        (["text=a cat", "phrases=true", "names_per_prompt=3"], "names_per_prompt: phrases stand in one prompt"),
        (["text=a cat", "tile=3"], "tile=3 should be 32"),
        (["text=a cat", "limit=0"], "limit=0"),
        ([], "text"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], detector: Path, pictures: Path, tmp_path: Path, words: list[str], told: str
) -> None:
    (tmp_path / "latin.txt").write_bytes("b\xe9b\xe9".encode("latin-1"))
    (tmp_path / "blank.txt").write_text("\n  \n")
    words = [word.replace("TMP", str(tmp_path)) for word in words]
    code, _, err = run(capsys, pictures, f"model={detector}", *words)
    assert code == 2
    assert told in err
    assert err.count("\n") == 1


def test_no_detector_and_no_picture(
    capsys: pytest.CaptureFixture[str], detector: Path, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, _, err = run(capsys, pictures, "model=vit_nano8", "text=a cat")
    assert (code, "finds no objects" in err) == (2, True)
    for more in ([], [f"out={tmp_path / 'x.json'}"]):
        code, _, err = run(capsys, pictures / "broken.jpg", f"model={detector}", "text=a cat", *more)
        assert code == 2
        assert f"left out {pictures / 'broken.jpg'}: " in caplog.text
        assert "no picture of it can be read" in err
        assert not list(tmp_path.glob("*x.json*"))
    shutil.rmtree(pictures)
    code, _, err = run(capsys, pictures, f"model={detector}", "text=a cat")
    assert (code, "does not exist" in err) == (2, True)


def test_what_a_detector_is_not_is_said(capsys: pytest.CaptureFixture[str], detector: Path, pictures: Path) -> None:
    code = main(["embed", str(pictures / "a.jpg"), f"model={detector}", f"out={pictures / 'x.parquet'}"])
    assert code == 2
    assert "is a detector, and answers with boxes" in capsys.readouterr().err
    code = main(["evaluate", str(detector), "on=knn", f"data={pictures}"])
    assert code == 2
    assert "is judged by what it finds: take on=detection" in capsys.readouterr().err
