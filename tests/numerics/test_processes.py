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


def run(processes: int, *words: str) -> None:
    """Runs a module that stands beside this one in so many processes."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), before]))
    try:
        if processes > 1:
            distributed.launch(processes, words)
        else:
            subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True)
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def trained(case: str, processes: int, out: Path, steps: int = 10) -> dict[str, torch.Tensor]:
    """The state of a task after training in so many processes."""
    out.mkdir(exist_ok=True)
    run(processes, "ssl_processes", case, str(steps), str(out))
    path = out / f"{processes}.pt"
    return checkpoint.load(path)["state"] if path.exists() else {}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Equal to 1e-9 of the largest value of each tensor, in float64."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        if name.endswith(".queue"):  # rows of one step stand in it process by process
            tensor, other[name] = in_order(tensor), in_order(other[name])
        if tensor.numel():
            mine, theirs = tensor.double(), other[name].double()
            assert float((mine - theirs).abs().max()) <= 1e-9 * (float(mine.abs().max()) or 1.0), name


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


def test_a_distillation_goes_on_with_its_statistics(tmp_path: Path) -> None:
    """Killed after seven steps, in the second stage, whose statistics are still being taken."""
    whole = trained("radio-phases", 1, tmp_path / "whole")
    assert not trained("radio-phases", 1, tmp_path / "parts", steps=7)
    assert_same(whole, trained("radio-phases", 1, tmp_path / "parts"))


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """What each process of one and of two holds of the same teachers, by "PROCESSES-RANK"."""
    out = tmp_path_factory.mktemp("statistics")
    for processes in (1, 2):
        run(processes, "statistics_processes", str(out))
    return {path.stem: checkpoint.load(path) for path in out.glob("*.pt")}


def test_two_processes_gather_the_statistics_of_one(statistics: dict[str, dict[str, torch.Tensor]]) -> None:
    """To 1e-12 of the largest value of each tensor; to 1e-9 what is made of eigenvectors, which small changes move."""
    one, two = statistics["1-0"], statistics["2-0"]
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        digits = 1e-9 if name.endswith((".projection", ".inverse")) else 1e-12
        if tensor.numel():
            scale = float(tensor.double().abs().max()) or 1.0
            assert float((tensor.double() - two[name].double()).abs().max()) <= digits * scale, name


def test_all_processes_hold_the_same_statistics(statistics: dict[str, dict[str, torch.Tensor]]) -> None:
    one, other = statistics["2-0"], statistics["2-1"]
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
