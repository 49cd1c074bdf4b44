"""The heads of RADIO's releases against their arithmetic written out, and students made of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synoptic.config import from_dict, to_dict
from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.heads import AttentionHead, HeadConfig, MlpHead, ResidualHead, build_head, finer
from synoptic.models.vit import ViTConfig

WIDTH, HIDDEN, OUT = 32, 12, 6


def head(**config: Any) -> Any:
    torch.manual_seed(0)
    made = build_head(HeadConfig(**config), WIDTH, HIDDEN, OUT).double().eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def norm(layer: Any, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, eps)


def residual(made: Any, x: Tensor) -> Tensor:
    """v2, by its keys."""
    state = made.state_dict()
    x = F.linear(x, state["fc1.weight"], state["fc1.bias"])
    for name in [*(f"blocks.{i}" for i in range(len(made.blocks))), "final"]:
        inside = F.layer_norm(x, x.shape[-1:], state[f"{name}.0.weight"], state[f"{name}.0.bias"], 1e-5)
        inside = F.linear(F.gelu(inside), state[f"{name}.2.weight"], state[f"{name}.2.bias"])
        x = inside if name == "final" else x + inside
    return x


@pytest.mark.parametrize(("form", "act"), [("paper", F.gelu), ("v1", F.relu)])
def test_the_paper_and_its_release_differ_in_the_activation(form: str, act: Any) -> None:
    made, x = head(form=form), tokens(3, WIDTH)
    assert isinstance(made, MlpHead)
    expected = F.linear(act(norm(made.norm, made.fc1(x))), made.fc2.weight, made.fc2.bias)
    torch.testing.assert_close(made(x), expected)


@pytest.mark.parametrize("inner", [0, 1, 3])
def test_the_second_version_has_residual_blocks(inner: int) -> None:
    made, x = head(form="v2", inner=inner, hidden=10), tokens(2, 5, WIDTH)
    assert isinstance(made, ResidualHead)
    assert made.fc1.weight.shape == (10, WIDTH) and len(made.blocks) == inner
    torch.testing.assert_close(made(x), residual(made, x))


@pytest.mark.parametrize("bias", [True, False])
def test_the_fourth_release_attends_before_it_answers(bias: bool) -> None:
    made, x = head(form="attention", inner=1, upsample=2, qkv_bias=bias), tokens(2, 6, WIDTH)
    assert isinstance(made, AttentionHead)
    expected = x
    for layer in made.blocks:
        qkv = layer.attn.qkv(norm(layer.norm1, expected, 1e-6)).view(2, 6, 3, 16, 2)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = (query @ key.mT * 2**-0.5).softmax(-1) @ value
        expected = expected + layer.ls1.gamma * layer.attn.proj(mixed.transpose(1, 2).reshape(2, 6, WIDTH))
        inside = layer.mlp.fc2(F.gelu(layer.mlp.fc1(norm(layer.norm2, expected, 1e-6))))
        expected = expected + layer.ls2.gamma * inside
    assert (made.blocks[0].attn.qkv.bias is not None) == bias
    assert made(x).shape == (2, 6, 4 * OUT)
    torch.testing.assert_close(made(x), residual(made.mlp, expected))


def test_a_finer_grid_is_made_of_the_channels() -> None:
    """(u1 u2 c) channels of the patch in row i and column j answer at row u*i + u1 and column u*j + u2."""
    said = tokens(2, 3 * 4, 9 * 5)
    patches, grid = finer(said, (3, 4), 3)
    assert grid == (9, 12)
    maps, coarse = patches.view(2, 9, 12, 5), said.view(2, 3, 4, 3, 3, 5)
    for row in range(9):
        for column in range(12):
            assert torch.equal(maps[:, row, column], coarse[:, row // 3, column // 3, row % 3, column % 3])
    assert finer(said, (3, 4), 1)[0] is said


@pytest.mark.parametrize("form", ["paper", "v1", "v2", "attention"])
def test_a_linear_map_of_answers_can_be_folded_into_the_last_layer(form: str) -> None:
    made, x = head(form=form), tokens(1, 4, WIDTH)
    before = made(x)
    with torch.no_grad():
        made.last.weight.mul_(2), made.last.bias.mul_(2)
    torch.testing.assert_close(made(x), 2 * before)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"form": "v1", "inner": 1}, "form=v1 has neither inner=1"),
        ({"upsample": 2}, "form=paper has neither"),
        ({"form": "v2", "upsample": 17}, "upsample=17 should be from 1 to 16"),
        ({"form": "v2", "inner": -1}, "inner=-1 should be"),
        ({"hidden": 0}, "hidden=0 should be"),
    ],
)
def test_heads_that_cannot_be_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeadConfig(**config)


def test_a_summary_has_nothing_to_attend_to() -> None:
    for summary_head in (HeadConfig(form="attention"), HeadConfig(form="v2", upsample=2)):
        with pytest.raises(ValueError, match="summary_head: one vector has nothing to attend to"):
            AdaptorConfig(patches=4, summary=4, hidden=8, summary_head=summary_head)
    with pytest.raises(ValueError, match="needs a width that 16 divides, not 12"):
        build_head(HeadConfig(form="attention"), 12, 8, 4)


def released(**changes: Any) -> StudentConfig:
    backbone = ViTConfig(
        patch_size=4, width=WIDTH, depth=1, heads=4, image_size=16, summary_tokens=4, registers=2, position="cpe"
    )
    v2 = HeadConfig(form="v2", inner=1)
    adaptors = {
        "dino": AdaptorConfig(patches=7, summary=7, hidden=8, patch_head=v2, summary_head=v2),
        "sam": AdaptorConfig(patches=5, summary=None, hidden=8, patch_head=HeadConfig(form="v2", upsample=2)),
    }
    return StudentConfig(
        **{"backbone": backbone, "adaptors": adaptors, "tokens": {"dino": 2, "sam": 3}, "summary": (0, 2), **changes}
    )


def test_a_release_leaves_tokens_out_of_its_summary() -> None:
    torch.manual_seed(0)
    model = Student(released()).eval()
    images = torch.rand(2, 3, 8, 12)
    features, every = model(images, layers=(0,)), model.backbone(images).summary.view(2, 4, WIDTH)
    assert model.summary_width == 2 * WIDTH
    assert torch.equal(features.summary, every[:, [0, 2]].flatten(1))
    assert features.layers[0].summary.shape == (2, 2 * WIDTH)
    assert torch.equal(features.adaptors["dino"].summary, model.adaptors["dino"].summary_head(every[:, 2]))
    assert features.adaptors["sam"].grid == (4, 6)
    assert features.adaptors["sam"].patches.shape == (2, 24, 5)


def test_a_release_is_kept_as_json_and_older_ones_are_read() -> None:
    config = released()
    assert from_dict(StudentConfig, to_dict(config), "here") == config
    said = to_dict(StudentConfig(backbone=config.backbone, adaptors=config.adaptors, tokens=config.tokens))
    older = {"patches": 7, "summary": 7, "hidden": 8, "text": None}
    values = {"backbone": {**said["backbone"], "summary_tokens": 1}, "adaptors": {"dino": older}}
    assert from_dict(StudentConfig, values, "here").adaptors["dino"] == AdaptorConfig(patches=7, summary=7, hidden=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": {"dino": 0}}, "should name one for each of dino, sam"),
        ({"tokens": {"dino": 0, "sam": 4}}, "the backbone has 4, 0 to 3"),
        ({"summary": ()}, r"summary=\(\) should be different tokens out of 0 to 3"),
        ({"summary": (1, 1)}, r"summary=\(1, 1\) should be different"),
        ({"summary": (4,)}, r"summary=\(4,\) should be different"),
        ({"tokens": None}, "2 adaptors need one summary token or as many, not 4"),
    ],
)
def test_tokens_that_are_not_there_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        released(**changes)
