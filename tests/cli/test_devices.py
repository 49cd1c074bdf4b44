"""Training in several processes, as a user starts it: by `devices=N`, or by torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import synoptic
from synoptic.apps import cli
from synoptic.types import present

TRAIN = "train {} data=pictures model=vit_nano8 size=16 batch=4 device=cpu precision=fp32 log_every=1"
DINO = TRAIN.format("dino") + " prototypes=16 head_hidden=16 bottleneck=8 crops.local_count=1 drop_path=0"
CLIP = TRAIN.format("clip") + " vocabulary=300 text_width=32 text_depth=1 text_heads=1"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("devices")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["scenes", "out=pictures", "count=40", "size=32", "objects=1"]) == 0
    return folder


@pytest.fixture
def there(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workshop)
    return workshop


def vectors(run: Path) -> torch.Tensor:
    return torch.from_numpy(synoptic.load(run).embed(str(run.parent / "pictures" / "test")))


@pytest.mark.parametrize(("name", "command"), [("dino", DINO), ("clip", CLIP)])
def test_two_processes_make_the_model_that_one_makes(there: Path, name: str, command: str) -> None:
    """Files, loader, augmentation, loss and export, in float32: embeddings to 1e-4."""
    for devices in (1, 2):
        out = there / f"{name}-{devices}"
        assert cli.main([*command.split(), f"out={out}", "steps=3", f"devices={devices}"]) == 0
    torch.testing.assert_close(vectors(there / f"{name}-1"), vectors(there / f"{name}-2"), rtol=0, atol=1e-4)
    steps = (there / f"{name}-2" / "metrics.jsonl").read_text().count('"loss"')
    assert steps == 3, "the first process alone writes"


def test_torchrun_starts_the_same_command(there: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "synoptic"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, *DINO.split(), "out=by-torchrun", "steps=2"]
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=120)
    assert vectors(there / "by-torchrun").isfinite().all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("devices=3", "batch=4: devices=3 cannot share it evenly; the nearest is 3"),
        ("devices=2 accumulate=4", "accumulate=4: more parts than pictures in batch=4 for each of devices=2"),
        ("devices=2 size=20", "size=20"),
        ("devices=2 optim.lr=1e9", "not finite"),
    ],
)
def test_a_mistake_is_told_once(there: Path, keys: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*DINO.split(), "out=mistaken", "overwrite=true", "steps=9", *keys.split()]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("synoptic: ")]
    assert len(lines) == 1 and message in lines[0]


def training(command: list[str]) -> subprocess.Popen[str]:
    """A command that has taken its first step."""
    process = subprocess.Popen([sys.executable, "-m", "synoptic", *command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any(line.startswith("step ") for line in process.stderr), "it ended before"
    return process


def test_stopped_processes_save_and_go_on(there: Path) -> None:
    command = [*DINO.split(), "out=stopped", "steps=200", "devices=2"]
    process = training(command)
    process.send_signal(signal.SIGINT)
    last = present(process.stderr).read().splitlines()[-1]
    assert process.wait(timeout=60) == 130
    assert last.startswith("synoptic: stopped and saved after step") and last.endswith("goes on from there")
    (saved,) = (there / "stopped" / "checkpoints").glob("step_*.pt")
    done = int(saved.stem.removeprefix("step_"))
    assert cli.main([*command[:-2], f"steps={200}", "devices=1", "resume=auto"]) == 0
    assert f"going on after step {done}" in (there / "stopped" / "train.log").read_text()


def test_a_killed_process_takes_the_others_with_it(there: Path) -> None:
    command = [*DINO.split(), "out=killed", "steps=2000", "devices=2"]
    process = training(command)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    workers = [int(number) for number in children.stdout.split()]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    last = present(process.stderr).read().splitlines()[-1]
    assert process.wait(timeout=60) == 2
    assert last == "synoptic: a process was killed (SIGKILL), as happens when memory runs out"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(Path(f"/proc/{number}").exists() for number in workers):
        time.sleep(0.1)
    assert not any(Path(f"/proc/{number}").exists() for number in workers)
