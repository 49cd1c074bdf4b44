"""The same pictures and captions in every form that users have them: the same training, typed as a user types it."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from synoptic.apps import cli
from synoptic.data.sources import open_source

CLIP = "train clip model=vit_nano8 size=32 batch=8 steps=3 vocabulary=300 threads=1 device=cpu precision=fp32"
DINO = "train dino model=vit_nano8 size=32 batch=8 steps=2 prototypes=32 threads=1 device=cpu precision=fp32"
FORMS = {
    "json": "data=set/captions.json",
    "csv": "data=c.csv images=set/images",
    "tsv": "data=c.tsv images=set/images",
    "parquet": "data=c.parquet",
    "shards": "data=shards/x-{00..02}.tar",
    "workers": "data=shards loader.workers=2",
    "glob": "data=shards/x-0*.tar",
    "webdataset": "data=written",
}


def typed(command: str) -> int:
    return cli.main(shlex.split(command))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captioned pictures as a folder with a JSON, as tables, and as shards of `synoptic pack` and of WebDataset."""
    folder = tmp_path_factory.mktemp("forms")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert typed("scenes out=drawn count=50 size=32") == 0
        (folder / "drawn" / "train").rename(folder / "set")
        assert typed("pack set/captions.json out=shards/x-{00..02}.tar") == 0
        source = open_source("set/captions.json", "all")
        Path("written").mkdir()
        with webdataset.ShardWriter("written/%d.tar", maxcount=15, encoder=False, verbose=0) as writer:
            for path, texts in zip(source.paths, source.captions, strict=True):
                about = json.dumps({"caption": texts}).encode()
                writer.write({"__key__": Path(path.name).stem, "jpg": path.read_bytes(), "json": about})
        rows = [(key, text) for key, texts in zip(source.keys, source.captions, strict=True) for text in texts]
        for name, delimiter in (("c.csv", ","), ("c.tsv", "\t")):
            with open(name, "w", newline="") as file:
                csv.writer(file, delimiter=delimiter).writerows([("path", "caption"), *rows])
        paths = [str(folder / "set" / "images" / key) for key in source.keys]
        pq.write_table(pa.table({"filepath": paths, "text": [list(texts) for texts in source.captions]}), "c.parquet")
    return folder


@pytest.fixture(scope="module")
def trained(workshop: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workshop)
        assert typed(f"{CLIP} {FORMS['json']} out=runs/json") == 0
    return workshop / "runs" / "json"


@pytest.mark.parametrize("form", [form for form in FORMS if form != "json"])
def test_a_training_is_the_same_in_every_form(
    workshop: Path, trained: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workshop)
    assert typed(f"{CLIP} {FORMS[form]} out=runs/{form}") == 0
    weights = [run / "weights" / "model.safetensors" for run in (trained, workshop / "runs" / form)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_run_goes_on_with_its_pictures_in_another_form(
    workshop: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workshop)
    assert typed(f"{CLIP} {FORMS['csv']} out=runs/json") == 0
    assert typed(f"{CLIP} data=shards/x-00.tar out=runs/json") == 2
    assert "data.pictures changed" in capsys.readouterr().err


def test_classes_in_shards_are_judged_by_and_shown(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workshop)
    assert typed("scenes out=single count=60 size=32 objects=1") == 0
    assert typed("pack single out=packed/train/{0..1}.tar") == 0
    assert "the test part is left out: split=test packs it" in capsys.readouterr().err
    assert typed("pack single split=test out=packed/test/0.tar") == 0
    assert capsys.readouterr().err == ""
    assert typed("pack single split=train out=packed-part.tar") == 0
    assert "a tenth of its training pictures is set apart" in capsys.readouterr().err
    assert typed(f"{DINO} data=packed out=runs/dino") == 0
    capsys.readouterr()
    scores = []
    for data in ("single", "packed"):
        assert typed(f"evaluate runs/dino on=knn data={data}") == 0
        scores.append(capsys.readouterr().out)
    assert scores[0] == scores[1]
    assert typed("report runs/dino") == 0
    page = (workshop / "runs" / "dino" / "report.html").read_text()
    assert "Nearest neighbours" in page and "None can be shown" not in page


def test_where_the_pictures_lie_is_asked_of_evaluations_and_reports_too(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workshop)
    assert typed(f"{CLIP} {FORMS['tsv']} out=runs/images") == 0
    assert typed("report runs/images") == 0
    assert "None can be shown" not in (workshop / "runs" / "images" / "report.html").read_text()
    assert typed("evaluate runs/images on=knn data=c.csv images=set/images") == 2  # for want of classes alone
    assert "has no labels" in capsys.readouterr().err


def test_a_shell_may_make_several_words_of_a_pattern(
    workshop: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bash does so, also behind a `=`; the last word alone would be one shard of three."""
    monkeypatch.chdir(workshop)
    shards = [f"shards/x-0{number}.tar" for number in range(3)]
    assert cli.main(["pack", *shards, *(f"out=bash-{number}.tar" for number in range(2))]) == 0
    assert capsys.readouterr().out == "40 pictures in bash-0.tar to bash-1.tar, 2 shards\n"
    words = [*CLIP.split(), *(f"data={shard}" for shard in shards), "out=runs/bash"]
    assert cli.main(words) == 0
    weights = [run / "weights" / "model.safetensors" for run in (trained, workshop / "runs" / "bash")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert json.loads((workshop / "runs" / "bash" / "config.json").read_text())["data"] == "shards/x-{00..02}.tar"


def test_pack_tells_what_it_wrote(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workshop)
    listed = json.loads((workshop / "set" / "captions.json").read_text())
    listed["images"].append({"id": 999, "file_name": "gone.png"})
    (workshop / "set" / "more.json").write_text(json.dumps(listed))
    assert typed("pack data=set/more.json out=told-{0..1}.tar") == 0
    out, err = capsys.readouterr()
    assert out == "40 pictures in told-0.tar to told-1.tar, 2 shards\n" and "left out 1 unreadable picture" in err
    assert typed("pack c.csv images=set/images out=one.tar seed=1") == 0
    assert capsys.readouterr().out == "40 pictures in one.tar\n"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("pack set out=x-{0..1}.zip", "out=x-{0..1}.zip: shards are .tar files"),
        ("pack nowhere out=x.tar", "nowhere does not exist"),
        ("pack set", "out= is missing"),
        ("pack set out=shards/x-{00..02}.tar seed=5", "holds something else; overwrite=true replaces it"),
        ("pack set out=x.tar split=dev", "split=dev"),
        ("pack set out=x.tar images=set/images", "images=set/images: only a captions JSON or a table asks for it"),
        (f"{CLIP} out=no data=shards/x-{{00..03}}.tar", "a shard is missing, shards/x-03.tar"),
        (f"{CLIP} out=no data=c.csv", "none of its pictures is there"),
        (f"{CLIP} out=no data=c.csv images=set/imags", "did you mean set/images?"),
        (f"{CLIP} out=no data=plain.csv", "has no header"),
        (f"{CLIP} out=no data=mute.csv images=set/images", "mute.csv has no captions"),
        (f"{CLIP} out=no data=cut.tar", "before the place where cut.tar is cut short"),
        (f"{CLIP} out=no data=few.csv images=set/images", "pictures cannot be read, over 5%"),
    ],
)
def test_a_mistake_is_one_line(
    workshop: Path, command: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workshop)
    lines = (workshop / "c.csv").read_text().splitlines(keepends=True)
    (workshop / "plain.csv").write_text("".join(lines[1:]))
    (workshop / "mute.csv").write_text("path,caption\n" + "".join(f"{line.split(',')[0]},\n" for line in lines[1:]))
    (workshop / "few.csv").write_text("".join(lines) + "".join(f"gone{number}.png,x\n" for number in range(9)))
    (workshop / "cut.tar").write_bytes((workshop / "shards" / "x-00.tar").read_bytes()[:2000])
    assert typed(command) == 2
    err = capsys.readouterr().err
    assert told in err.splitlines()[-1] and "Traceback" not in err
    assert not (workshop / "no").exists()
