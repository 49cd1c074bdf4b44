"""Grounding DINO as a network: where gradients go, half precision, and backbones of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_detectors import SWIN, TINY, small_network

from synoptic.config import from_dict, to_dict
from synoptic.models.bert import _groups
from synoptic.models.grounding_dino import GroundingDino, GroundingDinoConfig
from synoptic.models.grounding_layers import Fusion
from synoptic.models.plain_resnet import PlainResNet, PlainResNetConfig
from synoptic.models.reference_boxes import inverse_sigmoid
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


def test_boxes_of_the_decoder_do_not_teach_the_choice_of_places() -> None:
    model = small_network()
    answer = model(pictures(), PROMPTS, every=True)
    boxes = sum(each.sum() for found in answer.layers for each in found.boxes)
    found = torch.autograd.grad(boxes, list(model.select.parameters()), allow_unused=True)  # type: ignore[arg-type]
    assert all(each is None for each in found)


def test_boxes_are_kept_from_the_edge_between_layers_and_otherwise_where_they_are_told() -> None:
    """Two layers, written out, with constants so large that no box is free of them."""
    model, heard = small_network(refine_eps=0.3, head_eps=0.1), []
    for layer in model.decoder.layers:
        layer.register_forward_hook(lambda _, given, queries: heard.append((given[2], queries)))
    with torch.no_grad():
        answer = model(pictures()[:1], PROMPTS[:1], every=True)
        head: Any = model.decoder.boxes[0]
        (first, queries), (second, last) = heard
        torch.testing.assert_close(second, (head(queries) + inverse_sigmoid(first, 0.3)).sigmoid())
        for references, states, found in ((first, queries, answer.layers[0]), (second, last, answer.layers[1])):
            told = (head(model.decoder.norm(states)) + inverse_sigmoid(references, 0.1)).sigmoid()
            torch.testing.assert_close(found.boxes[0], told)


def test_pictures_that_a_layer_leaves_unfused_are_made_up_for() -> None:
    torch.manual_seed(0)
    fusion = Fusion(64, 2, 16, drop_path=0.25, eps=1e-5)
    torch.nn.init.ones_(fusion.image_scale)
    torch.nn.init.ones_(fusion.text_scale)
    image, text = torch.randn(6, 64), torch.randn(4, 64)
    with torch.no_grad():
        whole = fusion.eval()(image, text, (6,), (4,))
        trained = [fusion.train()(image, text, (6,), (4,)) for _ in range(400)]
        for place, given in enumerate((fusion.image_norm(image), fusion.text_norm(text))):
            added = whole[place] - given
            shares = torch.stack([((each[place] - given) / added).median() for each in trained])
            assert set(shares.mul(3).round().tolist()) == {0, 4}  # nothing, or 1 / 0.75 of it
            assert 0.65 < (shares > 0).float().mean() < 0.85


def test_matrices_begin_as_the_authors_do() -> None:
    """Xavier's, but for boxes, which begin where they are."""
    torch.manual_seed(0)
    model = GroundingDino(GroundingDinoConfig(**TINY))
    layer: Any = model.decoder.layers[0]
    places: Any = (layer.mlp.fc1, layer.attn.proj, layer.text_attn.qkv, model.select.enc_output)
    for each in (*places, model.decoder.ref_point_head[0]):
        bound = (6 / sum(each.weight.shape)) ** 0.5
        assert 0.95 * bound < each.weight.abs().max() <= bound
    assert not model.select.box[-1].weight.any()  # type: ignore[index]


def test_phrases_of_about_one_length_are_read_together() -> None:
    lengths = [1, 3, 200, 4, 1, *[3] * 300, 9]
    groups = _groups(lengths)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    assert [len(group) for group in groups] == [304 + 1, 1]
    assert [max(len(group) for group in _groups([count] * 5000)) for count in (4, 64)] == [1024, 64]


@pytest.mark.parametrize(
    ("images", "prompts", "sizes", "told"),
    [
        (pictures(), PROMPTS[:1], None, "1 prompts were given for 2 pictures"),
        (pictures(), PROMPTS, [(8, 8)], "1 sizes were given for 2 pictures"),
        ([], PROMPTS, None, "0 sizes were given for 0 pictures"),
        (pictures(), [], None, "a prompt is empty"),
        (pictures(), [PROMPTS[0], []], None, "a prompt is empty"),
    ],
)
def test_what_does_not_match_is_told(images: Any, prompts: Any, sizes: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        small_network()(images, prompts, sizes)


def test_an_unknown_way_to_read_points_is_told() -> None:
    with pytest.raises(ValueError, match="'fast'; ways are auto, grid_sample"):
        small_network().look_by("fast")  # type: ignore[arg-type]


def test_every_weight_is_taught() -> None:
    model = small_network()
    answer = model(pictures(), PROMPTS, every=True)
    founds = (*answer.layers, answer.selected)
    sum(each.square().sum() for found in founds for each in (*found.boxes, *found.logits)).backward()  # type: ignore[union-attr]
    silent = {name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()}
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
