"""Grounding DINO as a network: where gradients go, half precision, and backbones of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_detectors import SWIN, TINY, small_network

from synoptic.config import from_dict, to_dict
from synoptic.models.grounding_dino import GroundingDino, GroundingDinoConfig
from synoptic.models.plain_resnet import PlainResNet, PlainResNetConfig
from synoptic.models.resnet import ResNet, ResNetConfig
from synoptic.models.sam import Sam, SamConfig
from synoptic.models.swin import Swin
from synoptic.models.vit import ViT, vit_config

PROMPTS = ([2, 6, 7, 4, 9, 10, 4, 3], [2, 8, 4, 3])  # [CLS] a cat . red car . [SEP], and [CLS] dog . [SEP]


def pictures() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.rand(1, 3, 40, 56), torch.rand(1, 3, 24, 32)]


@pytest.mark.parametrize("shared", [True, False])
def test_boxes_look_forward_twice(shared: bool) -> None:
    """The box of a layer teaches its own head and that of the layer before, and no layer further back."""
    model = small_network(shared_heads=shared, decoder_depth=3)
    answer = model(pictures(), PROMPTS, every=True)
    heads: Any = [list(head.parameters()) for head in model.decoder.boxes]
    last = sum(boxes.sum() for boxes in answer.layers[2].boxes)
    found = [torch.autograd.grad(last, head, retain_graph=True, allow_unused=True) for head in heads]
    taught = [all(each is not None and bool(each.any()) for each in head) for head in found]
    assert taught == ([True] if shared else [False, True, True])


def test_every_weight_is_taught() -> None:
    model = small_network()
    answer = model(pictures(), PROMPTS, every=True)
    founds = (*answer.layers, answer.selected)
    sum(each.square().sum() for found in founds for each in (*found.boxes, *found.logits)).backward()  # type: ignore[union-attr]
    silent = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert silent == set()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_answers_alike(dtype: torch.dtype) -> None:
    whole = small_network()
    half = small_network().to(dtype)
    with torch.no_grad():
        wanted, found = whole(pictures(), PROMPTS), half(pictures(), PROMPTS)
    for one, other in zip(found.last.logits, wanted.last.logits, strict=True):
        assert one.dtype == dtype
        assert one.isfinite().all()
        surest = [each.float().sigmoid().amax(1).sort().values for each in (one, other)]
        assert (surest[0] - surest[1]).abs().mean() < 0.1
    for boxes in found.last.boxes:
        assert boxes.dtype == torch.float32  # a half cannot say where a pixel of a thousand lies
        assert boxes.isfinite().all()


def test_autocast_keeps_what_fusion_adds() -> None:
    """Which is a ten-thousandth of a token at first, and less than bfloat16 tells apart."""
    torch.manual_seed(0)
    fusion = small_network().fusions[0]
    torch.nn.init.constant_(fusion.image_scale, 1e-4)
    image, text = torch.randn(50, 64), torch.randn(6, 64)
    whole, _ = fusion(image, text, (50,), (6,))
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = fusion(image, text, (50,), (6,))
    added = whole - fusion.image_norm(image)
    assert (half - whole).abs().max() < 0.1 * added.abs().max()


def test_a_listener_hears_a_layer_whose_activation_is_fused() -> None:
    model, heard = small_network(), []
    layer: Any = model.image_layers[0]
    layer.mlp.fc1.register_forward_hook(lambda *given: heard.append(1))
    with torch.no_grad():
        model(pictures(), PROMPTS)
    assert heard


SAM: Any = {"width": 16, "depth": 2, "heads": 2, "image_size": 64, "window": 2, "global_blocks": (1,), "embedding": 24}
SEERS = {
    "vit": lambda: ViT(vit_config("vit_nano8")),
    "sam": lambda: Sam(
        SamConfig(width=16, depth=2, heads=2, image_size=64, window=2, global_blocks=(1,), embedding=24)
    ),
    "resnet": lambda: ResNet(ResNetConfig(blocks=(1, 1, 1, 1), width=8, heads=4, embedding=16, image_size=64)),
    "plain_resnet": lambda: PlainResNet(PlainResNetConfig(blocks=(1, 1, 1, 1), width=8)),
    "swin": lambda: Swin(SWIN),
}


@pytest.mark.parametrize("name", SEERS)
def test_it_sees_through_any_encoder(name: str) -> None:
    """With the encoder's own weights; a batch of sizes that patches do not tile equals its pictures."""
    torch.manual_seed(0)
    encoder = SEERS[name]().eval()
    sizes = {key: value for key, value in TINY.items() if key != "backbone"}
    model = GroundingDino.around(encoder, **{**sizes, "levels": 3}).eval()
    assert all(torch.equal(tensor, encoder.state_dict()[key]) for key, tensor in model.backbone.state_dict().items())
    with torch.no_grad():
        together = model(pictures(), PROMPTS).last
        for place, (image, prompt) in enumerate(zip(pictures(), PROMPTS, strict=True)):
            alone = model([image], [prompt]).last
            torch.testing.assert_close(together.logits[place], alone.logits[0], atol=1e-4, rtol=0)
    assert from_dict(GroundingDinoConfig, to_dict(model.config), "") == model.config


def test_a_student_s_backbone_is_one() -> None:
    from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig

    adaptor = AdaptorConfig(patches=8, summary=8, hidden=8)
    student = Student(StudentConfig(backbone=vit_config("vit_nano8"), adaptors={"one": adaptor}), {})
    with pytest.raises(ValueError, match="cannot see through a Student"):
        GroundingDino.around(student)
    sizes = {key: value for key, value in TINY.items() if key != "backbone"}
    model = GroundingDino.around(student.backbone, **sizes)
    assert torch.equal(next(model.backbone.parameters()), next(student.backbone.parameters()))
