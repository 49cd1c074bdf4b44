"""The towers of CLIP and SigLIP begin with the deviations that their makers' code gives them."""

from __future__ import annotations

import math

import pytest
import torch

from synoptic.models.clip import TEXT_OF, Clip, clip_config, picture_encoder
from synoptic.models.text import TextConfig

WIDTH = 384


def model_of(towers: str) -> Clip:
    torch.manual_seed(0)
    encoder = picture_encoder("vit_s16", towers, 96, WIDTH)
    text = TextConfig(
        vocabulary=1000, context=64, end=999, width=256, depth=2, heads=4, embedding=WIDTH, **TEXT_OF[towers]
    )
    return Clip(clip_config(encoder, text, towers == "siglip"), None)


def test_clips_picture_encoder() -> None:
    image = model_of("clip").image
    for tokens in (image.summary_token, image.positions.table):
        assert tokens.std().item() == pytest.approx(WIDTH**-0.5, rel=0.1)
    block = image.blocks[0]
    assert block.attn.qkv.weight.abs().max().item() == pytest.approx(math.sqrt(6 / (4 * WIDTH)), rel=1e-3)
    for linear in (block.attn.proj, block.mlp.fc1, block.mlp.fc2):  # PyTorch's own: even, within 1 / sqrt(inputs)
        assert linear.weight.abs().max().item() == pytest.approx(linear.in_features**-0.5, rel=1e-3)
    assert block.mlp.fc1.bias.abs().max() > 0
    assert not block.attn.qkv.bias.any() and not block.attn.proj.bias.any()


def test_siglips_towers() -> None:
    model = model_of("siglip")
    assert model.image.positions.table.std().item() == pytest.approx(WIDTH**-0.5, rel=0.1)
    assert model.text.positions.std().item() == pytest.approx(256**-0.5, rel=0.1)
    assert model.text.token_embedding.weight.std().item() == pytest.approx(256**-0.5, rel=0.1)
    for width, part in ((WIDTH, model.image.blocks[0]), (256, model.text.blocks[0]), (WIDTH, model.image.pool)):
        for matrix in (*part.attn.qkv.weight.chunk(3), part.attn.proj.weight):
            assert matrix.abs().max().item() == pytest.approx(math.sqrt(6 / (2 * width)), rel=1e-2)
        assert part.mlp.fc1.weight.abs().max().item() == pytest.approx(math.sqrt(6 / (5 * width)), rel=1e-2)
        assert 0 < part.mlp.fc1.bias.abs().max() < 1e-5
    assert model.image.pool.probe.abs().max().item() == pytest.approx(math.sqrt(6 / (1 + WIDTH)), rel=2e-2)
    for layer in (model.text.projection, model.image.patch_embed):
        inputs = layer.weight[0].numel()
        assert layer.weight.std().item() == pytest.approx(inputs**-0.5, rel=0.05)
        assert not layer.bias.any()
    assert (model.logit_scale.exp().item(), model.logit_bias.item()) == pytest.approx((10.0, -10.0))
