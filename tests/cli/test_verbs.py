"""From pictures to a model to its use, as a user types it; everything tiny."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import synoptic
from synoptic.apps import cli
from synoptic.apps.training import told

CLIP = "train clip data=pictures model=vit_mini16 size=32 batch=4 vocabulary=300 threads=1 device=cpu precision=fp32"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pictures`, and `clip`, a model trained on them for two steps."""
    folder = tmp_path_factory.mktemp("workshop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["scenes", "out=pictures", "count=40", "size=32", "objects=1"]) == 0
        assert cli.main([*CLIP.split(), "out=clip", "steps=2"]) == 0
    return folder


@pytest.fixture
def type_in(workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Types a command in the workshop; returns what it printed after checking its exit code."""
    monkeypatch.chdir(workshop)

    def typed(command: str, code: int = 0) -> str:
        capsys.readouterr()
        assert cli.main(command.split()) == code
        out, err = capsys.readouterr()
        if code:
            assert err.count("\n") == 1
        return err if code else out

    return typed


def test_a_run_folder_is_whole(workshop: Path) -> None:
    run = workshop / "clip"
    assert {"config.json", "environment.json", "train.log", "metrics.jsonl", "checkpoints", "weights"} <= {
        path.name for path in run.iterdir()
    }
    assert {"model.safetensors", "config.json", "README.md"} <= {path.name for path in (run / "weights").iterdir()}


def test_a_finished_run_is_left_alone(type_in, workshop: Path) -> None:
    weights = workshop / "clip" / "weights" / "model.safetensors"
    before = weights.read_bytes()
    type_in(f"{CLIP} out=clip steps=2")
    assert weights.read_bytes() == before
    assert "resume=auto" in type_in(f"{CLIP} out=clip steps=2 resume=never", code=2)
    assert weights.read_bytes() == before


def test_a_resolved_configuration_trains_again(type_in, workshop: Path) -> None:
    plan = json.loads(type_in("train clip config=clip/config.json out=again --dry-run"))
    resolved = json.loads((workshop / "clip" / "config.json").read_text())
    assert plan["config"] == resolved | {"out": "again"}


def test_a_dry_run_tells_the_parameters_and_writes_nothing(type_in, workshop: Path) -> None:
    plan = json.loads(type_in("train dino data=pictures out=dry model=vit_mini16 size=32 --dry-run"))
    assert plan["config"]["optim"]["lr"] is not None
    assert 1_000_000 <= plan["parameters"]["exported"] <= 3_000_000
    (phase,) = plan["phases"]
    assert phase["from"] == 0
    assert plan["hours"] == pytest.approx(phase["seconds_per_step"] * plan["config"]["steps"] / 3600, abs=1e-2)
    assert not (workshop / "dry").exists()


def test_a_dry_run_tries_the_phase_of_large_pictures_and_the_share_of_one_process(type_in, workshop: Path) -> None:
    small = "model=vit_nano8 size=32 batch=4 steps=100 prototypes=64 head_hidden=32 bottleneck=16 patch_bottleneck=16"
    command = f"train dinov2 data=pictures out=dry {small} devices=2 --dry-run"
    plan = json.loads(type_in(f"{command} high_resolution.share=0.25 high_resolution.scale=4"))
    early, late = plan["phases"]
    assert (early["from"], late["from"]) == (0, 0.75)
    assert late["seconds_per_step"] > early["seconds_per_step"]
    mean = 0.75 * early["seconds_per_step"] + 0.25 * late["seconds_per_step"]
    assert plan["hours"] == pytest.approx(mean * 100 / 3600, abs=2e-3)
    said = dict(told(plan))
    assert ", from 75 % on " in said["a step"] and said["the run"].startswith("100 steps, ")
    assert said["dino"].endswith("at the start; guessing would give 4.159"), "ln 64"
    assert "devices=3 cannot share it evenly" in type_in(f"{command} devices=3", code=2)


def test_pictures_become_a_table(type_in, workshop: Path) -> None:
    type_in("embed pictures/test/images model=clip out=e.parquet")
    table = pq.read_table(workshop / "e.parquet")
    assert table.column_names == ["path", "content_hash", "width", "height", "model", "weights_hash", "embedding"]
    assert len(table) == 8
    assert set(table["width"].to_pylist()) == {32}


def test_a_table_follows_its_pictures(type_in, workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(workshop / "pictures/test/images", workshop / "album")
    assert type_in("embed album model=clip out=album.parquet") == "album.parquet\n"
    next((workshop / "album").rglob("*.jpg")).unlink()
    assert cli.main(["embed", "album", "model=clip", "out=album.parquet"]) == 0
    assert capsys.readouterr().err == "0 new, 0 changed, 1 dropped, 7 kept\n"
    told = type_in("embed album model=vit_mini16 out=album.parquet", code=2)
    assert "album.parquet holds embeddings of clip with the weights" in told and "overwrite=true" in told


def test_a_table_is_searched_by_words_and_by_a_picture(
    type_in, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in("embed pictures/test/images model=clip out=s.parquet")
    header, *rows = [line.split("\t") for line in type_in("search s.parquet text=cone k=3").splitlines()]
    assert header == ["score", "path", "missing"] and len(rows) == 3
    assert [float(row[0]) for row in rows] == sorted((float(row[0]) for row in rows), reverse=True)
    assert {row[2] for row in rows} == {"no"}
    picture = rows[1][1]
    score, path, _ = type_in(f"search s.parquet image={picture} k=1 out=near.png").splitlines()[1].split("\t")
    assert (score, path) == ("1.0000", picture)
    assert (workshop / "near.png").is_file()
    assert len(type_in("search s.parquet text=cone k=100").splitlines()) == 1 + 8
    (workshop / picture).rename(workshop / "aside.jpg")
    try:
        assert cli.main(f"search s.parquet image=aside.jpg k=1 out={workshop}/near.json".split()) == 0
        out, err = capsys.readouterr()
        assert out.endswith(f"{picture}\tyes\n") and err.startswith("1 picture is not where embed found them")
    finally:
        (workshop / "aside.jpg").rename(workshop / picture)
    assert json.loads((workshop / "near.json").read_text())[0]["path"] == picture


def test_pictures_become_a_table_of_patches(type_in, workshop: Path) -> None:
    type_in("embed pictures/test/images model=clip out=p.parquet tokens=patches")
    table = pq.read_table(workshop / "p.parquet")
    assert len(table) == 8 * 4
    assert {"row", "column"} <= set(table.column_names)


def test_pictures_get_labels(type_in, workshop: Path) -> None:
    printed = type_in("classify pictures/test/images model=clip labels=cone,cube out=labels.json")
    header, *rows = [line.split("\t") for line in printed.splitlines()]
    assert header == ["picture", "label", "score"]
    scores = json.loads((workshop / "labels.json").read_text())
    assert [row[0] for row in rows] == list(scores)
    for path, label, score in rows:
        assert {entry["label"] for entry in scores[path]} == {"cone", "cube"}
        assert scores[path][0]["label"] == label
        assert float(score) == pytest.approx(scores[path][0]["score"], abs=1e-4)


def test_labels_are_those_that_python_gives(type_in, workshop: Path) -> None:
    type_in("classify pictures/test/images model=clip labels=cone,cube out=labels.json")
    expected = synoptic.load(workshop / "clip").classify(workshop / "pictures/test/images", ["cone", "cube"])
    assert list(json.loads((workshop / "labels.json").read_text()).values()) == expected


def test_labels_come_from_files_and_as_many_as_wanted_are_told(type_in, workshop: Path) -> None:
    (workshop / "classes.csv").write_text('cone\n"cube, red",a red cube,the red cube\nsphere\n')
    (workshop / "templates.txt").write_text("a {}\nthe {}\n")
    command = "classify pictures/test/images model=clip labels=classes.csv"
    rows = [line.split("\t") for line in type_in(f"{command} templates=templates.txt k=2 out=two.csv").splitlines()]
    with (workshop / "two.csv").open(newline="") as file:
        written = list(csv.reader(file))
    assert written[0] == rows[0] == ["picture", "label", "score"]
    assert [row[:2] for row in written] == [row[:2] for row in rows]
    assert len(rows) == 1 + 8 * 2
    assert all(float(first[2]) >= float(second[2]) for first, second in zip(rows[1::2], rows[2::2], strict=True))
    expected = synoptic.load(workshop / "clip").classify(
        workshop / "pictures/test/images",
        {"cone": [], "cube, red": ["a red cube", "the red cube"], "sphere": []},
        ["a {}", "the {}"],
    )
    assert [row[1] for row in rows[1::2]] == [answers[0]["label"] for answers in expected]
    type_in(f"{command} templates=80 out=all.json")
    assert {len(answers) for answers in json.loads((workshop / "all.json").read_text()).values()} == {3}


def test_words_are_shown_on_the_pictures(type_in, workshop: Path) -> None:
    type_in("figures pictures/test/images model=clip out=named text=cone,cube")
    assert json.loads((workshop / "named" / "figures.json").read_text())["text"] == ["cone", "cube"]


def test_captions_and_pictures_are_judged_both_ways(type_in, workshop: Path) -> None:
    printed = type_in("evaluate clip on=retrieval data=pictures")
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in printed.splitlines()}
    assert rows["score"] == ["value", "95 % from", "to", "chance"]
    value, low, high, chance = map(float, rows["text_to_image_r1"])
    assert low <= value <= high and chance == pytest.approx(1 / 8, abs=1e-4)


def test_what_is_broken_is_told_and_left_out(type_in, workshop: Path, caplog: pytest.LogCaptureFixture) -> None:
    mixed = workshop / "mixed"
    mixed.mkdir()
    whole = next((workshop / "pictures" / "test" / "images").rglob("*.jpg")).read_bytes()
    (mixed / "a.jpg").write_bytes(whole)
    (mixed / "b.jpg").write_bytes(whole[:100])
    rows = type_in("classify mixed model=clip labels=cone,cube out=mixed.json").splitlines()[1:]
    assert [row.partition("\t")[0] for row in rows] == ["mixed/a.jpg"]
    assert list(json.loads((workshop / "mixed.json").read_text())) == ["mixed/a.jpg"]
    assert type_in("embed mixed model=clip out=mixed.parquet") == "mixed.parquet\n"
    assert pq.read_table(workshop / "mixed.parquet")["path"].to_pylist() == ["mixed/a.jpg"]
    assert sum("left out mixed/b.jpg" in message for message in caplog.messages) == 2
    (mixed / "a.jpg").unlink()
    assert "none of its 1 pictures can be read" in type_in("classify mixed model=clip labels=cone,cube", code=2)


@pytest.mark.parametrize(
    "command",
    [
        "embed pictures/test/images model=clip out={}.parquet",
        "classify pictures/test/images model=clip labels=cone,cube out={}.json",
        "evaluate clip on=knn data=pictures out={}.json",
        "report clip out={}.html",
    ],
)
def test_what_is_written_may_lie_in_a_new_folder_of_the_users_home(
    type_in, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    type_in(command.format("~/new/folder/file"))
    assert [path.stem for path in (tmp_path / "new" / "folder").iterdir()] == ["file"]
    assert not (workshop / "~").exists()


def test_one_picture_gets_a_label(type_in, workshop: Path) -> None:
    picture = next((workshop / "pictures" / "test" / "images").rglob("*.jpg")).relative_to(workshop)
    assert len(type_in(f"classify {picture} model=clip/weights labels=cone,cube").splitlines()) == 2


def test_a_model_is_judged(type_in, workshop: Path) -> None:
    printed = type_in("evaluate clip on=knn,zeroshot data=pictures out=scores.json")
    scores = dict(line.split("\t") for line in printed.splitlines()[1:])
    assert {"knn", "zeroshot"} <= set(scores)
    assert all(0 <= float(score) <= 1 for score in scores.values())
    written = json.loads((workshop / "scores.json").read_text())
    assert {name: f"{written[name]:.4f}" for name in scores} == scores


def test_a_model_is_judged_in_every_way(type_in, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from synoptic.evaluation import linear
    from synoptic.evaluation.protocols import EVALUATIONS

    monkeypatch.setattr(linear, "STEPS", (20, 20))
    on = [name for name in EVALUATIONS if name != "agreement"]  # which is of students alone
    printed = type_in(f"evaluate clip on={','.join(on)} data=scenes:count=60,size=32,objects=1")
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in printed.splitlines()}
    words = {f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    assert {re.split("_miou|_|@", name)[0] for name in rows.keys() - words - {"score"}} == {
        name.removesuffix("_segmentation") for name in on
    }
    assert words | {"zeroshot_segmentation_miou_foreground"} < rows.keys()
    assert rows["retrieval_p1"][1:] == ["", "", ""], "what has no interval tells none"


def test_a_student_is_judged_and_shown_at_rising_sizes(type_in, workshop: Path) -> None:
    keys = "teachers=clip:clip model=vit_mini16 size=32 batch=4 threads=1 device=cpu precision=fp32 out=student steps=1"
    type_in(f"train radio data=pictures {keys}")
    rising = "teachers=clip:clip sizes=32,64"
    printed = type_in(f"evaluate student on=agreement,artefacts data=pictures {rising} out=student/sizes.json")
    scores = dict(line.split("\t") for line in printed.splitlines()[1:])
    assert {"agreement_clip_cosine@32", "agreement_clip_summary@64", "agreement_clip_drop"} < set(scores)
    assert {"artefacts@64", "artefacts_unbiased@64"} < set(scores)
    assert type_in(f"figures pictures/test/images model=student out=rising {rising}") == "rising\n"
    assert {path.name for path in (workshop / "rising").glob("a*.png")} == {"agreement.png", "artefacts.png"}
    page = workshop / type_in("report student out=student.html").strip()
    assert "At other resolutions" in page.read_text(encoding="utf-8")
    told = type_in("evaluate student on=agreement data=pictures teachers=dino:clip", code=2)
    assert "teachers=dino: the student has no such adaptor; its adaptors are clip" in told


def test_what_a_model_sees_becomes_figures(type_in, workshop: Path) -> None:
    command = "figures pictures/test/images model=clip out=seen"
    assert type_in(command) == "seen\n"
    pictures = sorted((workshop / "pictures/test/images").rglob("*.jpg"))
    names = [picture.relative_to(workshop / "pictures/test/images").with_suffix(".png") for picture in pictures]
    assert sorted(path.relative_to(workshop / "seen/sheets") for path in (workshop / "seen").rglob("*/*.png")) == names
    assert (workshop / "seen" / "contact_sheet.png").is_file()
    assert type_in(command) == "seen\n", "nothing is left to draw"
    assert "out=seen: holds figures with layer=-1, not 0; overwrite=true" in type_in(f"{command} layer=0", code=2)
    assert type_in(f"{command} layer=0 overwrite=true") == "seen\n"


def test_a_run_gets_its_page(type_in, workshop: Path) -> None:
    page = workshop / type_in("report clip out=page.html").strip()
    assert page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")


@pytest.mark.parametrize(
    "command",
    [
        "embed pictures/test/images model=clip out={}",
        "classify pictures/test/images model=clip labels=cone,cube out={}",
        "evaluate clip on=knn data=pictures out={}",
        "report clip out={}",
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    type_in, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("synoptic.predict.VisionModel.__call__", lambda *_, **__: pytest.fail("worked"))
    assert "out=pictures: is a folder; give a file" in type_in(command.format("pictures"), code=2)
    told = type_in(command.format("clip/config.json/file"), code=2)
    assert "out=clip/config.json/file: cannot be written (" in told and "); give another place" in told


def test_evaluations_may_be_one_text(workshop: Path) -> None:
    data, model = str(workshop / "pictures"), synoptic.load(workshop / "clip")
    both = synoptic.evaluate(model, on="knn,zeroshot", data=data)
    assert both == synoptic.evaluate(model, on=["knn", "zeroshot"], data=data) and "zeroshot" in both
    with pytest.raises(ValueError, match="on=: names no evaluation"):
        synoptic.evaluate(model, on=(), data=data)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("embed pictures model=clip out=x.csv", "out=x.csv: embeddings become a Parquet table; give a name that ends"),
        ("train dino data=picturez out=new model=vit_mini16", "picturez does not exist"),
        ("train dino data=pictures out=new model=vit_mini61", "vit_mini61"),
        ("train dino data=pictures out=new model=clip", "model=clip: is no architecture; init=clip begins with the"),
        ("train dino data=pictures out=new devices=100000 device=cpu", "devices=100000: this machine has "),
        ("train dino data=pictures out=pictures/scenes.json model=vit_mini16", "is a file"),
        ("train dino data=pictures out=pictures model=vit_mini16", "holds files that are no run"),
        ("train radio data=pictures out=new model=vit_mini16", "teachers= is missing"),
        ("train radio data=pictures out=new model=vit_mini16 teachers=clip", "is not of the form name:MODEL"),
        ("train radio data=pictures out=new model=vit_mini16 teachers=a:nowhere", "there is no model 'nowhere'"),
        ("embed nothing model=clip out=x.parquet", "nothing does not exist"),
        ("embed pictures model=vit_mini61 out=x.parquet", "did you mean vit_mini16"),
        ("classify pictures/test/images model=vit_mini16 labels=a,b", "knows no words"),
        ("classify pictures model=clip labels=", 'labels: there are none; give classes in words, such as "cat,dog"'),
        ("classify pictures model=clip labels=a,b templates=photo", "templates: 'photo' has no {}; give sentences"),
        ("classify pictures model=clip labels=a,b templates=81", "templates: '81' has no {}; give sentences"),
        ("classify pictures model=clip labels=a,b out=a.tsv", "out=a.tsv: give a name that ends in .json or .csv"),
        ("classify pictures model=clip labels=a", "labels: 'a' alone leaves nothing to choose"),
        ("classify pictures model=clip labels=a,b,a", "labels: 'a' is there 2 times"),
        ("classify pictures model=clip labels=a,b templates=none.txt", "templates=none.txt: is no file"),
        ("classify pictures model=clip labels=nowhere.csv", "labels=nowhere.csv: is no file"),
        ("classify pictures model=clip labels=a,b k=0", "k=0"),
        ("evaluate clip on=knnn data=pictures", "on=knnn should be 'knn', 'linear', 'logistic', 'retrieval', "),
        ("evaluate clip on= data=pictures", "on=: names no evaluation; give some of knn, linear, "),
        ("evaluate clip on=knn data=pictures adaptor=dino", "adaptor=dino: no such adaptor; clip has none"),
        ("evaluate nowhere on=knn data=pictures", "there is no model 'nowhere'"),
        ("evaluate clip on=agreement data=pictures teachers=clip:clip", "the model has no adaptors to compare with"),
        (
            "evaluate clip on=artefacts data=pictures sizes=40",
            "sizes=40: patches of 16 pixels do not tile it; the near",
        ),
        ("evaluate clip on=knn data=pictures sizes=32", "sizes= decides nothing without on=agreement or on=artefacts"),
        ("evaluate clip on=artefacts data=pictures sizes=a", "sizes=a should be a valid integer"),
        ("figures pictures/test/images model=vit_mini16 out=x.parquet text=cone", "vit_mini16 knows no words"),
        ("figures pictures/test/images model=clip out=x.parquet text=cone,,cube", "text=cone,,cube: one is empty"),
        ("figures pictures/test/images model=clip out=x.parquet text=a,b,a", "'a' is there twice; leave one"),
        ("evaluate vit_mini16 on=retrieval data=pictures/test/captions.json", "vit_mini16 knows no words"),
        ("figures nothing model=clip out=x.parquet", "nothing does not exist"),
        ("figures pictures model=clip out=pictures", "out=pictures: holds files that are no figures"),
        ("figures pictures/test/images model=clip out=x.parquet layer=4", "there is no layer 4"),
        ("figures pictures/test/images model=clip out=x.parquet size=20", "not tiled by patches of 16"),
        ("search nowhere.parquet text=a", "nowhere.parquet does not exist"),
        ("search clip text=a", "clip is no whole Parquet file"),
        ("search clip/config.json text=a", "clip/config.json is no whole Parquet file"),
        ("search clip text=a image=b", "give what to look for, either text="),
        ("search clip text=a k=0", "k=0 should be greater than 0"),
        ("search clip txt=a", "unknown key txt (did you mean text?)"),
        ("report nowhere", "nowhere"),
    ],
)
def test_a_mistake_is_told_where_it_is(type_in, workshop: Path, command: str, told: str) -> None:
    assert told in type_in(command, code=2)
    assert not (workshop / "x.parquet").exists()


def test_a_run_that_cannot_begin_leaves_no_folder(type_in, workshop: Path) -> None:
    type_in("train dino data=pictures out=never model=vit_mini61", code=2)
    assert not (workshop / "never").exists()


def test_an_interrupted_run_is_saved_and_goes_on(type_in, workshop: Path) -> None:
    steps = 100
    command = f"{CLIP} out=stopped steps={steps} evaluate_every={steps} checkpoint_every={steps} log_every=1"
    process = subprocess.Popen(
        [sys.executable, "-m", "synoptic", *command.split()],
        cwd=workshop,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert rest.splitlines()[-1].startswith("synoptic: ")
    assert "Traceback" not in rest
    run = workshop / "stopped"
    (saved,) = (run / "checkpoints").glob("step_*.pt")
    stopped = int(saved.stem.removeprefix("step_"))
    assert 0 < stopped < steps
    type_in(command)
    assert f"going on after step {stopped}" in (run / "train.log").read_text()
    told = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(told)) == list(range(1, steps + 1))
    assert (run / "weights" / "model.safetensors").is_file()
