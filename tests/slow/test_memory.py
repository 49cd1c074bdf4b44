"""The measure of memory that the slow tests judge by; it is quick itself."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import memory
import pytest

HOLDS = "import sys; held = b'x' * 100_000_000; print(len(held), flush=True); sys.stdin.read()"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "EVERY", 0.01)


def test_what_children_hold_is_counted() -> None:
    if not memory.PROCESSES.is_dir():
        pytest.skip("there is no /proc")
    with memory.watched() as alone:
        time.sleep(0.2)
    with (
        memory.watched() as both,
        subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
    ):
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.2)
    assert alone.bytes and both.bytes
    assert both.bytes - alone.bytes > 90e6


def test_a_system_that_tells_nothing_is_not_taken_for_one_that_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "PROCESSES", tmp_path)
    with memory.watched() as peak:
        time.sleep(0.05)
    assert peak.bytes is None
