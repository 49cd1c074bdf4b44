"""What stands in a run folder, who may change it, and what a run refuses before it begins."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import synoptic
from synoptic import run
from synoptic.config import load_json
from synoptic.machine import processor
from synoptic.methods import dino
from synoptic.weights.folder import load_folder, save_folder, weights_hash


class Begun(Exception):
    """The training itself would begin now."""


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that end where their training would begin, or the processes that train."""

    def begin(*_: Any) -> None:
        raise Begun

    monkeypatch.setattr(run.loop, "train", begin)
    monkeypatch.setattr(run.distributed, "launch", begin)


def draw(folder: Path, names: list[str]) -> Path:
    noise = np.random.default_rng(len(names))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / name)
    return folder


def train(data: Path, out: Path | str, **keys: Any) -> Path:
    """A run of two steps."""
    small = {"size": 16, "steps": 2, "batch": 2, "checkpoint_every": 1, "evaluate_every": 1}
    small |= {} if "init" in keys else {"model": "vit_nano8"}
    head = {"prototypes": 8, "head_hidden": 8, "bottleneck": 4, "crops.local_count": 0}
    rest = {"precision": "fp32", "loader.workers": 0}
    return synoptic.train("dino", data=str(data), out=str(out), **{**small, **head, **rest, **keys})


def change(folder: Path) -> dict[str, int]:
    """When each file was last written."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("labelled"), [f"{name}/{number}.png" for name in "ab" for number in range(5)])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("plain"), [f"{number}.png" for number in range(6)])


@pytest.fixture(scope="module")
def original(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(plain, tmp_path_factory.mktemp("runs") / "original")


@pytest.fixture
def finished(original: Path, tmp_path: Path) -> Path:
    """A finished run to do anything with."""
    return Path(shutil.copytree(original, tmp_path / "runs" / "original"))


def broken(folder: Path, count: int, every: int) -> Path:
    """Pictures of which every so many cannot be read."""
    draw(folder, [f"{number:03}.png" for number in range(count)])
    for number in range(0, count, every):
        (folder / f"{number:03}.png").write_bytes(b"broken")
    return folder


# --- what is thrown away, and what is not


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX locks")
def test_a_run_that_another_process_writes_is_not_thrown_away(plain: Path, finished: Path) -> None:
    hold = "import sys; from pathlib import Path; from synoptic.files import sole_writer\n"
    hold += "with sole_writer(Path(sys.argv[1])): print(flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(finished)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    try:
        holder.stdout.readline()
        before = change(finished)
        for keys in ({}, {"overwrite": True}):
            with pytest.raises(ValueError, match="another process is writing there"):
                train(plain, finished, **keys)
        assert change(finished) == before
    finally:
        holder.kill()
        holder.communicate()


def test_a_run_thrown_away_is_another_run_and_stays(plain: Path, finished: Path) -> None:
    (finished / "figures").mkdir()
    (finished / "figures" / "old.png").write_bytes(b"old")
    with pytest.raises(ValueError, match="seed changed since this run was begun, from 0 to 5"):
        train(plain, finished, seed=5)
    train(plain, finished, seed=5, overwrite=True, resume="never")
    assert not (finished / "figures").exists()
    config = load_json(finished / "config.json")
    assert (config["seed"], config["overwrite"], config["resume"]) == (5, False, "auto")
    assert load_folder(finished / "weights")[2].trained["seed"] == 5
    before = change(finished)
    synoptic.train("dino", config=finished / "config.json")
    assert change(finished) == before | {"environment.json": change(finished)["environment.json"]}


def test_a_run_half_thrown_away_is_still_known_as_one(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    unlink = Path.unlink

    def noted(path: Path, missing_ok: bool = False) -> None:
        removed.append(path.name)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", noted)
    (finished / ".lock").touch()
    run._empty(finished)
    assert removed[-1] == "config.json"
    assert [path.name for path in finished.iterdir()] == [".lock"]


def test_a_finished_run_is_exported_once(plain: Path, finished: Path) -> None:
    before = change(finished)
    train(plain, finished)
    assert change(finished / "weights") == {
        name.removeprefix("weights/"): time for name, time in before.items() if name.startswith("weights/")
    }
    digest = weights_hash(load_folder(finished / "weights")[0])
    shutil.rmtree(finished / "weights")
    train(plain, finished)
    assert weights_hash(load_folder(finished / "weights")[0]) == digest


@pytest.mark.usefixtures("untrained")
def test_only_files_of_others_keep_a_run_out_of_a_folder(plain: Path, tmp_path: Path) -> None:
    """What a run killed at its very first file leaves is not of others."""
    (tmp_path / ".config.json.tmp").write_text("{")
    (tmp_path / ".lock").touch()
    with pytest.raises(Begun):
        train(plain, tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="holds files that are no run"):
        train(plain, tmp_path / "other")


@pytest.mark.usefixtures("untrained")
def test_pictures_of_which_many_are_broken_are_refused_before_the_folder_is_claimed(tmp_path: Path) -> None:
    data = broken(tmp_path / "data", 40, every=8)
    for keys in ({}, {"devices": 2, "device": "cpu"}):
        with pytest.raises(ValueError, match="cannot be read, over 5%"):
            train(data, tmp_path / "run", **keys)
    assert not (tmp_path / "run").exists()
    with pytest.raises(Begun):
        train(data, tmp_path / "run", **{"loader.unreadable": 0.2})


def test_a_run_that_unreadable_pictures_stopped_goes_on_where_more_are_allowed(tmp_path: Path, monkeypatch) -> None:
    data = broken(tmp_path / "data", 40, every=8)
    monkeypatch.setattr(run, "look", lambda *_: {})  # which did not meet them
    with pytest.raises(ValueError, match=r"cannot be read, over 5%, .*higher loader.unreadable"):
        train(data, tmp_path / "run", steps=12, evaluate_every=12)
    assert list((tmp_path / "run" / "checkpoints").glob("step_*.pt"))
    rest = {"steps": 12, "evaluate_every": 12, "loader.unreadable": 0.2}
    resumed, whole = (load_folder(train(data, tmp_path / name, **rest) / "weights")[0] for name in ("run", "whole"))
    assert weights_hash(resumed) == weights_hash(whole)


@pytest.mark.usefixtures("untrained")
def test_a_tilde_is_the_home_folder(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(Begun):
        train(plain, "~/a run")
    assert load_json(tmp_path / "a run" / "config.json")["out"] == str(tmp_path / "a run")


# --- what a run that goes on may not have changed


@pytest.mark.usefixtures("untrained")
def test_before_the_first_checkpoint_settings_may_change(plain: Path, tmp_path: Path) -> None:
    for lr in (1e-3, 1e-4):
        with pytest.raises(Begun):
            train(plain, tmp_path / "run", **{"optim.lr": lr})
        (tmp_path / "run" / "data_errors.jsonl").write_text("")
    assert load_json(tmp_path / "run" / "config.json")["optim"]["lr"] == 1e-4
    with pytest.raises(Begun):
        train(plain, tmp_path / "run")
    assert not (tmp_path / "run" / "data_errors.jsonl").exists(), "it told of an attempt with other settings"


@pytest.mark.usefixtures("untrained")
def test_other_pictures_are_refused_and_the_run_is_left_as_it_is(
    plain: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Begun):
        train(plain, finished)
    before = change(finished)
    moved = plain.rename(tmp_path / "elsewhere")
    try:
        for names, message in (
            ([f"{number}.png" for number in range(7)], "data.pictures changed since this run was begun, from 5 to 6; "),
            ([f"{number}.jpg" for number in range(6)], "data.sha256 changed since this run was begun, from "),
        ):
            draw(plain, names)
            with pytest.raises(ValueError, match=message) as raised:
                train(plain, finished)
            assert "\n" not in str(raised.value)
            shutil.rmtree(plain)
    finally:
        moved.rename(plain)
    assert change(finished) == before


def test_what_the_task_depends_on_is_told_and_may_not_change(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dino.DinoTask, "facts", lambda _: {"teachers.clip": "aaaa"})
    out = train(plain, tmp_path / "run")
    assert load_json(out / "weights" / "config.json")["trained"]["teachers.clip"] == "aaaa"
    monkeypatch.setattr(dino.DinoTask, "facts", lambda _: {"teachers.clip": "bbbb"})
    with pytest.raises(ValueError, match=r"teachers.clip changed since this run was begun, from aaaa to bbbb; set it"):
        train(plain, out)


# --- what is told of the weights


def test_weights_tell_the_step_and_the_scores_they_come_from(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.9, 0.1])
    monkeypatch.setattr(run.KNN, "__init__", lambda self: None)
    monkeypatch.setattr(run.KNN, "run", lambda self, model: iter([("knn", next(scores))]))
    monkeypatch.setattr(run, "_evaluators", lambda *_: [run.KNN()])
    out = train(plain, tmp_path / "run", steps=3)
    trained = load_json(out / "weights" / "config.json")["trained"]
    assert (trained["steps"], trained["scores"]) == (2, {"knn": 0.9})
    before = change(out / "weights")
    train(plain, out, steps=3)
    assert change(out / "weights") == before


@pytest.mark.parametrize(("fewest", "stops"), [(30, False), (1, True)])
def test_a_score_of_few_pictures_stops_no_run(
    labelled: Path, tmp_path: Path, monkeypatch, caplog, fewest: int, stops: bool
) -> None:
    scores = iter([0.9, 0.1, 0.1])
    monkeypatch.setattr(run, "FEWEST", fewest)
    monkeypatch.setattr(run.KNN, "scores", lambda self, *seen: iter([("knn", next(scores))]))
    keys = {"init": "vit_nano8", "max_drop": 0.1}
    with pytest.raises(run.Worsened) if stops else nullcontext():
        train(labelled, tmp_path / "run", **keys)
    assert ("max_drop=0.1: there are fewer than 30 pictures to judge by" in caplog.text) is not stops
    start = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert (start["step"], start["evaluation"]["knn"]) == (0, 0.9)


def test_without_labels_the_last_step_is_exported_and_of_few_pictures_no_scores_are_told(original: Path) -> None:
    trained = load_json(original / "weights" / "config.json")["trained"]
    assert trained["steps"] == 2 and "scores" not in trained
    assert "scores" not in (original / "weights" / "README.md").read_text()


def test_without_labels_the_rank_of_the_embeddings_is_told(plain: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "FEWEST", 1)
    out = train(plain, tmp_path / "run", steps=1)
    assert list(load_json(out / "weights" / "config.json")["trained"]["scores"]) == ["rankme"]
    assert "rankme" in (out / "weights" / "README.md").read_text()


def test_a_card_has_no_line_for_nothing(original: Path, tmp_path: Path) -> None:
    model, preprocess, _ = load_folder(original / "weights")
    save_folder(tmp_path / "w", model, preprocess, {"steps": 3, "scores": {}})
    card = (tmp_path / "w" / "README.md").read_text()
    assert "- steps: 3" in card and "scores" not in card


def test_the_environment_names_the_processor(original: Path) -> None:
    assert load_json(original / "environment.json")["processor"] == processor() != ""


# --- validation pictures


def test_a_broken_validation_picture_is_listed_and_counts_among_all(tmp_path: Path) -> None:
    names = [f"{name}/{number}.png" for name in "ab" for number in range(8)]
    data = draw(tmp_path / "data", [*(f"train/{name}" for name in names), *(f"val/{name}" for name in names[4:12])])
    broken = data / "val" / "a" / "5.png"
    broken.write_bytes(b"broken")  # an eighth of its part, a twenty-fourth of all
    out = train(data, tmp_path / "run", steps=1)
    (line,) = (out / "data_errors.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == str(broken)


# --- what is refused before anything is written


def refused(message: str, data: Path, out: Path, **keys: Any) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        train(data, out, **keys)
    assert "\n" not in str(raised.value)
    assert not out.exists()


def test_only_what_is_judged_while_training_can_decide(labelled: Path, plain: Path, tmp_path: Path) -> None:
    metric = "checkpoint.metric"
    for data in (labelled, plain):
        refused(f"{metric}=foo: only knn decides in this method", data, tmp_path / "run", **{metric: "foo"})


def test_a_score_that_needs_labels_decides_nothing_without_them(plain: Path, tmp_path: Path, caplog) -> None:
    """As where the configuration of another run is taken."""
    out = train(plain, tmp_path / "run", **{"checkpoint.metric": "knn"})
    assert "has no labels to judge by; the last checkpoint counts as best" in caplog.text
    assert load_json(out / "config.json")["checkpoint"]["metric"] is None


def test_a_run_goes_on_where_its_pictures_have_moved(plain: Path, tmp_path: Path) -> None:
    data = shutil.copytree(plain, tmp_path / "here")
    out = train(data, tmp_path / "run")
    moved = data.rename(tmp_path / "there")
    assert train(moved, out) == out
    for path in filter(Path.is_file, moved.rglob("*")):
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"data\.sha256 changed since this run was begun"):
        train(moved, out)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("given", [None, "knn"])
def test_labels_decide_by_knn(labelled: Path, tmp_path: Path, given: str | None) -> None:
    with pytest.raises(Begun):
        train(labelled, tmp_path / "run", **{"checkpoint.metric": given})
    assert load_json(tmp_path / "run" / "config.json")["checkpoint"]["metric"] == "knn"


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("count", "given", "decides"), [(450, None, "r_mean"), (450, "r_mean", "r_mean"), (60, None, None)]
)
def test_retrieval_decides_where_captions_are_learned(
    tmp_path: Path, count: int, given: str | None, decides: str | None
) -> None:
    """Not k-NN, though the pictures have labels too; and not from few of them."""
    with pytest.raises(Begun):
        train_clip(tmp_path / "run", count, **{"checkpoint.metric": given})
    assert load_json(tmp_path / "run" / "config.json")["checkpoint"]["metric"] == decides


@pytest.mark.usefixtures("untrained")
def test_few_captions_decide_nothing(tmp_path: Path, caplog) -> None:
    with pytest.raises(Begun):
        train_clip(tmp_path / "run", 60, **{"checkpoint.metric": "r_mean"})
    assert "has fewer than 30 validation pictures with captions; the last checkpoint counts as best" in caplog.text


def train_clip(out: Path, count: int, **keys: Any) -> Path:
    small = {
        "data": f"scenes:count={count},size=32,objects=1",
        "model": "vit_nano8",
        "size": 32,
        "steps": 2,
        "batch": 2,
    }
    small |= {"data": f"scenes:count={count},size=32,objects=1", "precision": "fp32", "loader.workers": 0}
    return synoptic.train("clip", out=str(out), **small, **keys)


def test_a_gpu_that_is_not_there(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("device=cuda: PyTorch finds no GPU", plain, tmp_path / "run", device="cuda")


@pytest.mark.parametrize(
    ("more", "named"),
    [({"batch": 3, "seed": 1}, "batch, seed"), ({"preset": "short"}, "preset"), ({"seed": 0}, "seed")],
)
def test_a_whole_configuration_stands_alone(plain: Path, tmp_path: Path, more: dict[str, Any], named: str) -> None:
    config = dino.DinoConfig(data=str(plain), out=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=rf"train dino: {named} beside a whole config; change that by dataclasses"):
        synoptic.train("dino", config, **more)
    assert not os.path.exists(config.out)


# --- what is read


def test_pictures_are_read_for_the_largest_that_the_task_shows(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def loader(source: Any, batch: int, seed: int, longest: int, *_: Any) -> None:
        read.append(longest)
        raise Begun

    monkeypatch.setattr(run, "Loader", loader)
    for keys in ({}, {"size": None, "crops.global_size": 48}):
        with pytest.raises(Begun):
            train(plain, tmp_path / "run", **keys)
    assert read == [32, 96]
