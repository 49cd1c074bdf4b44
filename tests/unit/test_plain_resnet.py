"""The plain ResNet, and the files that DINO's has: the backbone, and a training whose teacher is wrapped as well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import synoptic
from synoptic.models.hub import HubBackbone
from synoptic.models.plain_resnet import PlainResNet, PlainResNetConfig
from synoptic.types import Preprocess
from synoptic.weights import formats
from synoptic.weights.convert import from_ours
from synoptic.weights.folder import save_folder, shapes_alone
from synoptic.weights.options import LoadOptions
from synoptic.weights.resnet_tables import TORCHVISION_RESNET
from synoptic.weights.writing import convert

TINY = PlainResNetConfig(blocks=(1, 2, 1, 1), width=4, image_size=64)


def resnet(config: PlainResNetConfig = TINY) -> PlainResNet:
    torch.manual_seed(0)
    model = PlainResNet(config).eval()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith(("running_var", "bn1.weight", "bn2.weight")):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif tensor.is_floating_point():
            nn.init.normal_(tensor, std=0.2)
    return model


def theirs(model: PlainResNet) -> dict[str, Tensor]:
    return from_ours(model.state_dict(), TORCHVISION_RESNET)


def test_it_answers_with_the_last_map_its_mean_and_the_stages() -> None:
    model = resnet()
    features = model(torch.rand(2, 3, 64, 96), layers=(0, -1))
    assert (model.width, model.summary_width, model.stride, model.channels) == (128, 128, 32, 3)
    assert (features.grid, features.patches.shape) == ((2, 3), (2, 6, 128))
    torch.testing.assert_close(features.summary, features.patches.mean(1))
    assert [layer.grid for layer in features.layers] == [(16, 24), (2, 3)]
    assert features.layers[0].patches.shape == (2, 16 * 24, 16)


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_a_stride_lies_in_the_middle_convolution(size: tuple[int, int]) -> None:
    """By the formula of torchvision's bottleneck, written out for the first one of the second stage."""
    block = resnet().stages[1][0]
    assert [block.conv1.stride, block.conv2.stride, block.shortcut[0].stride] == [(1, 1), (2, 2), (2, 2)]


def test_what_it_cannot_read_is_refused() -> None:
    model = resnet()
    for images, options, message in (
        (torch.rand(1, 3, 48, 64), {}, "H and W multiples of 32, got"),
        (torch.rand(1, 1, 64, 64), {}, r"\(B, 3, H, W\)"),
        (torch.rand(1, 3, 0, 64), {}, "multiples of 32"),
        (torch.rand(1, 3, 64, 64), {"masks": torch.ones(1, 4)}, "which hides nothing"),
        (torch.rand(1, 3, 64, 64), {"layers": (4,)}, "there is no layer 4"),
    ):
        with pytest.raises(ValueError, match=message):
            model(images, **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"blocks": (1, 0, 1, 1)}, "should be from 1 to 256 in each stage"),
        ({"blocks": (10**9, 1, 1, 1)}, "should be from 1 to 256 in each stage"),
        ({"width": 0}, "width=0"),
        ({"width": 2000}, "channels_out=64000 should be"),
        ({"image_size": 100}, "no multiple of 32"),
        ({"channels": 2}, "channels=2 needs as many values"),
        ({"std": (1.0, 0.0, 1.0)}, "should be above 0"),
    ],
)
def test_impossible_configurations_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlainResNetConfig(**values)  # type: ignore[arg-type]


@settings(max_examples=20)
@given(st.tuples(*[st.integers(1, 12)] * 4), st.integers(1, 9))
def test_shapes_tell_the_configuration(blocks: tuple[int, int, int, int], width: int) -> None:
    config = PlainResNetConfig(blocks=blocks, width=width)
    with shapes_alone():
        state = from_ours(PlainResNet(config).state_dict(), TORCHVISION_RESNET)
    found = formats.identify({"": state}, {}, LoadOptions(), "file")
    assert (found.format.name, found.config) == ("DINO with a ResNet", config)


def test_a_backbone_file_and_both_parts_of_a_training_are_read(tmp_path: Path) -> None:
    """BatchNorm makes DINO's code wrap the teacher too, so both parts have `module.` before their keys."""
    student, teacher = resnet(), PlainResNet(TINY).eval()
    head = {"module.head.mlp.0.weight": torch.ones(5, 128), "module.head.last_layer.weight_g": torch.ones(7, 1)}
    parts = {
        name: {**{f"module.backbone.{key}": tensor for key, tensor in theirs(model).items()}, **head}
        for name, model in (("student", student), ("teacher", teacher))
    }
    torch.save({**parts, "epoch": 3, "dino_loss": {"center": torch.zeros(1, 7)}}, tmp_path / "full.pth")
    torch.save(theirs(student), tmp_path / "dino_resnet50_pretrain.pth")
    images = torch.rand(1, 3, 64, 64)
    for file, part, expected in (
        ("full.pth", "student", student),
        ("full.pth", None, teacher),
        ("dino_resnet50_pretrain.pth", None, student),
    ):
        model = synoptic.load(tmp_path / file, "cpu", part=part)
        assert torch.equal(model(images).summary, expected(images).summary)
        assert model.trained["from"] == "DINO with a ResNet"
    model.save(tmp_path / "kept")
    again = synoptic.load(tmp_path / "kept", "cpu")
    assert torch.equal(again(images).patches, model(images).patches)
    assert (again.preprocess, again.depth, again.attends) == (Preprocess(224), 0, False)


def test_a_classifier_is_not_dropped_in_silence(tmp_path: Path) -> None:
    torch.save({**theirs(resnet()), "fc.weight": torch.ones(9, 128), "fc.bias": torch.ones(9)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"2 unknown \(fc\.weight, fc\.bias\)"):
        synoptic.load(tmp_path / "a.pth")


@pytest.mark.parametrize("said", ["downsample_in_bottleneck", "downsample_in_first_stage", "hidden_act", "layer_type"])
def test_another_resnet_is_left_to_transformers(said: str, tmp_path: Path) -> None:
    """Its weights would fit ours, which would answer wrongly; those of other layers fit none."""
    save_folder(tmp_path / "mine", resnet(), Preprocess(64))
    convert(tmp_path / "mine", "huggingface", tmp_path / "h")
    path = tmp_path / "h" / "config.json"
    value = {"hidden_act": "gelu", "layer_type": "basic"}.get(said, True)
    path.write_text(json.dumps(json.loads(path.read_text()) | {said: value}))
    if said == "layer_type":
        with pytest.raises(ValueError, match=r"\d+ (missing|misshapen)"):
            synoptic.load(tmp_path / "h")
    else:
        assert isinstance(synoptic.load(tmp_path / "h", "cpu").model, HubBackbone)
