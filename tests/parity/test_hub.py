"""Any vision model of transformers, taken from its folder, answers as transformers itself does."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from comparison import assert_equal
from torch import Tensor, nn

import synoptic
from synoptic.models.hub import HubBackbone
from synoptic.predict import VisionModel
from synoptic.types import Preprocess
from synoptic.weights.descriptions import describe
from synoptic.weights.hub import load_hub

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PROCESSOR = {"image_mean": list(MEAN), "image_std": list(STD), "size": {"height": 32, "width": 32}}

BLOCKS = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
VIT: dict[str, Any] = {**BLOCKS, "image_size": 32, "patch_size": 8}
TEXT = {**BLOCKS, "vocab_size": 50, "max_position_embeddings": 16, "bos_token_id": 48, "eos_token_id": 49}
STAGES: dict[str, Any] = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 12, 16, 20]}
WINDOWS = {"image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 4]}
SAM = {**BLOCKS, "mlp_dim": 40, "image_size": 32, "patch_size": 8, "output_channels": 12, "window_size": 3}
SAM |= {"global_attn_indexes": [1], "num_pos_feats": 6}
PROMPTS = {"hidden_size": 12, "image_size": 32, "patch_size": 8, "mask_input_channels": 4}
DECODER = {"hidden_size": 12, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 8}


def first(answer: Mapping[str, Any]) -> Tensor:
    return answer["last_hidden_state"][:, 0]


def pooled(answer: Mapping[str, Any]) -> Tensor:
    return answer["pooler_output"].flatten(1)


def patches_of(sees: Any, pixel_values: Tensor, **options: Any) -> Mapping[str, Any]:
    """As Siglip2's image processor cuts pictures, but that none is filled up."""
    batch, _, height, width = pixel_values.shape
    cells = [
        pixel_values[:, :, top : top + 8, left : left + 8].permute(0, 2, 3, 1).flatten(1)
        for top in range(0, height, 8)
        for left in range(0, width, 8)
    ]
    shapes, mask = torch.tensor([[height // 8, width // 8]] * batch), torch.ones(batch, len(cells))
    cut = torch.stack(cells, dim=1)
    return sees(pixel_values=cut, pixel_attention_mask=mask, spatial_shapes=shapes, **options)


def nothing(answer: Mapping[str, Any]) -> None:
    return None


@dataclass(frozen=True)
class Family:
    """A tiny model of transformers, and where its documentation says that its answers stand.

    Attributes:
        kind, config: its class and the values of its configuration.
        stride: pixels from one patch to the next.
        summary: of its answer.
        before: tokens before those of the patches; None where it answers with a map.
        sizes: of pictures that it takes, its own first.
        options: of its forward pass at other sizes than its own.
        vision: the part that is asked, of a model that reads more.
        maps: under what name its answer has what blocks say.
        channels_last: whether these are maps with channels last.
    """

    kind: str
    config: Mapping[str, Any]
    stride: int
    summary: Callable[[Mapping[str, Any]], Tensor | None]
    before: int | None = None
    sizes: tuple[tuple[int, int], ...] = ((32, 32), (48, 48), (24, 56))
    options: Mapping[str, Any] = field(default_factory=dict)
    vision: Callable[[Any], Any] = lambda whole: whole
    maps: str = "hidden_states"
    channels_last: bool = False


RESAMPLED = {"interpolate_pos_encoding": True}
LARGE = ((64, 64), (96, 96), (32, 128))

FAMILIES = {
    "vit": Family("ViTModel", VIT, 8, first, 1, options=RESAMPLED),
    "deit": Family("DeiTModel", VIT, 8, first, 2, options=RESAMPLED),
    "beit": Family(
        "BeitModel",
        {**VIT, "use_relative_position_bias": True, "use_mean_pooling": True},
        *(8, pooled, 1, ((32, 32), (48, 48))),
        options=RESAMPLED,
    ),
    "dinov2": Family("Dinov2Model", {**VIT, "mlp_ratio": 2}, 8, first, 1),
    "registers": Family("Dinov2WithRegistersModel", {**VIT, "mlp_ratio": 2, "num_register_tokens": 3}, 8, first, 4),
    "dinov3": Family("DINOv3ViTModel", {**VIT, "num_register_tokens": 2}, 8, first, 3),
    "dinov3 convnext": Family("DINOv3ConvNextModel", {**STAGES, "image_size": 64}, 32, first, 1, LARGE),
    "clip": Family(
        "CLIPModel",
        {"text_config": TEXT, "vision_config": VIT, "projection_dim": 20},
        *(8, pooled, 1),
        options=RESAMPLED,
        vision=lambda whole: whole.get_image_features,
    ),
    "clip vision": Family("CLIPVisionModel", VIT, 8, pooled, 1, options=RESAMPLED),
    "clip projected": Family(
        "CLIPVisionModelWithProjection",
        {**VIT, "projection_dim": 20},
        *(8, lambda answer: answer["image_embeds"], 1),
        options=RESAMPLED,
    ),
    "siglip": Family(
        "SiglipModel",
        {"text_config": TEXT, "vision_config": VIT},
        *(8, pooled, 0),
        options=RESAMPLED,
        vision=lambda whole: whole.vision_model,
    ),
    "siglip vision": Family("SiglipVisionModel", VIT, 8, pooled, 0, options=RESAMPLED),
    "siglip without head": Family(
        "SiglipVisionModel", {**VIT, "vision_use_head": False}, 8, nothing, 0, options=RESAMPLED
    ),
    "siglip2": Family("SiglipVisionModel", {**VIT, "hidden_act": "gelu_pytorch_tanh"}, 8, pooled, 0, options=RESAMPLED),
    "siglip2 naflex": Family(
        "Siglip2Model",
        {"text_config": TEXT, "vision_config": {**BLOCKS, "patch_size": 8, "num_patches": 16}},
        *(8, pooled, 0),
        vision=lambda whole: lambda **pictures: patches_of(whole.vision_model, **pictures),
    ),
    "sam": Family(
        "SamModel",
        {"vision_config": SAM, "prompt_encoder_config": PROMPTS, "mask_decoder_config": DECODER},
        *(8, nothing, None, ((32, 32),)),
        vision=lambda whole: whole.vision_encoder,
        channels_last=True,
    ),
    "sam vision": Family("SamVisionModel", SAM, 8, nothing, None, ((32, 32),), channels_last=True),
    "convnext": Family("ConvNextModel", {**STAGES, "image_size": 64}, 32, pooled, None, LARGE),
    "convnextv2": Family("ConvNextV2Model", {**STAGES, "image_size": 64}, 32, pooled, None, LARGE),
    "swin": Family(
        "SwinModel",
        {**WINDOWS, "window_size": 8},
        8,
        pooled,
        0,
        ((64, 64), (96, 96), (64, 128)),
        maps="reshaped_hidden_states",
    ),
    "swin v2": Family(
        "Swinv2Model",
        {**WINDOWS, "window_size": 4},
        8,
        pooled,
        0,
        ((64, 64), (96, 96), (40, 72)),
        maps="reshaped_hidden_states",
    ),
    "resnet": Family(
        "ResNetModel", {**STAGES, "embedding_size": 8, "layer_type": "bottleneck"}, 32, pooled, None, LARGE
    ),
    "hiera": Family(
        "HieraModel",
        {"image_size": [64, 64], "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 2, 4], "num_query_pool": 2}
        | {"masked_unit_size": [4, 4]},
        *(16, pooled, 0, ((64, 64),)),
        maps="reshaped_hidden_states",
        channels_last=True,
    ),
    "mae": Family("ViTMAEModel", VIT, 8, first, 1, options=RESAMPLED),
    "efficientnet": Family(
        "EfficientNetModel",
        {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320, "image_size": 64},
        *(32, pooled, None, LARGE),
    ),
    "radio": Family(
        "RadioModel",
        {**VIT, "max_img_size": 64, "num_cls_tokens": 3, "num_registers": 2, "mlp_ratio": 2.0},
        *(8, lambda answer: answer["summary"], 5),
    ),
}


def random_model(kind: str, config: Mapping[str, Any]) -> Any:
    """A model of transformers of random weights, large enough that every part shows."""
    torch.manual_seed(0)
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**config))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return model.eval()


def written(model: Any, folder: Path, processor: Mapping[str, Any] = PROCESSOR) -> Path:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def adapted(folder: Path) -> HubBackbone:
    """The adapter, for those models, too, that layouts of ours read."""
    file = next(folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file())
    return load_hub(folder, file, describe(folder))[0]


def pixels(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def tokens(hidden: Tensor, before: int | None) -> Tensor:
    """(B, h*w, D) row-major of tokens, or of a map with channels first."""
    return hidden.flatten(2).transpose(1, 2) if before is None else hidden[:, before:]


@torch.no_grad()
def answer(family: Family, model: Any, images: Tensor) -> Mapping[str, Any]:
    model = copy.deepcopy(model)  # a Swin of transformers remembers small pictures, and answers to others by it
    options = dict(family.options) if images.shape[-2:] != family.sizes[0] else {}
    if family.kind == "ViTMAEModel":  # which shuffles and hides patches unless it is told not to
        model.config.mask_ratio = 0.0
        options["noise"] = torch.arange(images[0, 0].numel() // family.stride**2).expand(len(images), -1)
    return family.vision(model)(pixel_values=pixels(images), output_hidden_states=True, **options)


Pair = Callable[[str], tuple[Any, HubBackbone, Path]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A family's model, ours of its folder, and the folder; of each only one."""

    @cache
    def made(name: str) -> tuple[Any, HubBackbone, Path]:
        theirs = random_model(FAMILIES[name].kind, FAMILIES[name].config)
        folder = written(theirs, tmp_path_factory.mktemp("theirs"))
        return theirs, adapted(folder), folder

    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_those_of_transformers(name: str, pair: Pair) -> None:
    family, (theirs, ours, _) = FAMILIES[name], pair(name)
    for height, width in family.sizes:
        images = torch.rand(2, 3, height, width)
        expected, grid = answer(family, theirs, images), (height // family.stride, width // family.stride)
        features = ours(images)
        summary = family.summary(expected)
        assert features.grid == grid and ours.stride == family.stride
        assert_equal(features.patches, tokens(expected["last_hidden_state"], family.before))
        assert (features.summary is None) == (summary is None)
        if summary is not None and features.summary is not None:
            assert_equal(features.summary, summary)
            assert ours.summary_width == summary.shape[1]
        assert ours.width == features.patches.shape[2] and features.patches.shape[1] == grid[0] * grid[1]


@pytest.mark.parametrize("name", [name for name in FAMILIES if len(FAMILIES[name].sizes) > 1])
def test_what_was_seen_before_changes_nothing(name: str, pair: Pair) -> None:
    family, ours = FAMILIES[name], copy.deepcopy(pair(name)[1])
    large = torch.rand(1, 3, 2 * family.sizes[0][0], 2 * family.sizes[0][1])
    with torch.no_grad():
        expected = ours(large)
        ours(large[..., : family.sizes[0][0], : family.sizes[0][1]])
        assert torch.equal(ours(large).patches, expected.patches)


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_those_of_transformers(name: str, pair: Pair) -> None:
    family, (theirs, ours, _) = FAMILIES[name], pair(name)
    height, width = family.sizes[-1]
    images = torch.rand(2, 3, height, width)
    hidden = answer(family, theirs, images)[family.maps][1:]
    assert ours.depth == len(hidden) > 1
    features = ours(images, layers=range(-ours.depth, 0))
    for layer, expected in zip(features.layers, hidden, strict=True):
        if expected.ndim == 3:
            assert_equal(layer.patches, tokens(expected, family.before))
            if layer.summary is not None:
                assert_equal(layer.summary, expected[:, 0])
        else:
            maps = expected.permute(0, 3, 1, 2) if family.channels_last else expected
            assert_equal(layer.patches, tokens(maps, None))
        assert layer.patches.shape[1] == layer.grid[0] * layer.grid[1]
        assert layer.grid[0] * width == layer.grid[1] * height
    with pytest.raises(ValueError, match=f"there is no layer {ours.depth}; this network has {ours.depth}, 0 to"):
        ours(images, layers=(ours.depth,))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_patch_says_what_is_where_it_is(name: str, pair: Pair) -> None:
    """Shapes cannot tell whether rows and columns are swapped, or tokens of another sort are taken for patches."""
    family, ours = FAMILIES[name], copy.deepcopy(pair(name)[1])
    for parameter in ours.parameters():
        parameter.data.mul_(0.3)  # so that a patch is mostly made of what lies under it
    height, width = family.sizes[-1]
    images = torch.rand(1, 3, height, width, requires_grad=True)
    features = ours(images)
    rows, columns = features.grid
    place = (rows - 1) * columns + 1 if columns > 1 else rows - 1
    row, column = divmod(place, columns)
    (gradient,) = torch.autograd.grad(features.patches[0, place].square().sum(), images)
    blame = gradient.abs().sum((0, 1)).unflatten(1, (columns, -1)).unflatten(0, (rows, -1)).sum((1, 3))
    found = divmod(int(blame.argmax()), columns)
    near = 0 if family.before is not None else 1  # convolutions look around them
    assert abs(found[0] - row) <= near and abs(found[1] - column) <= near


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_kept_in_a_folder_of_ours(name: str, pair: Pair, tmp_path: Path) -> None:
    family, (_, model, _) = FAMILIES[name], pair(name)
    preprocess = Preprocess(model.size, "squash", share=0.875, interpolation="bilinear")
    VisionModel(model, preprocess, name).save(tmp_path / "ours")
    again = synoptic.load(tmp_path / "ours", "cpu")
    images = torch.rand(2, 3, *family.sizes[-1])
    with torch.no_grad():
        expected = model(images, layers=(0,))
    features = again(images, layers=(0,))
    kept = again.model.state_dict()
    assert all(torch.equal(tensor, kept[key]) for key, tensor in model.state_dict().items())
    assert_equal(features.patches, expected.patches)  # tensors elsewhere in memory may be summed in another order
    assert_equal(features.layers[0].patches, expected.layers[0].patches)
    if expected.summary is not None:
        assert_equal(features.summary, expected.summary)
    assert again.preprocess == preprocess and again.model.config == model.config


FULL_SIZE = {
    "dinov3": replace(FAMILIES["dinov3"], config={"num_register_tokens": 4}, stride=16, before=5),
    "convnext": replace(FAMILIES["convnext"], config={}),
    "swin": replace(FAMILIES["swin"], config={}, stride=32),
    "resnet": replace(FAMILIES["resnet"], config={}),
    "beit": replace(FAMILIES["beit"], config={}, stride=16),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_models_answer_as_transformers(name: str, tmp_path: Path) -> None:
    family = FULL_SIZE[name]
    torch.manual_seed(0)
    model_class = getattr(transformers, family.kind)
    theirs = model_class(model_class.config_class(**family.config)).eval()
    ours = adapted(written(theirs, tmp_path))
    for size in ((224, 224), (320, 320), *([] if name == "beit" else [(224, 384)])):
        images = torch.rand(1, 3, *size)
        expected = answer(replace(family, sizes=((224, 224),)), theirs, images)
        features = ours(images)
        patches = tokens(expected["last_hidden_state"], family.before)
        for mine, reference in ((features.patches, patches), (features.summary, family.summary(expected))):
            torch.testing.assert_close(mine, reference, rtol=0, atol=1e-4 * reference.abs().max().item())
