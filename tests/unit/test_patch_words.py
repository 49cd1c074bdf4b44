"""Patches in the space of words: each is what the summary would be, were that patch all that is looked at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.clip import Clip, ClipConfig
from synoptic.models.resnet import ResNetConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, ViTConfig
from synoptic.predict import VisionModel
from synoptic.types import Preprocess

WORDS = Tokenizer.learn(["a red cone", "a blue cube"], vocabulary=300, context=12)


def text(embedding: int) -> TextConfig:
    return TextConfig(vocabulary=300, context=12, end=WORDS.end, width=8, depth=1, heads=2, embedding=embedding)


def image(**changes: object) -> ViTConfig:
    return ViTConfig(**{"patch_size": 4, "width": 12, "depth": 2, "heads": 3, "image_size": 16, **changes})  # type: ignore[arg-type]


def filled(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_of_a_vit_the_last_attention_is_its_value_path(pictures: Tensor):
    """MaskCLIP's formula: the value and the output layer in place of the attention, and on as the summary goes."""
    model = filled(Clip(ClipConfig(image=image(registers=2), text=text(6)), WORDS))
    found = model.encode_patches(pictures)
    vit, last = model.image, model.image.blocks[-1]
    tokens, groups, _ = vit._pack([pictures], [None])
    tokens = vit.blocks[0](tokens, groups)
    value = F.linear(last.norm1(tokens), last.attn.qkv.weight[24:], last.attn.qkv.bias[24:])
    tokens = tokens + last.attn.proj(value)
    tokens = tokens + last.mlp(last.norm2(tokens))
    expected = model.projection(vit.norm(tokens)).unflatten(0, (2, -1))[:, 3:]  # behind the summary and two registers
    assert found.grid == (4, 3)
    torch.testing.assert_close(found.patches, expected)


@torch.no_grad()
def test_of_pooling_by_attention_it_is_the_pool_of_one_patch(pictures: Tensor):
    vit = image(pool="attention", summary_tokens=0)
    model = filled(Clip(ClipConfig(image=vit, text=text(12), bias=True), WORDS))
    found, patches = model.encode_patches(pictures), model.image(pictures).patches
    for place in range(12):
        torch.testing.assert_close(found.patches[:, place], model.image.pool(patches[:, [place]]))
    one = pictures[:, :, :4, :4]
    torch.testing.assert_close(model.encode_patches(one).patches[:, 0], model(one).summary)


@torch.no_grad()
def test_of_a_resnet_it_is_the_pool_with_all_attention_on_one_cell():
    config = ResNetConfig(blocks=(1, 1, 1, 1), width=8, heads=4, embedding=6, image_size=64)
    model = filled(Clip(ClipConfig(resnet=config, text=text(6)), WORDS))
    pictures = torch.rand(2, 3, 64, 96)
    found, features, pool = model.encode_patches(pictures), model.image(pictures), model.image.pool
    tokens = torch.cat([features.patches.mean(1, keepdim=True), features.patches], 1) + pool._table(features.grid)
    query, key, value = pool.attn.qkv(tokens).chunk(3, dim=-1)
    split = [part.unflatten(-1, (4, -1)).transpose(1, 2) for part in (query[:, :1], key, value)]
    assert found.grid == (2, 3)
    for place in range(6):
        allowed = torch.zeros(1, 7, dtype=torch.bool)
        allowed[0, place + 1] = True
        mixed = F.scaled_dot_product_attention(*split, attn_mask=allowed)
        expected = pool.attn.proj(mixed.transpose(1, 2).flatten(2))[:, 0]
        torch.testing.assert_close(found.patches[:, place], expected)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 2])
def test_of_a_student_a_patch_takes_the_place_of_the_summary_token(pictures: Tensor, tokens: int):
    adaptors = {"dino": AdaptorConfig(patches=5, summary=5, hidden=8)}
    adaptors["clip"] = AdaptorConfig(patches=9, summary=6, hidden=8, text=text(6))
    model = filled(Student(StudentConfig(backbone=image(summary_tokens=tokens), adaptors=adaptors), {"clip": WORDS}))
    expected = model.adaptors["clip"].summary_head(model.backbone.alone(pictures).patches)
    torch.testing.assert_close(model.encode_patches(pictures, "clip").patches, expected)
    vision = VisionModel(model, Preprocess(16), "student")
    maps = vision.similarity(pictures, ["a red cone", "a cube"])
    cosines = F.normalize(expected, dim=-1) @ torch.from_numpy(vision.encode_text(["a red cone", "a cube"])).T
    torch.testing.assert_close(maps, cosines.transpose(1, 2).unflatten(2, (4, 3)))
    assert float(maps.abs().max()) <= 1 + 1e-6


def test_pictures_do_not_change_each_other(pictures: Tensor):
    vision = VisionModel(filled(Clip(ClipConfig(image=image(), text=text(6)), WORDS)), Preprocess(16), "clip")
    both = vision.similarity(pictures, ["a cone"])
    np.testing.assert_allclose(both[1:], vision.similarity(pictures[1:], ["a cone"]), atol=1e-6)


def test_a_model_without_words_has_no_map(pictures: Tensor):
    with pytest.raises(ValueError, match="vit knows no words"):
        VisionModel(ViT(image()), Preprocess(16), "vit").similarity(pictures, ["a cone"])
