"""Files that nobody vouches for: no code of theirs runs, and what is wrong with them is told in one line."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from synoptic.weights import checksums, reading
from synoptic.weights.reading import _broken, read_parts, ready

WEIGHT = torch.arange(6.0).view(2, 3)
MEGABYTE = torch.ones(2**18)


def written(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_tensors_are_told_by_the_dictionary_they_lie_in(tmp_path: Path) -> None:
    content = {
        "student": OrderedDict(weight=WEIGHT, bias=torch.nn.Parameter(torch.ones(2))),
        "optimizer": {"state": {0: {"exp_avg": WEIGHT}}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small", patch_size=16),
        "centre": torch.zeros(1),
    }
    parts = read_parts(written(tmp_path / "full.pth", content))
    assert {name: list(state) for name, state in parts.items()} == {"": ["centre"], "student": ["weight", "bias"]}
    assert torch.equal(parts["student"]["weight"], WEIGHT)


def test_safetensors_and_pytorchs_files_are_told_by_what_they_hold(tmp_path: Path) -> None:
    save_file({"weight": WEIGHT}, tmp_path / "a.pth")
    written(tmp_path / "b", {"weight": WEIGHT})
    for path in tmp_path.iterdir():
        assert torch.equal(read_parts(path)[""]["weight"], WEIGHT)


def test_tensors_are_made_ready_as_models_hold_them(tmp_path: Path) -> None:
    parts = read_parts(
        written(tmp_path / "a.pth", {"half": WEIGHT.half().T, "whole": WEIGHT, "count": torch.arange(3)})
    )
    half, whole, count = (ready(parts[""][name]) for name in ("half", "whole", "count"))
    assert (half.dtype, half.is_contiguous(), count.dtype) == (torch.float32, True, torch.int64)
    assert torch.equal(half, WEIGHT.T)
    assert whole.data_ptr() == parts[""]["whole"].data_ptr()  # nothing is copied that need not be


def test_an_archive_is_read_through_when_it_is_first_seen_and_after_every_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "SETTLED", -1.0)
    seen: list[str] = []
    monkeypatch.setattr(
        reading, "_broken", lambda archive, entry: seen.append(entry.filename) or broken(archive, entry)
    )
    broken = _broken
    path = written(tmp_path / "a.pth", {"weight": WEIGHT})
    read_parts(path)
    count = len(seen)
    read_parts(path)
    assert len(seen) == count > 0
    time.sleep(0.02)
    flip(path)
    for _ in range(2):  # what is wrong is not kept as what is right
        with pytest.raises(ValueError, match=r"checksum of .* does not fit"):
            read_parts(path)


def sharded(folder: Path) -> Path:
    save_file({"a": WEIGHT}, folder / "model-1-of-2.safetensors")
    save_file({"b": WEIGHT + 1}, folder / "model-2-of-2.safetensors")
    places = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": places}))
    return index


def test_a_file_cut_into_several_is_read_as_one(tmp_path: Path) -> None:
    state = read_parts(sharded(tmp_path))[""]
    assert torch.equal(state["a"] + 1, state["b"])


def test_files_of_before_archives_are_read_as_strictly(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"weight": WEIGHT, "args": argparse.Namespace(arch="vit")}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_parts(path)[""]["weight"], WEIGHT)
    torch.save({"w": Attack(tmp_path / "mark")}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="with more than tensors and plain values"):
        read_parts(path)
    assert not (tmp_path / "mark").exists()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="damaged weights file"):
        read_parts(path)


@pytest.mark.parametrize("packed", ["all", "one"])
def test_compressed_entries_are_unpacked_not_mapped(packed: str, tmp_path: Path) -> None:
    written(tmp_path / "a.pth", {"weight": WEIGHT, "more": torch.arange(40.0)})
    with zipfile.ZipFile(tmp_path / "a.pth") as source, zipfile.ZipFile(tmp_path / "b.pth", "w") as target:
        for entry in source.infolist():
            hard = packed == "all" or entry.filename.endswith("data/0")
            target.writestr(entry.filename, source.read(entry), zipfile.ZIP_DEFLATED if hard else zipfile.ZIP_STORED)
    assert torch.equal(read_parts(tmp_path / "b.pth")[""]["weight"], WEIGHT)


class Attack:
    """Runs a command when it is unpickled by a reader that trusts it."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_the_attack_of_the_next_test_works_on_who_trusts_it(tmp_path: Path) -> None:
    torch.load(written(tmp_path / "a.pth", {"w": Attack(tmp_path / "mark")}), weights_only=False)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("place", ["beside", "inside", "in the arguments", "bare"])
def test_code_in_a_file_never_runs(tmp_path: Path, place: str) -> None:
    attack = Attack(tmp_path / "mark")
    path = tmp_path / "evil.pth"
    if place == "bare":
        path.write_bytes(pickle.dumps({"weight": attack}))
    else:
        arguments = argparse.Namespace(arch=attack if place == "in the arguments" else "vit")
        student = {"weight": WEIGHT, **({"x": attack} if place == "inside" else {})}
        written(path, {"student": student, "args": arguments, **({"x": attack} if place == "beside" else {})})
    with pytest.raises(ValueError, match="damaged weights file, or none" if place == "bare" else "would run code"):
        read_parts(path)
    assert not (tmp_path / "mark").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    """Another value in a tensor, which nothing but the checksum tells."""
    data = bytearray(path.read_bytes())
    place = data.index(WEIGHT.numpy().tobytes()) + 4
    data[place] ^= 1
    path.write_bytes(data)


def pack(path: Path) -> None:
    """The same archive, in which a megabyte of zeros takes a few bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data.pkl", bytes(2**20))


def index_to(name: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(json.dumps({"weight_map": {"a": name}})) and None


TORCH, SAFE, INDEX = "w.pth", "w.safetensors", "model.safetensors.index.json"
SPOILED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "missing": (TORCH, lambda p: p.unlink(), "cannot be read .No such file"),
    "a folder": (TORCH, lambda p: (p.unlink(), p.mkdir()), "cannot be read"),
    "empty": (TORCH, lambda p: p.write_bytes(b""), "damaged weights file, or none"),
    "text": (TORCH, lambda p: p.write_text("<!DOCTYPE html>"), "damaged weights file, or none"),
    "cut": (TORCH, cut, "damaged weights file"),
    "cut at its end": (SAFE, cut, "damaged weights file"),
    "flipped": (TORCH, flip, "checksum of .* does not fit"),
    "another archive": (TORCH, lambda p: zipfile.ZipFile(p, "w").writestr("a/b", "c"), "damaged weights file"),
    "packed": (TORCH, pack, "unpacks to 1,048,576 bytes"),
    "stretched": (
        TORCH,
        lambda p: written(p, {"weight": torch.ones(1).expand(10**6, 10**6)}),
        "would take 4,000,000,000,000 bytes",
    ),
    "the same many times": (
        TORCH,
        lambda p: written(p, {f"weight{n}": MEGABYTE for n in range(9)}),
        "would take 9,437,184 bytes",
    ),
    "sparse": (TORCH, lambda p: written(p, {"weight": WEIGHT.to_sparse()}), "weight is no plain tensor"),
    "nowhere": (TORCH, lambda p: written(p, {"weight": WEIGHT.to("meta")}), "weight is no plain tensor"),
    "a whole model": (TORCH, lambda p: written(p, torch.nn.Linear(1, 1)), "would run code .torch.nn"),
    "index beyond": (INDEX, index_to("../w.safetensors"), "should name, for each tensor, a file beside it"),
    "index at the root": (INDEX, index_to("/w.safetensors"), "should name, for each tensor, a file beside it"),
    "index to itself": (INDEX, index_to(INDEX), "should name, for each tensor, a file beside it"),
    "index to nothing": (INDEX, index_to("gone.safetensors"), "gone.safetensors: cannot be read"),
    "index of too much": (INDEX, index_to("model-2-of-2.safetensors"), "1 of its tensors are in none .* such as a"),
    "index of none": (INDEX, lambda p: p.write_text("{}"), "its weight_map should name"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_file_is_refused_in_one_line_that_says_why(tmp_path: Path, case: str) -> None:
    name, spoil, message = SPOILED[case]
    written(tmp_path / TORCH, {"weight": WEIGHT})
    save_file({"weight": WEIGHT}, tmp_path / SAFE)
    sharded(tmp_path)
    spoil(tmp_path / name)
    with pytest.raises(ValueError, match=message) as error:
        read_parts(tmp_path / name)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("code", [b"r\xff\xff\xff\x0f", b"p268435455\n"])
def test_an_archive_cannot_ask_for_more_memory_than_it_fills(tmp_path: Path, code: bytes) -> None:
    """Python's unpickler makes room for as many objects as the highest number that a pickle gives one: here, 4 GB."""
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name in ("a/constants.pkl", "a/code/x"):
            archive.writestr(name, b"")
        archive.writestr("a/data.pkl", b"\x80\x02N" + code + b".")
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="damaged weights file"):
        read_parts(tmp_path / "a.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


def test_what_is_no_dictionary_has_no_tensors(tmp_path: Path) -> None:
    for content in (WEIGHT, [WEIGHT], {3: WEIGHT}, {"a": {"b": {"c": WEIGHT}}}):
        assert read_parts(written(tmp_path / "a.pth", content)) == {}


def test_a_file_whose_pickle_is_noise_is_damaged(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        noise = torch.randint(0, 256, (60,), dtype=torch.uint8, generator=generator)
        with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02" + noise.numpy().tobytes())
            archive.writestr("a/version", "3\n")
        with pytest.raises(ValueError, match=r"damaged weights file"):
            read_parts(tmp_path / "a.pth")
