"""The verb `convert` as it is typed, and `--verbose`, which lists what a message only counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import synoptic
from synoptic.apps import cli
from synoptic.models.vit import ViT, ViTConfig
from synoptic.types import Preprocess
from synoptic.weights.folder import save_folder

CONFIG = ViTConfig(patch_size=4, width=64, depth=2, heads=2, hidden=64, image_size=16, position_offset=0.1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_folder("mine", ViT(CONFIG), Preprocess(16))
    return tmp_path


def test_there_and_back_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", "mine", "to=official", "out=theirs/dino.pth"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{folder / 'theirs/dino.pth'}\n"
    assert told.err.splitlines() == [
        "30 tensors as DINO, read back bit for bit",
        "note: the file does not say load.heads=2, without which it is not read, or wrongly",
    ]
    assert cli.main(["convert", "theirs/dino.pth", "load.heads=2", "to=huggingface", "out=h"]) == 0
    note = "at sizes other than 16 its positions are resampled otherwise: position_offset=0.1, there 0.0"
    assert capsys.readouterr().err.splitlines()[1:] == [f"note: {note}"]
    assert cli.main(["convert", "h", "to=synoptic", "out=back"]) == 0
    assert capsys.readouterr().err == "30 tensors as a weights folder of synoptic, read back bit for bit\n"
    before, after = (synoptic.load(name, "cpu").model.state_dict() for name in ("mine", "back"))
    assert before.keys() == after.keys() and all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("convert mine to=official out=mine", "out=.*mine: is there already, and nothing is overwritten"),
        ("convert mine to=official out=a.safetensors", "give the name of a file that ends in"),
        ("convert mine to=onnx out=a", "to=onnx should be 'official', 'huggingface' or 'synoptic'"),
        ("convert mine out=a", "to= is missing"),
        ("convert mine to=official", "out= is missing"),
        ("convert nothing to=official out=a.pth", "there is no model 'nothing'"),
        (
            "convert vit_mini16 to=huggingface out=a",
            "ViTModel of transformers has no way to say what vit_mini16 is: stem=",
        ),
        ("convert mine to=official out=a.pth load.heads=2", "says itself what heads= should be"),
        ("convert mine to=official out=mine/config.json/a.pth", "cannot be written"),
    ],
)
def test_mistakes_are_told_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, told: str
) -> None:
    assert cli.main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(told, error)
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_verbose_lists_every_key_that_a_message_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["convert", "mine", "to=official", "out=a.pth"])
    state = torch.load("a.pth", weights_only=True)
    gone = [key for key in state if key.startswith("blocks.1.norm") or key == "norm.bias"]
    torch.save({key: tensor for key, tensor in state.items() if key not in gone}, "a.pth")
    capsys.readouterr()
    command = ["convert", "a.pth", "load.heads=2", "to=synoptic", "out=b"]
    assert cli.main(command) == 2
    brief = capsys.readouterr().err
    assert "5 missing (blocks.1.norm1.weight, blocks.1.norm1.bias, blocks.1.norm2.weight, ...)" in brief
    assert brief.endswith("(--verbose lists all)\n") and brief.count("\n") == 1
    assert cli.main([*command, "--verbose"]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert "5 missing" in first and "--verbose" not in first
    assert rest == ["missing:", *(f"  {key}" for key in gone)]
