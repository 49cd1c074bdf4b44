"""DINOv2 as a user starts it, killed at ten random moments: it ends in the weights of a run that was left alone.

Run as a program, this file is the run that is killed.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_resume import draw_pictures
from toy_run import assert_equal, assert_same_run

KILLS = 10
STEPS = 60


def run_of(out: Path) -> dict:
    """All that DINOv2 draws and remembers: masks, stochastic depth, a queue, an average, a phase of larger crops."""
    return {
        **{"data": str(out.parent / "pictures"), "out": str(out), "model": "vit_nano8", "size": 16, "steps": STEPS},
        **{"batch": 4, "prototypes": 16, "patch_bottleneck": 8, "head_hidden": 16, "bottleneck": 8, "queue": 16},
        **{"crops.local_count": 1, "precision": "fp32", "checkpoint_every": 2, "log_every": 1, "loader.workers": 0},
        **{"high_resolution.share": 0.3, "high_resolution.scale": 2.0, "optim.ema": 0.9, "evaluate_every": 7},
        **{"masks.ratio": (0.3, 0.6), "device": "cpu"},
    }


def killed_at_random(out: Path) -> None:
    """Starts the run in a child again and again, and kills it some steps later, until it was killed often enough."""
    import torch._dynamo  # here, or every child would import what its optimizer needs
    import torch.utils.tensorboard

    import synoptic.run

    torch.set_num_threads(1)
    chance = random.Random(0)
    for life in range(KILLS + 1):
        begun = told(out)
        child = os.fork()
        if not child:
            synoptic.run.train("dinov2", **run_of(out))
            os._exit(0)
        if life < KILLS:
            wanted = begun + chance.randint(1, 3)
            while told(out) < wanted and os.waitpid(child, os.WNOHANG) == (0, 0):
                time.sleep(0.002)
            time.sleep(chance.uniform(0.0, 0.03))
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == (-signal.SIGKILL if life < KILLS else 0), f"life {life} ended with {code}"


def told(out: Path) -> int:
    """How many lines of metrics there are."""
    path = out / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_ten_kills_change_nothing(tmp_path: Path) -> None:
    from synoptic import run

    torch.set_num_threads(1)
    draw_pictures(tmp_path / "pictures", 9)
    subprocess.run([sys.executable, __file__, str(tmp_path / "killed")], check=True, timeout=300, capture_output=True)
    whole = run.train("dinov2", **run_of(tmp_path / "whole"))
    assert_same_run(tmp_path / "killed", whole)
    weights = [
        torch.load(path, weights_only=True)["task"] for path in map(last_checkpoint, (tmp_path / "killed", whole))
    ]
    assert_equal(*weights)


def last_checkpoint(out: Path) -> Path:
    return out / "checkpoints" / f"step_{STEPS:08d}.pt"


if __name__ == "__main__":
    killed_at_random(Path(sys.argv[1]))
