"""Windows of a ViT against the same arithmetic written out for one picture, and what they leave as it was."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from synoptic.evaluation.sizes import rising_sizes
from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.vit import ViT, ViTConfig
from synoptic.models.windows import is_global
from synoptic.predict import VisionModel, load
from synoptic.types import Preprocess

CONFIG = ViTConfig(
    patch_size=4,
    width=12,
    depth=5,
    heads=3,
    image_size=32,
    summary_tokens=2,
    registers=3,
    position="cpe",
    final_norm=False,
    layer_scale=1.0,
    global_blocks=2,
)


def vit(**changes: Any) -> ViT:
    torch.manual_seed(0)
    model = ViT(replace(CONFIG, **changes)).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def pictures(height: int, width: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def block(layer: Any, tokens: Tensor, heads: int) -> Tensor:
    """A transformer block on the (N, D) tokens that see each other."""
    count, width = tokens.shape
    normed = F.layer_norm(tokens, (width,), layer.norm1.weight, layer.norm1.bias, 1e-6)
    qkv = F.linear(normed, layer.attn.qkv.weight, layer.attn.qkv.bias).view(count, 3, heads, -1)
    query, key, value = qkv.permute(1, 2, 0, 3)
    mixed = (query @ key.mT * (width // heads) ** -0.5).softmax(-1) @ value
    tokens = tokens + layer.ls1.gamma * layer.attn.proj(mixed.transpose(0, 1).reshape(count, width))
    normed = F.layer_norm(tokens, (width,), layer.norm2.weight, layer.norm2.bias, 1e-6)
    return tokens + layer.ls2.gamma * layer.mlp.fc2(F.gelu(layer.mlp.fc1(normed)))


def reference(model: ViT, image: Tensor, side: int, whole: set[int]) -> list[Tensor]:
    """All (T + R + h*w, D) tokens after each block: in those of `whole` all see each other, elsewhere patches see those
    of their window, and learned tokens wait."""
    height, width = (size // model.stride for size in image.shape[1:])
    learned = CONFIG.summary_tokens + CONFIG.registers
    tokens = model._embed(image[None], None)[0]
    after = []
    for index, layer in enumerate(model.blocks):
        if index in whole:
            tokens = block(layer, tokens, CONFIG.heads)
        else:
            maps = tokens[learned:].view(height, width, -1)
            rows = []
            for top in range(0, height, side):
                windows = [maps[top : top + side, left : left + side] for left in range(0, width, side)]
                seen = [block(layer, each.reshape(side * side, -1), CONFIG.heads) for each in windows]
                rows.append(torch.cat([each.view(side, side, -1) for each in seen], dim=1))
            tokens = torch.cat([tokens[:learned], torch.cat(rows).flatten(0, 1)])
        after.append(tokens)
    return after


@pytest.mark.parametrize(("height", "width", "side"), [(16, 16, 2), (24, 32, 2), (24, 12, 3), (16, 16, 4), (16, 8, 1)])
@torch.no_grad()
def test_windows_are_what_their_definition_says(height: int, width: int, side: int) -> None:
    """Of five blocks with two global ones the second, the fourth, and the last: periods of two, and the last always."""
    model, images = vit(), pictures(height, width)
    features = model(images, layers=range(5), window=side)
    for place, image in enumerate(images):
        expected = reference(model, image, side, {1, 3, 4})
        for layer, tokens in zip((*features.layers, features), (*expected, expected[-1]), strict=True):
            torch.testing.assert_close(layer.summary[place], tokens[:2].flatten(), rtol=0, atol=1e-9)
            torch.testing.assert_close(layer.patches[place], tokens[5:], rtol=0, atol=1e-9)


@torch.no_grad()
def test_where_every_block_is_global_windows_are_nothing() -> None:
    model, images = vit(global_blocks=5), pictures(16, 24)
    plain, windowed = model(images), model(images, window=2)
    torch.testing.assert_close(windowed.patches, plain.patches)
    torch.testing.assert_close(windowed.summary, plain.summary)


@torch.no_grad()
def test_a_window_as_large_as_the_picture_leaves_out_the_learned_tokens_alone() -> None:
    """Without any of these it is attention over the whole picture."""
    model, images = vit(summary_tokens=0, registers=0), pictures(16, 16)
    torch.testing.assert_close(model(images, window=4).patches, model(images).patches)
    learned = vit()
    assert not torch.allclose(learned(images, window=4).patches, learned(images).patches, atol=1e-3)


@torch.no_grad()
def test_pictures_of_several_sizes_go_through_windows_together() -> None:
    model = vit()
    images = [pictures(16, 24), pictures(8, 8, 3)]
    for answer, each in zip(model(images, window=2), images, strict=True):
        alone = model(each, window=2)
        torch.testing.assert_close(answer.patches, alone.patches)
        torch.testing.assert_close(answer.summary, alone.summary)


@torch.no_grad()
def test_the_configurations_window_holds_outside_of_training() -> None:
    model, images = vit(window=2), pictures(16, 16)
    plain = vit()
    assert torch.equal(model(images).patches, plain(images, window=2).patches)
    assert torch.equal(model(images, window=0).patches, plain(images).patches)
    positions = model.positions.eval()
    model.train()
    positions.training = False  # which are drawn anew in training
    torch.testing.assert_close(model(images).patches, plain(images).patches)


@torch.no_grad()
def test_a_patch_alone_in_the_last_block_has_been_in_windows() -> None:
    model, images = vit(window=2), pictures(16, 16)
    answer = model.alone(images)
    before = model(images, layers=(3,)).layers[0].patches
    alone = torch.stack([block(model.blocks[-1], patch[None], CONFIG.heads)[0] for patch in before.flatten(0, 1)])
    torch.testing.assert_close(answer.patches.flatten(0, 1), alone)


def test_a_student_sees_in_windows_too() -> None:
    adaptors = {"a": AdaptorConfig(patches=6, summary=6, hidden=8), "b": AdaptorConfig(patches=5, summary=5, hidden=8)}
    torch.manual_seed(0)
    model = Student(StudentConfig(backbone=CONFIG, adaptors=adaptors)).double().eval()
    images = pictures(16, 16)
    features, own = model(images, window=2), model.backbone(images, window=2)
    assert torch.equal(features.patches, own.patches)
    said = model.adaptors["b"].patch_head(own.patches)
    assert torch.equal(features.adaptors["b"].patches, said)


def test_a_loaded_model_is_asked_in_windows_by_call_or_for_good(tmp_path: Path) -> None:
    adaptors = {"a": AdaptorConfig(patches=6, summary=6, hidden=8), "b": AdaptorConfig(patches=5, summary=5, hidden=8)}
    torch.manual_seed(0)
    student = Student(StudentConfig(backbone=CONFIG, adaptors=adaptors))
    VisionModel(student, Preprocess(16), "student").save(tmp_path / "student")
    model, windowed = (load(tmp_path / "student", "cpu", **options) for options in ({}, {"window": 2}))
    images = torch.rand(3, 3, 16, 16)
    whole, parts = model.features(images), model.features(images, window=2, adaptors=["b"])
    assert list(parts.adaptors) == ["b"] and not torch.allclose(whole.patches, parts.patches)
    torch.testing.assert_close(parts.patches, model(images, window=2).patches)
    torch.testing.assert_close(parts.patches, windowed.features(images).patches)
    torch.testing.assert_close(whole.adaptors["b"].patches, windowed(images, window=0).adaptors["b"].patches)
    windowed.save(tmp_path / "windowed")
    assert load(tmp_path / "windowed", "cpu").model.config.backbone.window == 2


def test_windows_are_refused_where_there_are_none_or_they_do_not_tile(tmp_path: Path) -> None:
    VisionModel(vit().float(), Preprocess(16), "vit").save(tmp_path / "vit")
    with pytest.raises(
        ValueError, match=r"do not tile the 4 x 4 of .* 16 pixels; give a divisor of 4, or load\.size=12"
    ):
        load(tmp_path / "vit", window=3)
    with pytest.raises(ValueError, match=r"load.size=18: patches of 4 pixels do not tile it; .*: 16, 20$"):
        load(tmp_path / "vit", size=18)
    larger = load(tmp_path / "vit", size=24, window=3)
    assert larger.preprocess.size == 24 and larger.features(torch.rand(3, 30, 30)).grid == (6, 6)
    assert rising_sizes(larger) == (12, 24, 36, 48, 72, 96)
    with pytest.raises(ValueError, match=r"sizes=16: windows of patches of 12 pixels do not tile it; .* 12 and 24"):
        rising_sizes(larger, [16])
    with pytest.raises(ValueError, match="vit_mini16: says itself what window= should be"):
        load("vit_mini16", window=2)
    resnet = load("rn50", "cpu")
    with pytest.raises(ValueError, match="window=2: rn50 is no ViT or student, and attends in no windows"):
        resnet(torch.rand(1, 3, 64, 64), window=2)
    resnet.save(tmp_path / "resnet")
    with pytest.raises(ValueError, match=r"load\.window=2: is for a ViT or a student, and this is neither"):
        load(tmp_path / "resnet", window=2)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_windows_learn(drop_path: float) -> None:
    model = vit(drop_path=drop_path, drop_path_uniform=True).train()
    features = model(pictures(16, 16, 4), window=2)
    (features.patches.square().mean() + features.summary.square().mean()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_gradients_of_windows_are_those_of_the_definition() -> None:
    model, image = vit(), pictures(16, 8, 1)
    weights = torch.randn(8, 12, dtype=torch.float64)
    (model(image, window=2).patches[0] * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    (reference(model, image[0], 2, {1, 3, 4})[-1][5:] * weights).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad)


def test_windows_that_do_not_tile_are_refused_with_sizes_that_work() -> None:
    told = (
        "windows of 3 x 3 patches do not tile the 4 x 6 of pictures of 16x24; they tile sides that are multiples of "
        "12, such as 12x24 and 24x36"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        vit()(pictures(16, 24), window=3)
    with pytest.raises(ValueError, match=r"such as 20x20 and 40x40$"):
        vit()(pictures(8, 8), window=5)
    with pytest.raises(ValueError, match="window=0 should be from 1"):
        replace(CONFIG, window=0)


@pytest.mark.parametrize(
    ("depth", "count", "expected"),
    [  # RADIO's ViTs of 12, 24, 32 and 40 blocks; five blocks with windows between two global ones are count=5 of 32
        (12, 4, [2, 5, 8, 11]),
        (24, 4, [5, 11, 17, 23]),
        (32, 4, [7, 15, 23, 31]),
        (40, 8, [4, 9, 14, 19, 24, 29, 34, 39]),
        (32, 5, [5, 11, 17, 23, 29, 31]),
        (27, 4, [5, 11, 17, 23, 26]),
    ],
)
def test_the_global_blocks_are_those_of_the_releases(depth: int, count: int, expected: list[int]) -> None:
    assert [index for index in range(depth) if is_global(index, depth, count)] == expected


@settings(max_examples=30)
@given(depth=st.integers(1, 40), count=st.integers(1, 60))
def test_the_last_block_is_always_global(depth: int, count: int) -> None:
    assert is_global(depth - 1, depth, count)
