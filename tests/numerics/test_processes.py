"""Several processes train as one does: the same weights, whoever saw which picture and whoever went on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ssl_processes import CASES

from synoptic.engine import checkpoint, distributed

HERE = Path(__file__).parent


def trained(case: str, processes: int, out: Path, steps: int = 10) -> dict[str, torch.Tensor]:
    """The state of a task after training in so many processes."""
    out.mkdir(exist_ok=True)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), before]))
    try:
        if processes > 1:
            distributed.launch(processes, ("ssl_processes", case, str(steps), str(out)))
        else:
            command = [sys.executable, "-m", "ssl_processes", case, str(steps), str(out)]
            subprocess.run(command, check=True, capture_output=True)
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    path = out / f"{processes}.pt"
    return checkpoint.load(path)["state"] if path.exists() else {}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Equal to 1e-9 of the largest value of each tensor, in float64."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        if name.endswith(".queue"):  # rows of one step stand in it process by process
            tensor, other[name] = in_order(tensor), in_order(other[name])
        if tensor.numel():
            scale = float(tensor.abs().max()) or 1.0
            assert float((tensor - other[name]).abs().max()) <= 1e-9 * scale, name


def in_order(rows: torch.Tensor) -> torch.Tensor:
    """Rows by their first number, the others with it."""
    return rows[rows[:, 0].argsort()]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case: str, tmp_path: Path) -> None:
    assert_same(trained(case, 1, tmp_path / "one"), trained(case, 2, tmp_path / "two"))


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    """Killed after seven steps in two processes, it goes on from the checkpoint after five in one."""
    whole = trained("dinov2", 1, tmp_path / "whole")
    assert not trained("dinov2", 2, tmp_path / "parts", steps=7)
    assert sorted(path.name for path in (tmp_path / "parts" / "checkpoints").glob("*.pt")) == ["step_00000005.pt"]
    assert_same(whole, trained("dinov2", 1, tmp_path / "parts"))
