"""Children of one command: they run side by side, fail with one clear error, and never outlive their parent."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from synoptic.apps import side_by_side
from synoptic.apps.side_by_side import Job, Progress, run

WRITES = "import pathlib, time; pathlib.Path({path!r}).write_text({text!r})"
WAITS = "import os, pathlib, time; pathlib.Path({path!r}).write_text(str(os.getpid())); time.sleep(60)"


def job(code: str, name: str = "child") -> Job:
    """Python code as a child; `python -m timeit` runs code."""
    return Job(name, ("timeit", "-n", "1", "-r", "1", code), lambda: Progress(0, 0))


def wait_for(path: Path, seconds: float = 30.0) -> int:
    """The number of the process that writes it into `path`."""
    end = time.monotonic() + seconds
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < end, f"{path} was not written"
        time.sleep(0.05)
    return int(path.read_text())


def is_gone(process: int, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{process}/stat")
        if state.is_file() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True  # dead, and its new parent has not looked yet
        time.sleep(0.05)
    return False


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "LOOK_EVERY", 0.05)


@pytest.mark.parametrize("at_once", [1, 2])
def test_all_jobs_run(tmp_path: Path, at_once: int, capfd: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / str(number) for number in range(3)]
    looks: list[int] = []
    run([job(WRITES.format(path=str(path), text="x"), path.name) for path in paths], at_once, lambda: looks.append(1))
    assert all(path.read_text() == "x" for path in paths)
    assert looks
    assert capfd.readouterr().err.count("done") == 3


def test_a_job_begins_after_those_that_it_needs(tmp_path: Path) -> None:
    """The one that comes first needs what the last writes, and another runs meanwhile."""
    made, told = tmp_path / "made", tmp_path / "told"
    needing = f"import pathlib; pathlib.Path({str(told)!r}).write_text(pathlib.Path({str(made)!r}).read_text())"
    needs = replace(job(needing, "needing"), after=("making", "one that is not there"))
    run([needs, job("pass", "other"), job(WRITES.format(path=str(made), text="x"), "making")], 2)
    assert told.read_text() == "x"


def test_jobs_run_at_the_same_time(tmp_path: Path) -> None:
    """Each waits for what the other writes."""
    first, second = tmp_path / "first", tmp_path / "second"
    code = "import pathlib, time\npathlib.Path({!r}).touch()\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.01)"
    run([job(code.format(str(first), str(second))), job(code.format(str(second), str(first)))], 2)


def test_a_terminal_shows_a_job_when_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    said = io.StringIO()
    jobs = [Job(name, (), lambda: Progress(1, 2, "steps")) for name in ("first", "second")]
    with side_by_side._display(Console(file=said, force_terminal=True, width=80), jobs) as show:
        show(jobs[0], False)
    assert "first" in said.getvalue() and "1/2  steps" in said.getvalue()
    assert "second" not in said.getvalue()


def test_a_fault_is_told_with_its_last_lines_and_stops_the_others(tmp_path: Path) -> None:
    waits = job(WAITS.format(path=str(tmp_path / "waits")), "waits")
    code = (
        f"import pathlib, time\nwhile not pathlib.Path({str(tmp_path / 'waits')!r}).exists(): time.sleep(0.01)\n1 / 0"
    )
    with pytest.raises(RuntimeError, match=r"broken failed \(exit code 1\)(.|\n)*ZeroDivisionError"):
        run([waits, job(code, "broken")], 2)
    assert is_gone(wait_for(tmp_path / "waits"))


def test_a_mistake_of_the_users_is_one_line() -> None:
    words = ("synoptic", "train", "clap", "data=x", "out=y")
    with pytest.raises(ValueError, match=r"^clip: unknown method .clap..*clip.*$"):
        run([Job("clip", words, lambda: Progress(0, 0))], 1)


def test_a_killed_child_is_told(tmp_path: Path) -> None:
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(ValueError, match=r"child: was killed \(SIGKILL\), as happens when memory runs out"):
        run([job(code)], 1)


SCRIPT = """
import sys
from synoptic.apps.side_by_side import Job, Progress, run
code, *paths = sys.argv[1:]
jobs = [Job(path, ("timeit", "-n", "1", code.format(path=path)), lambda: Progress(0, 0)) for path in paths]
try:
    run(jobs, 2)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_children_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, WAITS, *map(str, paths)], stderr=subprocess.PIPE, text=True
    )
    children = [wait_for(path) for path in paths]
    parent.send_signal(number)
    _, said = parent.communicate(timeout=30)
    assert parent.returncode == (-number if number == signal.SIGKILL else 130)
    assert all(is_gone(child) for child in children)
    assert "Traceback" not in said
    assert ("once more stops at once" in said) == (number != signal.SIGKILL)


def test_what_children_started_ends_too(tmp_path: Path) -> None:
    """As the processes that draw pictures do."""
    path = str(tmp_path / "grandchild")
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WAITS.format(path=path)!r}])"
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT, code.replace("{", "{{").replace("}", "}}"), "only"])
    grandchild = wait_for(Path(path))
    parent.kill()
    parent.wait()
    assert is_gone(grandchild)


def test_a_child_that_will_not_stop_is_killed_at_the_second_asking(tmp_path: Path) -> None:
    stubborn = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); " + WAITS
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT, stubborn, str(tmp_path / "one")], stderr=subprocess.PIPE)
    child = wait_for(tmp_path / "one")
    parent.send_signal(signal.SIGINT)
    assert parent.stderr is not None
    assert any(b"once more" in line for line in parent.stderr)  # which ends when the process does
    time.sleep(0.2)
    assert not is_gone(child, 0.5)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=30) == 130
    assert is_gone(child)
