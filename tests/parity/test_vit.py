"""Our ViT against its makers' own: transformers in the same process, and recorded outputs of DINO and DINOv2."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import assert_equal, assert_equal_forward_and_backward, assert_survives_the_way_there_and_back, file_of
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ViTConfig as TheirConfig
from transformers import ViTModel

from synoptic.models.positions import LearnedPositions
from synoptic.models.vit import ViT, ViTConfig
from synoptic.types import Features
from synoptic.weights.convert import HUGGINGFACE_VIT, Rule, Table, load_state, to_ours

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # none of them is a binary fraction, so rounding shows


def pair(folder: Path, act: str = "gelu", dtype: torch.dtype = torch.float64) -> tuple[ViT, ViTModel]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    theirs = ViTModel(TheirConfig(**sizes, image_size=32, patch_size=8, hidden_act=act), add_pooling_layer=False)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = ViT(
        ViTConfig(
            patch_size=8,
            width=24,
            depth=2,
            heads=3,
            hidden=40,
            image_size=32,
            mean=MEAN,
            std=STD,
            activation=act,
            norm_eps=1e-12,
        )
    )
    load_state(ours, to_ours(file_of(theirs, folder), HUGGINGFACE_VIT), "transformers")
    return ours.to(dtype).eval(), theirs.to(dtype).eval()


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((images.double() - mean) / std).to(images.dtype)


def tokens_of(features: Features) -> Tensor:
    return torch.cat([features.summary[:, None], features.patches], dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(32, 32), (24, 56), (64, 16)], ids=str)
@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_equals_transformers_forward_and_backward(
    tmp_path: Path, act: str, size: tuple[int, int], dtype: torch.dtype
) -> None:
    ours, theirs = pair(tmp_path, act, dtype)
    images = torch.rand(2, 3, *size, dtype=dtype)
    answer = tokens_of(ours(images))
    expected = theirs(normalised(images), interpolate_pos_encoding=True).last_hidden_state
    assert_equal_forward_and_backward(ours, theirs, answer, expected, HUGGINGFACE_VIT, tmp_path)


def test_layers_equal_transformers(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path)
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    hidden = theirs(normalised(images), output_hidden_states=True).hidden_states
    for layer, state in zip(ours(images, layers=(0, 1)).layers, hidden[1:], strict=True):
        assert_equal(tokens_of(layer), theirs.layernorm(state))


def test_weights_survive_the_way_there_and_back(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path, dtype=torch.float32)
    assert_survives_the_way_there_and_back(ours, theirs, HUGGINGFACE_VIT, tmp_path)


def test_a_wrong_epsilon_would_be_seen(tmp_path: Path) -> None:
    """Guards the tolerance: it must be finer than the mistakes that weights of this kind are converted with."""
    ours, theirs = pair(tmp_path)
    wrong = copy.deepcopy(ours)
    for module in wrong.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with pytest.raises(AssertionError):
        assert_equal(tokens_of(wrong(images)), theirs(normalised(images)).last_hidden_state)


# What the released DINO and DINOv2 files call things; their attention and feed-forward layers are named as ours.
FACEBOOK = Table(
    rules=(
        Rule("summary_token", ("cls_token",)),
        Rule("register_token", ("register_tokens",)),
        Rule("mask_token", ("mask_token",)),
        Rule("positions.table", ("pos_embed",)),
        Rule("patch_embed.{p}", ("patch_embed.proj.{p}",)),
        Rule("blocks.{i}.{part}.{p}", ("blocks.{i}.{part}.{p}",)),
        Rule("blocks.{i}.{part}.{layer}.{p}", ("blocks.{i}.{part}.{layer}.{p}",)),
        Rule("norm.{p}", ("norm.{p}",)),
    )
)


def from_fixture(path: Path, sizes: Mapping[str, int], **config: Any) -> ViT:
    """The ViT of a makers' file, with the sizes that its record names."""
    ours = {"patch_size": "patch", "width": "dim", "depth": "depth", "heads": "heads", "image_size": "img"}
    model = ViT(ViTConfig(**{name: sizes[theirs] for name, theirs in ours.items()}, **config))
    load_state(model, to_ours(torch.load(path, weights_only=True), FACEBOOK), str(path))
    return model.eval()


def sizes_of(record: dict[str, Tensor]) -> list[str]:
    return [name.removeprefix("image/") for name in record if name.startswith("image/")]


def assert_equals_record(record: dict[str, Tensor], prefix: str, answers: Mapping[str, Tensor], suffix: str) -> int:
    """Compares those answers that were recorded, and tells how many were."""
    recorded = {name: f"{prefix}/{name}/{suffix}" for name in answers}
    recorded = {name: key for name, key in recorded.items() if key in record}
    for name, key in recorded.items():
        assert_equal(answers[name], record[key])
    return len(recorded)


def dino(folder: Path, name: str) -> ViT:
    sizes = json.loads((folder / "config.json").read_text())["vits"][name]
    return from_fixture(folder / f"weights.{name}.pth", sizes, position_offset=0.1)


@pytest.mark.parametrize("name", ["vit_p16", "vit_p8"])
def test_equals_dino(fixtures_dir: Path, name: str) -> None:
    model = dino(fixtures_dir / "dino", name)
    record = load_file(fixtures_dir / "dino" / "io.safetensors")
    for size in sizes_of(record):
        images = record[f"image/{size}"]
        features = model(images, layers=(-2,))
        answers = {"tokens": tokens_of(features), "tokens_second_last": tokens_of(features.layers[0])}
        assert assert_equals_record(record, name, answers, size) >= 1


@pytest.mark.parametrize("name", ["vit_p16", "vit_p8"])
def test_equals_dino_in_float64(fixtures_dir: Path, name: str) -> None:
    model = dino(fixtures_dir / "dino", name).double()
    record = load_file(fixtures_dir / "dino" / "io.safetensors")
    for size in sizes_of(record):
        features = model(record[f"image/{size}"].double())
        answers = {"cls": features.summary, "tokens": tokens_of(features)}
        assert assert_equals_record(record, name, answers, f"{size}_f64") >= 1


def dinov2(folder: Path, name: str) -> ViT:
    sizes = json.loads((folder / "config.json").read_text())["variants"][name]
    return from_fixture(
        folder / f"weights.{name}.pth",
        sizes,
        registers=sizes["reg"],
        feed_forward="mlp" if sizes["ffn"] == "mlp" else "swiglu",
        antialias=sizes["antialias"],
        position_offset=sizes["offset"],
        layer_scale=1.0,
        mask_token=True,
    )


@pytest.mark.parametrize("name", ["plain", "reg4", "swiglu", "swiglu_reg4"])
def test_equals_dinov2(fixtures_dir: Path, name: str) -> None:
    model = dinov2(fixtures_dir / "dinov2", name)
    record = load_file(fixtures_dir / "dinov2" / "io.safetensors")
    for size in sizes_of(record):
        images = record[f"image/{size}"]
        features, masked = model(images, layers=(0,)), model(images, masks=record[f"in/mask/{size}"].bool())
        answers = {
            "x_norm_clstoken": features.summary,
            "x_norm_patchtokens": features.patches,
            "intermediate0_cls": features.layers[0].summary,
            "intermediate0_patches": features.layers[0].patches,
            "masked_cls": masked.summary,
            "masked_patches": masked.patches,
        }
        assert assert_equals_record(record, name, answers, size) >= 3


@pytest.mark.parametrize("name", ["plain", "reg4", "swiglu", "swiglu_reg4"])
def test_equals_dinov2_in_float64(fixtures_dir: Path, name: str) -> None:
    model = dinov2(fixtures_dir / "dinov2", name)
    in_float32 = copy.deepcopy(model.positions)
    assert isinstance(in_float32, LearnedPositions)
    model = model.double()
    model.positions._resampled = lambda grid: in_float32._resampled(grid).double()  # the makers' code does that
    record = load_file(fixtures_dir / "dinov2" / "io.safetensors")
    for size in sizes_of(record):
        features = model(record[f"image/{size}"].double())
        answers = {"x_norm_clstoken": features.summary, "x_norm_patchtokens": features.patches}
        assert assert_equals_record(record, name, answers, f"{size}_f64") >= 1
