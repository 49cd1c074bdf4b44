"""Files that are whole whatever happens, and folders that one process holds."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from synoptic import files


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_half_a_file(tmp_path):
    """The new file takes the place of the old one, which whoever has it open reads to its end."""
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader:
        files.write_atomically(path, lambda file: file.write(b"new" if path.read_text() == "old" else b"?"))
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_a_text_that_is_there_already_is_not_written_again(tmp_path):
    path = tmp_path / "file"
    files.write_text(path, "old")
    os.utime(path, ns=(1, 1))
    files.write_text(path, "old")
    assert path.stat().st_mtime_ns == 1
    files.write_text(path, "new \u00fc")
    assert path.read_text(encoding="utf-8") == "new \u00fc"


@pytest.mark.parametrize(
    ("name", "ours"), [(".lock", True), (".config.json.tmp", True), ("a.tmp", False), (".gitignore", False)]
)
def test_what_nobody_would_miss(name, ours):
    assert files.is_ours(Path("folder") / name) == ours


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX locks")
def test_two_processes_do_not_write_to_one_run(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()",
            str(tmp_path / ".lock"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        holder.stdout.readline()
        with (
            pytest.raises(ValueError, match="another process is writing there"),
            files.sole_writer(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with files.sole_writer(tmp_path):
        pass


def test_two_threads_do_not_write_to_one_folder(tmp_path):
    """The system's locks are between processes, and a second one in the same process would end with the first."""
    refused = []

    def enter() -> None:
        try:
            with files.sole_writer(tmp_path / "new"):
                pass
        except ValueError as error:
            refused.append(str(error))

    with files.sole_writer(tmp_path / "new"):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(refused) == 1
    enter()
    assert len(refused) == 1


def test_a_demo_begins_where_another_was_killed_before_its_first_file_was_whole(tmp_path):
    from synoptic.apps.demo_journal import Journal, is_demo
    from synoptic.apps.demo_recipe import QUICK
    from synoptic.apps.demo_steps import Demo

    (tmp_path / ".demo.json.tmp").write_text("{")
    (tmp_path / ".lock").touch()
    Journal(Demo(tmp_path, QUICK, 0), "quick")
    assert is_demo(tmp_path)
