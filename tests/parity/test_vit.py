"""Our ViT against the three of transformers that DINO and DINOv2 are told as, read from their folders and written back.

Their Dinov2 models resample positions in float32 whatever else they compute in: there ours do the same.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import (
    all_tokens,
    assert_equal,
    assert_equal_forward_and_backward,
    assert_survives_the_way_there_and_back,
    normalised,
    resample_positions_in_float32,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    ViTModel,
)
from transformers import ViTConfig as TheirViTConfig

from synoptic.models.vit import ViT
from synoptic.weights import formats
from synoptic.weights.convert import HUGGINGFACE_DINOV2, HUGGINGFACE_VIT, Table, from_ours
from synoptic.weights.options import LoadOptions

SIZES: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 8}
OTHER_SIZES = [(24, 56), (64, 16)]  # than the 32 x 32 that the position tables are made for


@dataclass(frozen=True)
class Family:
    build: Callable[[], PreTrainedModel]
    table: Table
    options: dict[str, Any]  # of their forward pass


def vit(act: str) -> Family:
    config = TheirViTConfig(**SIZES, image_size=32, intermediate_size=40, hidden_act=act)
    return Family(
        lambda: ViTModel(config, add_pooling_layer=False), HUGGINGFACE_VIT, {"interpolate_pos_encoding": True}
    )


def dinov2(**config: Any) -> Family:
    return Family(
        lambda: Dinov2Model(Dinov2Config(**SIZES, image_size=32, mlp_ratio=2, **config)), HUGGINGFACE_DINOV2, {}
    )


def dinov2_with_registers(**config: Any) -> Family:
    return Family(
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, image_size=32, mlp_ratio=2, **config)),
        HUGGINGFACE_DINOV2,
        {},
    )


FAMILIES = {
    "vit": vit("gelu"),
    "vit quick_gelu": vit("quick_gelu"),
    "dinov2": dinov2(),
    "dinov2 swiglu": dinov2(use_swiglu_ffn=True, use_mask_token=False, qkv_bias=False),
    "registers": dinov2_with_registers(),
    "registers swiglu": dinov2_with_registers(use_swiglu_ffn=True, num_register_tokens=2),
}


def pair(family: Family, folder: Path, dtype: torch.dtype = torch.float64) -> tuple[ViT, PreTrainedModel]:
    """Theirs with random weights, and ours as it is read from their folder."""
    torch.manual_seed(0)
    theirs = family.build()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    theirs.save_pretrained(folder)
    ours = formats.load(folder, LoadOptions())[0]
    assert isinstance(ours, ViT)
    return ours.to(dtype), theirs.to(dtype).eval()


@pytest.mark.parametrize(
    ("size", "dtype"),
    [((32, 32), torch.float64), *((size, torch.float64) for size in OTHER_SIZES), ((24, 56), torch.float32)],
    ids=str,
)
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_transformers_forward_and_backward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: tuple[int, int], dtype: torch.dtype
) -> None:
    family = FAMILIES[name]
    ours, theirs = pair(family, tmp_path, dtype)
    if family.table is HUGGINGFACE_DINOV2:
        resample_positions_in_float32(monkeypatch)
    images = torch.rand(2, 3, *size, dtype=dtype)
    ((_, answer),) = all_tokens(ours, images)
    expected = theirs(normalised(images), **family.options).last_hidden_state
    assert_equal_forward_and_backward(ours, theirs, answer, expected, family.table, tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_equal_transformers(tmp_path: Path, name: str) -> None:
    ours, theirs = pair(FAMILIES[name], tmp_path)
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    expected = theirs(normalised(images), output_hidden_states=True)
    first, second, last = all_tokens(ours, images, layers=(0, 1))
    assert_equal(first[0], expected.hidden_states[1])
    assert_equal(first[1], theirs.layernorm(expected.hidden_states[1]))
    assert_equal(second[1], expected.last_hidden_state)
    assert torch.equal(second[1], last[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_equals_transformers(tmp_path: Path, name: str) -> None:
    ours, theirs = pair(FAMILIES[name], tmp_path, torch.float32)  # in which their ViT's softmax is taken in any case
    theirs.set_attn_implementation("eager")  # the one that tells it
    images = torch.rand(2, 3, 32, 32)
    for layer, attention in enumerate(theirs(normalised(images), output_attentions=True).attentions):
        assert_equal(ours.attention(images, layer, queries=attention.shape[2]), attention)


@pytest.mark.parametrize("name", ["dinov2", "registers", "registers swiglu"])
def test_masked_patches_equal_transformers(tmp_path: Path, name: str) -> None:
    ours, theirs = pair(FAMILIES[name], tmp_path)
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    masks = torch.rand(2, 16) < 0.4
    ((_, answer),) = all_tokens(ours, images, masks)
    assert_equal(answer, theirs(normalised(images), bool_masked_pos=masks).last_hidden_state)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_survive_the_way_there_and_back(tmp_path: Path, name: str) -> None:
    family = FAMILIES[name]
    ours, theirs = pair(family, tmp_path, torch.float32)
    assert_survives_the_way_there_and_back(ours, theirs, family.table, tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_ours_are_read_by_transformers(tmp_path: Path, name: str) -> None:
    family = FAMILIES[name]
    theirs = family.build()
    theirs.save_pretrained(tmp_path)
    ours = ViT(formats.load(tmp_path, LoadOptions())[0].config).eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.5)
    save_file(
        {key: tensor.contiguous() for key, tensor in from_ours(ours.state_dict(), family.table).items()},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    options = {"add_pooling_layer": False} if family.table is HUGGINGFACE_VIT else {}
    read, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True, **options)
    assert not any(report.values())
    for size in [(32, 32), *OTHER_SIZES]:
        images = torch.rand(2, 3, *size)
        ((_, answer),) = all_tokens(ours, images)
        assert_equal(answer, read(normalised(images), **family.options).last_hidden_state)


def test_a_wrong_epsilon_would_be_seen(tmp_path: Path) -> None:
    """Guards the tolerance: it must be finer than the mistakes that weights of this kind are converted with."""
    ours, theirs = pair(FAMILIES["vit"], tmp_path)
    wrong = copy.deepcopy(ours)
    for module in wrong.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    ((_, answer),) = all_tokens(wrong, images)
    with pytest.raises(AssertionError):
        assert_equal(answer, theirs(normalised(images)).last_hidden_state)


@pytest.mark.parametrize("key", ["position_offset", "antialias"])
def test_a_wrong_rule_for_positions_would_be_seen(tmp_path: Path, key: str) -> None:
    """Guards the sizes: at the trained one all rules are the same."""
    ours, theirs = pair(FAMILIES["dinov2"], tmp_path, torch.float32)
    ours.positions.offset, ours.positions.antialias = (0.1, False) if key == "position_offset" else (0.0, True)

    def differs(size: tuple[int, int]) -> bool:
        images = torch.rand(1, 3, *size)
        ((_, answer),) = all_tokens(ours, images)
        expected: Tensor = theirs(normalised(images)).last_hidden_state
        return (answer - expected).abs().max().item() > 1e-3 * expected.abs().max().item()

    assert not differs((32, 32))
    assert all(differs(size) for size in OTHER_SIZES)


def test_their_configuration_is_taken_at_its_word(tmp_path: Path) -> None:
    pair(FAMILIES["dinov2"], tmp_path)
    header = json.loads((tmp_path / "config.json").read_text())
    header |= {"layer_norm_eps": 1e-3, "num_attention_heads": 6}
    (tmp_path / "config.json").write_text(json.dumps(header))
    config = formats.load(tmp_path, LoadOptions())[0].config
    assert (config.norm_eps, config.heads) == (1e-3, 6)
