"""Linear classifiers on backbones: told by files, used as any model, kept whole, and clear about what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import synoptic
from synoptic.apps import cli
from synoptic.methods.start import given_backbone
from synoptic.models.classifier import ClassifierConfig
from synoptic.models.plain_resnet import PlainResNet, PlainResNetConfig
from synoptic.models.vit import ViT, ViTConfig
from synoptic.types import Preprocess
from synoptic.weights.convert import DINO_VIT, from_ours
from synoptic.weights.folder import save_folder
from synoptic.weights.options import LoadOptions
from synoptic.weights.resnet_tables import TORCHVISION_RESNET

VIT = ViTConfig(patch_size=8, width=64, depth=5, heads=1, hidden=64, image_size=32, position_offset=0.1)
RESNET = PlainResNetConfig(blocks=(1, 1, 1, 1), width=4, image_size=64)
NAMES = ["crane", "crane", "cat", "dog", "car"]  # two classes may have one name, as in ImageNet


def backbone(folder: Path, resnet: bool = False) -> Path:
    torch.manual_seed(0)
    model = PlainResNet(RESNET) if resnet else ViT(VIT)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    state = from_ours(model.state_dict(), TORCHVISION_RESNET if resnet else DINO_VIT)
    torch.save({key: tensor.contiguous() for key, tensor in state.items()}, folder / "backbone.pth")
    return folder / "backbone.pth"


def head(folder: Path, channels: int, dino: bool = False, **change: Tensor) -> Path:
    torch.manual_seed(1)
    state: dict[str, Any] = {"weight": torch.randn(5, channels), "bias": torch.randn(5), **change}
    if dino:
        state = {"epoch": 100, "state_dict": {f"module.linear.{key}": tensor for key, tensor in state.items()}}
    torch.save(state, folder / "head.pth")
    return folder / "head.pth"


def picture(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return folder / "a.png"


@pytest.mark.parametrize(
    ("times", "dino", "layers", "mean"),
    [
        (2, False, 1, "behind"),
        (5, False, 4, "behind"),
        (1, True, 1, "none"),
        (2, True, 1, "between"),
        (4, True, 4, "none"),
    ],
)
def test_its_channels_tell_what_a_head_reads(times: int, dino: bool, layers: int, mean: str, tmp_path: Path) -> None:
    model = synoptic.load(backbone(tmp_path), "cpu", linear_head=str(head(tmp_path, 64 * times, dino)))
    config = model.model.config
    assert (config.layers, config.mean, config.classes, model.classes) == (layers, mean, 5, 5)
    images = torch.rand(2, 3, 32, 48)
    features = model(images, layers=range(-4, 0))
    summaries = [layer.summary for layer in features.layers[-layers:]]
    average = features.patches.mean(1)
    told = {
        "none": torch.cat(summaries, 1),
        "behind": torch.cat([*summaries, average], 1),
        "between": torch.stack([summaries[0], average], 2).flatten(1),
    }[mean]
    expected = told @ model.model.head.weight.T + model.model.head.bias
    with torch.no_grad():
        torch.testing.assert_close(model.model.classify(images), expected)


def test_a_resnets_head_reads_its_summary(tmp_path: Path) -> None:
    model = synoptic.load(backbone(tmp_path, resnet=True), "cpu", linear_head=str(head(tmp_path, 128, dino=True)))
    images = torch.rand(2, 3, 64, 32)
    expected = model(images).summary @ model.model.head.weight.T + model.model.head.bias
    with torch.no_grad():
        torch.testing.assert_close(model.model.classify(images), expected)


def test_it_classifies_and_is_kept_and_sees_as_its_backbone(tmp_path: Path) -> None:
    file = backbone(tmp_path)
    model = synoptic.load(file, "cpu", linear_head=str(head(tmp_path, 128)))
    answers = model.classify(picture(tmp_path))
    assert sorted(answer["label"] for answer in answers) == ["0", "1", "2", "3", "4"]
    assert [answer["score"] for answer in answers] == sorted((answer["score"] for answer in answers), reverse=True)
    assert sum(answer["score"] for answer in answers) == pytest.approx(1)
    named = model.classify(tmp_path / "a.png", NAMES)
    assert [answer["label"] for answer in named] == [NAMES[int(answer["label"])] for answer in answers]
    assert model.trained == {"from": "DINO", "linear_head": "head.pth"}
    model.save(tmp_path / "kept")
    again = synoptic.load(tmp_path / "kept", "cpu")
    assert again.classify(tmp_path / "a.png") == answers
    plain = synoptic.load(file, "cpu")
    trained_on = given_backbone(str(tmp_path / "kept"), LoadOptions())  # a training goes on with its backbone
    assert all(torch.equal(tensor, plain.model.state_dict()[key]) for key, tensor in trained_on.state_dict().items())
    assert np.array_equal(again.embed(tmp_path / "a.png"), plain.embed(tmp_path / "a.png"))
    assert (again.depth, again.attends, plain.classes) == (5, True, 0)
    with pytest.raises(ValueError, match="knows no words"):
        plain.classify(tmp_path / "a.png", ["a", "b"])
    with pytest.raises(ValueError, match="knows no words"):
        plain.classify(tmp_path / "a.png")
    with pytest.raises(ValueError, match="backbone has no classes of its own: give labels, or load it with"):
        plain.own_classes(tmp_path / "a.png")


def test_heads_were_trained_on_pictures_of_224(tmp_path: Path) -> None:
    config = ViTConfig(patch_size=14, width=64, depth=1, heads=1, hidden=8, image_size=518, position_offset=0.1)
    state = from_ours(ViT(config).state_dict(), DINO_VIT)
    torch.save(state, tmp_path / "large.pth")
    path = str(head(tmp_path, 128))
    assert synoptic.load(tmp_path / "large.pth").preprocess == Preprocess(518)
    assert synoptic.load(tmp_path / "large.pth", linear_head=path).preprocess == Preprocess(224)
    assert synoptic.load(backbone(tmp_path), linear_head=path).preprocess == Preprocess(32)


def test_the_verb_names_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    backbone(tmp_path), head(tmp_path, 128), picture(tmp_path)
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    command = ["classify", "a.png", "model=backbone.pth", "load.linear_head=head.pth", "k=5"]
    assert cli.main([*command, "out=a.json"]) == 0
    numbered = json.loads((tmp_path / "a.json").read_text())["a.png"]
    assert cli.main([*command, "labels=names.txt", "out=b.json"]) == 0
    named = json.loads((tmp_path / "b.json").read_text())["a.png"]
    assert [answer["label"] for answer in named] == [NAMES[int(answer["label"])] for answer in numbered]
    capsys.readouterr()
    assert cli.main([*command, "labels=crane,cat"]) == 2
    assert "labels: 2 names for 5 classes; name all of them in order, or none" in capsys.readouterr().err
    assert cli.main(["classify", "a.png", "model=head.pth"]) == 2
    told = (
        "head.pth: is a linear classifier of 5 classes that reads 128 channels, and no network; give it as load.linear"
    )
    assert told in capsys.readouterr().err


REFUSED: dict[str, tuple[Any, str]] = {
    "of another width": (
        lambda folder: head(folder, 96),
        r"reads 96 channels, and classifiers of DINOv2 .* 128 or 320",
    ),
    "of DINO, of another width": (
        lambda folder: head(folder, 3 * 64, dino=True),
        "reads 192 channels, and classifiers of DINO on a backbone 64 wide read 64 or 128 or 256",
    ),
    "no head": (lambda folder: backbone(folder), "holds no linear classifier"),
    "without a bias": (
        lambda folder: torch.save({"weight": torch.ones(5, 128)}, folder / "head.pth") or folder / "head.pth",
        "holds no linear classifier",
    ),
    "another bias": (lambda folder: head(folder, 128, bias=torch.ones(4)), r"1 misshapen .bias \(4,\) for \(5,\)"),
    "whole numbers": (
        lambda folder: head(folder, 128, weight=torch.ones(5, 128, dtype=torch.int64)),
        "1 mistyped .weight",
    ),
    "no classes": (lambda folder: head(folder, 128, weight=torch.ones(0, 128)), "does not fit the backbone .classes=0"),
    "nowhere": (lambda folder: folder / "none.pth", "none.pth: cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_head_that_does_not_fit_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    model = backbone(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        synoptic.load(model, linear_head=str(make(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_head_is_for_files_of_others(tmp_path: Path) -> None:
    save_folder(tmp_path / "ours", ViT(VIT), Preprocess(32))
    with pytest.raises(ValueError, match="says itself what linear_head= should be"):
        synoptic.load(tmp_path / "ours", linear_head=str(head(tmp_path, 128)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give one of vit and resnet"),
        ({"vit": VIT, "resnet": RESNET}, "give one of vit and resnet"),
        ({"vit": VIT, "layers": 6}, "reads a summary token of 6 blocks"),
        ({"vit": VIT, "layers": 2, "mean": "between"}, "layers=2 should be 1"),
        ({"resnet": RESNET, "mean": "behind"}, "a ResNet has one summary"),
        ({"vit": VIT, "classes": 10**6}, "classes=1000000 should be"),
    ],
)
def test_impossible_configurations_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassifierConfig(**{"classes": 5, **values})
