"""A MODEL of other makers is used as any other: loaded, tuned, saved, taught by and trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layout_files import BY_NAME, CONFIGS, dino, dino_training, huggingface, model_of, theirs
from PIL import Image
from safetensors.torch import save_file

import synoptic
from synoptic.apps import cli
from synoptic.methods.teachers import load_teachers
from synoptic.types import Preprocess
from synoptic.weights import checksums, zoo
from synoptic.weights.convert import from_ours
from synoptic.weights.folder import save_folder


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_weights_may_be_replaced_or_deleted_under_a_loaded_model(kind: str, tmp_path: Path) -> None:
    place = dino(tmp_path) if kind == "file" else huggingface(tmp_path / "h", BY_NAME["ViTModel of transformers"])
    model, images = synoptic.load(place, "cpu", **({"heads": 3} if kind == "file" else {})), torch.rand(1, 3, 16, 16)
    before = model(images).patches
    path = place if kind == "file" else place / "model.safetensors"
    (save_file if kind == "folder" else torch.save)({"a": torch.zeros(3)}, tmp_path / "new")
    (tmp_path / "new").rename(path)
    assert torch.equal(model(images).patches, before)
    path.unlink()
    assert torch.equal(model(images).patches, before)


def test_a_tuned_model_may_be_saved_over_the_file_that_it_came_from(tmp_path: Path) -> None:
    """`torch.save` cuts the file to nothing before it writes."""
    path, images = dino(tmp_path), torch.rand(1, 3, 16, 16)
    model = synoptic.load(path, "cpu", heads=3)
    before = model(images).patches
    torch.save(from_ours(dict(model.model.state_dict()), BY_NAME["DINO"].table), path)
    assert torch.equal(model(images).patches, before)
    assert torch.equal(synoptic.load(path, "cpu", heads=3)(images).patches, before)


def test_tensors_that_share_memory_become_weights_of_their_own(tmp_path: Path) -> None:
    state = theirs(BY_NAME["DINO"])
    state["blocks.0.norm2.weight"] = state["blocks.0.norm1.weight"]
    torch.save(state, tmp_path / "a.pth")
    model = synoptic.load(tmp_path / "a.pth", "cpu", heads=3).model
    with torch.no_grad():
        model.blocks[0].norm1.weight.add_(1)
    assert torch.equal(model.blocks[0].norm2.weight + 1, model.blocks[0].norm1.weight)


def test_what_is_known_of_one_part_of_a_file_says_nothing_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "SETTLED", -1.0)
    path = dino_training(tmp_path)
    content = torch.load(path, weights_only=True)
    content["student"]["module.backbone.norm.bias"] = torch.full((24,), torch.nan)
    torch.save(content, path)
    for _ in range(2):
        with pytest.raises(ValueError, match="no numbers or infinite"):
            synoptic.load(path, "cpu", heads=3, part="student")
        synoptic.load(path, "cpu", heads=3, part="teacher")


def test_what_is_written_into_a_loaded_model_stays_out_of_its_file(tmp_path: Path) -> None:
    path = dino(tmp_path)
    content = path.read_bytes()
    for parameter in synoptic.load(path, "cpu", heads=3).model.parameters():
        parameter.detach().add_(1)
    assert path.read_bytes() == content


@pytest.mark.parametrize("option", ["window", "activation", "text_heads", "decoder_heads"])
def test_options_that_decide_nothing_are_refused(option: str, tmp_path: Path) -> None:
    value: Any = "gelu" if option == "activation" else 3
    with pytest.raises(ValueError, match=f"load.{option}= decides nothing in files of DINO, of which can be said part"):
        synoptic.load(dino(tmp_path), "cpu", **{"heads": 3, option: value})


def test_what_says_all_of_itself_takes_no_options(tmp_path: Path) -> None:
    save_folder(tmp_path / "ours", model_of(CONFIGS["DINO"]), Preprocess(16))
    for model in ("vit_mini16", tmp_path / "ours"):
        with pytest.raises(ValueError, match="says itself what heads= should be; leave that out"):
            synoptic.load(model, heads=3)
    with pytest.raises(ValueError, match=r"dino\.pth: holds one network, and no student"):
        synoptic.load(dino(tmp_path), heads=3, part="student")
    with pytest.raises(ValueError, match=r"unknown key haeds .did you mean heads"):
        synoptic.load(dino(tmp_path), haeds=3)
    with pytest.raises(ValueError, match="heads=0 should be greater than 0"):
        synoptic.load(dino(tmp_path), heads=0)


def test_a_file_of_dino_is_a_model_like_any_other(tmp_path: Path) -> None:
    path = dino(tmp_path)
    model = synoptic.load(path, "cpu", heads=3)
    assert (model.name, model.preprocess, model.model.config.depth) == ("dino", Preprocess(16, "crop"), 2)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    expected = model.embed(picture)
    assert expected.shape == (1, 24)
    model.save(tmp_path / "saved")
    assert np.array_equal(synoptic.load(tmp_path / "saved", "cpu").embed(picture), expected)
    (tmp_path / "config.json").write_text(json.dumps({"data": "x", "loader": {"validation": 0.5}}))
    assert zoo.validation_share(path, "x") is None  # no run made it, whatever lies beside it


def test_a_folder_of_hugging_face_can_teach(tmp_path: Path) -> None:
    folder = huggingface(tmp_path / "h", BY_NAME["Dinov2WithRegistersModel of transformers"])
    teacher = load_teachers(f"dino:{folder}", {})["dino"]
    assert teacher.size == 16
    assert teacher.probe().summary.shape == (1, 24)


def test_the_command_line_can_say_what_a_file_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16), "red").save("a.png")
    dino_training(tmp_path)
    command = ["embed", "a.png", "model=full.pth", "out=a.parquet"]
    assert cli.main([*command, "load.heads=3", "load.part=student"]) == 0
    assert (tmp_path / "a.parquet").is_file()
    assert cli.main(command) == 2
    assert "load.heads=N" in capsys.readouterr().err
    assert cli.main([*command, "load.heads=3", "load.part=aunt"]) == 2
    assert "load.part=aunt should be 'student' or 'teacher'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["DINO", "DINOv2 with registers", "Dinov2WithRegistersModel of transformers"])
def test_a_training_goes_on_with_a_file_of_others(name: str, tmp_path: Path) -> None:
    """Its heads are not 64 wide, which `load.heads` tells; after no step of the backbone the weights are the file's."""
    for number in range(4):
        Image.new("RGB", (16, 16), (60 * number, 0, 90)).save(tmp_path / f"{number}.png")
    if "transformers" in name:
        file = huggingface(tmp_path / "file", BY_NAME[name])
    else:
        file = tmp_path / "file.pth"
        torch.save(theirs(BY_NAME[name]), file)
    keys = "size=16 batch=4 steps=2 head_warmup=0.9 optim.warmup=0 prototypes=16 head_hidden=8 bottleneck=8 device=cpu"
    command = f"train dinov2 data={tmp_path} out={tmp_path / 'run'} init={file} load.heads=3 {keys} precision=fp32"
    assert cli.main([*command.split(), "crops.local_count=1"]) == 0
    ours, before = synoptic.load(tmp_path / "run").model, synoptic.load(file, heads=3).model
    state = ours.state_dict()
    assert state.keys() - before.state_dict().keys() <= {"mask_token"}
    for key, expected in before.state_dict().items():
        assert torch.equal(state[key], expected), key
