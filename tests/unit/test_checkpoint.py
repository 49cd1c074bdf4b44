"""Checkpoints: whole or absent, the newest few and the best kept, and only continued by the run they belong to."""

import json
import logging
import pickle
import zipfile
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synoptic.config import CheckpointConfig, LoaderConfig, OptimConfig, TrainConfig
from synoptic.engine import checkpoint
from synoptic.engine.checkpoint import Checkpoints

CONFIG = TrainConfig(data="pictures", out="run", steps=10, optim=OptimConfig(lr=1e-3))


def state(step: int, best: dict | None = None) -> dict:
    return {"step": step, "best": best, "weights": torch.full((100,), float(step))}


def test_a_state_comes_back(tmp_path):
    saved = {"tensor": torch.randn(3, dtype=torch.float64), "list": [1, 2.5, None, "x"], "nested": {"a": (1, 2)}}
    checkpoint.save(tmp_path / "a.pt", saved)
    loaded = checkpoint.load(tmp_path / "a.pt")
    assert torch.equal(loaded.pop("tensor"), saved.pop("tensor"))
    assert loaded == saved


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_is_never_loaded(tmp_path):
    """A pickle that would run a command is refused as any damaged file is."""
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    plain, zipped = tmp_path / "plain.pt", tmp_path / "zipped.pt"
    plain.write_bytes(pickle.dumps({"step": 1, "x": Evil()}))
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"step": 1, "x": Evil()}))
        archive.writestr("archive/version", "3\n")
    for path in (plain, zipped):
        with pytest.raises(ValueError, match="damaged checkpoint"):
            checkpoint.load(path)
    assert not marker.exists()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_no_damage_goes_unnoticed(tmp_path_factory, data):
    """A file cut short, or with one byte of its weights changed, is never loaded as if it were whole."""
    path = tmp_path_factory.mktemp("damage") / "a.pt"
    checkpoint.save(path, state(1))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        start = bytes(content).index(torch.full((100,), 1.0).numpy().tobytes())
        content[start + data.draw(st.integers(0, 399))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged checkpoint"):
        checkpoint.load(path)


def test_the_newest_and_the_best_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    best = {"step": 20, "metric": "knn", "score": 0.9, "scores": {"knn": 0.9}}
    for step in range(10, 70, 10):
        checkpoints.save(state(step, best if step >= 20 else {"step": 10, "metric": "knn", "score": 0.1}))
    assert checkpoints.steps() == [20, 50, 60]
    assert checkpoints.best() == checkpoints.path(20)
    assert json.loads((tmp_path / "checkpoints" / "best.json").read_text()) == best
    assert checkpoints.latest()["step"] == 60


def test_without_a_score_the_newest_is_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.latest() is None
    for step in (1, 2):
        checkpoints.save(state(step))
    assert checkpoints.best() == checkpoints.path(2)
    assert checkpoints.steps() == [2]


def test_a_damaged_file_gives_way_to_the_one_before(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(state(step))
    checkpoints.path(3).write_bytes(checkpoints.path(3).read_bytes()[:1000])
    checkpoints.path(2).write_bytes(b"")
    (tmp_path / ".step_00000004.pt.123.tmp").write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest()["step"] == 1
    assert "step_00000003.pt: damaged checkpoint" in caplog.text
    assert "step_00000002.pt: damaged checkpoint" in caplog.text
    assert checkpoints.steps() == [1], "a damaged file must not count as one of the newest"
    assert not list(tmp_path.glob(".*.tmp"))


def test_if_all_are_damaged_nothing_starts_anew_in_silence(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(state(1))
    checkpoints.path(1).write_bytes(b"rubbish")
    for _ in range(2):  # nor when asked again
        with pytest.raises(ValueError, match="no checkpoint there can be read; overwrite=true"):
            checkpoints.latest()


def test_the_best_note_may_name_a_file_that_is_gone(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state(5))
    checkpoints.tidy({"step": 3, "metric": "knn", "score": 0.5})
    assert checkpoints.best() == checkpoints.path(5)


@pytest.mark.parametrize(
    ("score", "before", "wins"),
    [
        (0.5, None, True),
        (0.5, 0.4, True),
        (0.5, 0.5, True),
        (0.4, 0.5, False),
        (float("nan"), None, False),
        (float("inf"), 0.1, False),
    ],
)
def test_the_highest_score_is_the_best_and_the_later_of_equal_ones(score, before, wins):
    best = None if before is None else {"step": 1, "metric": "knn", "score": before}
    scores = {"chance": 0.9, "knn": score}
    after = checkpoint.best_of(best, 2, scores, "knn")
    assert after == ({"step": 2, "metric": "knn", "score": score, "scores": scores} if wins else best)


@pytest.mark.parametrize("score", [0.2, float("nan")])
def test_a_best_by_another_metric_is_no_rival(score):
    before = {"step": 1, "metric": "zeroshot", "score": 0.9, "scores": {"zeroshot": 0.9}}
    after = checkpoint.best_of(before, 2, {"knn": score}, "knn")
    assert after == (None if score != score else {"step": 2, "metric": "knn", "score": score, "scores": {"knn": score}})


def test_without_a_metric_nothing_is_judged(caplog):
    best = {"step": 1, "metric": "knn", "score": 0.1}
    assert checkpoint.best_of(best, 2, {"knn": 0.9}, None) is best
    assert checkpoint.best_of(best, 2, {"knn": 0.9, "chance": 0.1}, "kn") is best
    assert "checkpoint.metric=kn is not among the scores (knn, chance)" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"out": "elsewhere", "device": "cuda", "threads": 3, "log_every": 1, "checkpoint_every": 1},
        {"evaluate_every": 1, "resume": "never", "overwrite": True, "epochs": 3.0},
        {"checkpoint": CheckpointConfig(keep=9, metric="zeroshot"), "loader": LoaderConfig(workers=3, cache_mb=1)},
        {"loader": LoaderConfig(unreadable=0.5)},
    ],
)
def test_settings_that_leave_the_weights_alone_may_change(tmp_path, changes):
    changed = replace(CONFIG, **changes)
    checkpoint.check_identity(checkpoint.identity(CONFIG), checkpoint.identity(changed), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 32}, r"batch changed since this run was begun, from 64 to 32"),
        ({"seed": 5}, r"seed changed since this run was begun, from 0 to 5"),
        ({"steps": 11}, r"steps changed since this run was begun, from 10 to 11"),
        ({"model": "vit_b16"}, r"model changed since this run was begun, from vit_s16 to vit_b16"),
        ({"optim": OptimConfig(lr=2e-3)}, r"optim.lr changed since this run was begun, from 0.001 to 0.002"),
        (
            {"loader": LoaderConfig(validation=0.2)},
            r"loader.validation changed since this run was begun, from 0.1 to 0.2",
        ),
    ],
)
def test_settings_that_decide_the_weights_may_not(tmp_path, changes, message):
    changed = replace(CONFIG, **changes)
    with pytest.raises(ValueError, match=message):
        checkpoint.check_identity(checkpoint.identity(CONFIG), checkpoint.identity(changed), tmp_path)


def test_until_the_first_checkpoint_anything_may_change(tmp_path):
    """So that the mends which errors give can be followed."""
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    checkpoints.claim(checkpoint.identity(CONFIG))
    changed = checkpoint.identity(replace(CONFIG, batch=32))
    checkpoints.claim(changed)
    checkpoints.save(state(1))
    checkpoints.claim(changed)  # which has been through the file
    with pytest.raises(ValueError, match=r"run: batch changed .*, from 32 to 64; set it back, .* overwrite=true$"):
        checkpoints.claim(checkpoint.identity(CONFIG))
    checkpoints.claim(changed)


@pytest.mark.parametrize("key", ["data.pictures", "teachers.clip"])
def test_what_else_decides_the_weights_may_not_change(tmp_path, key):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.claim(checkpoint.identity(CONFIG, {key: 36}))
    checkpoints.save(state(1))
    checkpoints.claim(checkpoint.identity(CONFIG, {key: 36}))
    for facts, now in (({key: 40}, 40), ({}, None)):
        with pytest.raises(ValueError, match=f"{key} changed since this run was begun, from 36 to {now}; ") as raised:
            checkpoints.claim(checkpoint.identity(CONFIG, facts))
        assert "\n" not in str(raised.value)
