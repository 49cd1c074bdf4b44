"""A weights folder is loaded as it was saved, or not at all: what was cut or changed is named."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import CONFIG, MODEL, edit, saved, tensors

from synoptic.weights import checksums
from synoptic.weights.checksums import SUMS, sha256_of
from synoptic.weights.folder import load_folder


def flip(place: int) -> Callable[[Path], Any]:
    def spoil(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)

    return spoil


CHANGES: dict[str, Callable[[Path], Any]] = {
    "a bit at its end": flip(-3),
    "a bit in its midst": lambda path: flip(path.stat().st_size // 2)(path),
    "its end lost": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "more at its end": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "lost": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("name", [MODEL, CONFIG, "tokenizer.json"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_not_as_it_was_saved_is_named(tmp_path: Path, name: str, change: str) -> None:
    folder = saved(tmp_path)
    CHANGES[change](folder / name)
    with pytest.raises(ValueError, match=re.escape(str(folder / name))) as error:
        load_folder(folder)
    assert "\n" not in str(error.value)


def test_weights_with_another_value_that_all_else_would_take_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    tensors(lambda state: state["logit_scale"].add_(1e-6))(folder)
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged, or changed since it was saved: its SHA-256"):
        load_folder(folder)


def test_the_card_may_be_edited(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "README.md").write_text("# My own words")
    assert load_folder(folder)[2].name == "clip"
    (folder / "README.md").unlink()
    assert load_folder(folder)[2].name == "clip"


LISTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "lost": (lambda path: path.unlink(), "no such file, though config.json tells of it"),
    "empty": (lambda path: path.write_bytes(b""), "damaged list of checksums"),
    "cut between lines": (lambda path: path.write_text(path.read_text()[: -64 - 17]), "lists no tokenizer.json"),
    "cut in a line": (lambda path: path.write_text(path.read_text()[:-5]), "damaged list of checksums; a line is"),
    "binary": (lambda path: path.write_bytes(b"\xff\xfe\n"), "damaged list of checksums"),
    "endless": (lambda path: path.write_text("0" * 2**21), "it has more than 1,048,576 bytes"),
    "of other places": (
        lambda path: path.write_text(path.read_text().replace("  ", "  ../")),
        "damaged list of checksums; a line is",
    ),
    "of another file": (lambda path: flip(-100)(path), "damaged"),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_damaged_list_of_checksums_is_told(tmp_path: Path, case: str) -> None:
    folder = saved(tmp_path)
    spoil, message = LISTS[case]
    spoil(folder / SUMS)
    with pytest.raises(ValueError, match=message) as error:
        load_folder(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_folders_of_before_there_were_checksums_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / SUMS).unlink()
    edit(lambda config: config.pop("checksums"))(folder)
    assert load_folder(folder)[2].name == "clip"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
def test_the_system_can_check_a_folder_too(tmp_path: Path) -> None:
    folder = saved(tmp_path, "student")
    check = ["sha256sum", "--strict", "-c", SUMS]
    done = subprocess.run(check, cwd=folder, capture_output=True, text=True, check=True)
    assert sorted(line.split(":")[0] for line in done.stdout.splitlines()) == [
        *("README.md", CONFIG, MODEL, "tokenizer.clip.json")
    ]
    flip(-1)(folder / MODEL)
    assert subprocess.run(check, cwd=folder, capture_output=True).returncode == 1


def test_a_file_is_hashed_when_it_is_first_seen_and_after_every_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    path = saved(tmp_path) / MODEL
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "sha256_of", lambda path: hashed.append(path) or sha256_of(path))
    assert checksums.known_sha256(path) == checksums.known_sha256(path) == sha256_of(path)
    assert len(hashed) == 2  # so young that another change might not show
    monkeypatch.setattr(checksums, "SETTLED", -1.0)
    for _ in range(2):
        assert checksums.known_sha256(path) == sha256_of(path)
    assert len(hashed) == 3
    times = path.stat()
    time.sleep(0.02)
    flip(-3)(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # by somebody who hides it
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged, or changed since it was saved"):
        load_folder(path.parent)
    for note in (tmp_path / "cache" / "synoptic" / "checksums").iterdir():
        note.write_bytes(b"\xff")
    assert checksums.known_sha256(path) == sha256_of(path)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_bytes(b"")  # no folder can be made there
    assert checksums.known_sha256(path) == sha256_of(path)


@settings(max_examples=30)
@given(st.integers(0, 10**9), st.integers(0, 7))
def test_any_bit_of_the_weights_counts(tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
    folder = saved(tmp_path_factory.mktemp("w"), "vit")
    content = bytearray((folder / MODEL).read_bytes())
    content[place % len(content)] ^= 1 << bit
    (folder / MODEL).write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_folder(folder)
