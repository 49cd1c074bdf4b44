"""The layouts of weights of other makers: how each is told, named as ours, read as our configuration, and written.

To add a layout: a table of its keys in `convert.py` or beside it, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from synoptic.config import to_dict
from synoptic.models.vit import IMAGENET_MEAN, IMAGENET_STD
from synoptic.weights import (
    clip_tables,
    convert,
    grounding,
    grounding_tables,
    headers,
    radio,
    radio_tables,
    resnet_tables,
    sam_tables,
)
from synoptic.weights.convert import Table
from synoptic.weights.fields import Fields, clip, is_plain, plain_resnet, radio_student, radio_vit, sam, siglip, vit
from synoptic.weights.radio import Tidy
from synoptic.weights.reading import State

# Fields that decide nothing once a model is trained, and those that are sizes of its weights, which tell them.
_SETTLED = ("drop_path", "drop_path_uniform", "position_dropout", "hidden", "image_size")


@dataclass(frozen=True)
class Format:
    """A layout of weights.

    Attributes:
        name: as people call its models.
        marks: keys by which it is told from the others; the first format of `FORMATS` holds that has all of its marks.
            One that ends in a dot is what keys begin with.
        table: names its tensors as ours.
        fields: (our tensors, values of config.json where there is one, options) -> our configuration's fields.
        model_type: what config.json says in a folder of Hugging Face, in place of the marks.
        kind: of our models, a key of `folder.KINDS`.
        reads: whether a config.json of that model_type is of a model that ours is; transformers makes the others.
        always: fields of our configuration (dotted where nested) in which its makers' code has no choice: a model that
            differs there is not written in it.
        header: our configuration -> what config.json says of it; None for what has no header, or is not written.
        tidy: (their tensors, values of config.json and arguments of a training, options) -> both, as the table and
            `fields` know them.
        finish: (tensors as the table names them, our configuration) -> their tensors, with all that they hold beside.
        unsaid: options that a file leaves open -> where our configuration has them.
        options: what may be said of its files, beside what may be said of any of its kind.
        normalizes: whether their network normalises pictures itself, so that their preprocessing does not.
    """

    name: str
    marks: tuple[str, ...]
    table: Table
    fields: Fields
    model_type: str | None = None
    kind: str = "vit"
    reads: Callable[[Mapping[str, Any]], bool] = lambda header: True
    always: Mapping[str, Any] = field(default_factory=dict)
    header: Callable[[Any], dict[str, Any]] | None = None
    tidy: Tidy = lambda state, header, options: (state, header)
    finish: Callable[[State, Any], State] = lambda state, config: state
    unsaid: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    normalizes: bool = False

    def lacking(self, state: State) -> list[str]:
        """Its marks that tensors of theirs do not have."""
        return [mark for mark in self.marks if mark not in state and not (mark[-1] == "." and _begins(state, mark))]

    def unlike(self, config: Any) -> dict[str, tuple[Any, Any]]:
        """Fields in which a configuration differs from what its makers' code always has: name -> (its, theirs)."""
        said = decisive(config)
        return {name: (said[name], value) for name, value in self.always.items() if said.get(name, value) != value}

    @property
    def maker(self) -> Literal["official", "huggingface"]:
        """Whose layout it is: that of the models' makers, or of transformers."""
        return "official" if self.model_type is None else "huggingface"


def _begins(state: State, mark: str) -> bool:
    return any(key.startswith(mark) for key in state)


_PATCHES = {"stem": "patch", "position": "learned", "pre_norm": False, "final_norm": True, "patch_bias": True}
_VIT = {**_PATCHES, "summary_tokens": 1, "pool": "tokens"}
_DINO = {**_VIT, "registers": 0, "feed_forward": "mlp", "layer_scale": None}
_CLIP = {
    **{f"image.{name}": value for name, value in {**_DINO, "pre_norm": True, "patch_bias": False}.items()},
    **{"image.qkv_bias": True, "image.mask_token": False, "text.causal": True, "text.read_at": "end"},
    **{"text.projection_bias": False, "bias": False},
}
_SIGLIP = {
    **{f"image.{name}": value for name, value in {**_DINO, "summary_tokens": 0, "pool": "attention"}.items()},
    **{"image.qkv_bias": True, "image.mask_token": False, "text.causal": False, "text.read_at": "last"},
    **{"text.projection_bias": True, "bias": True},
}
_RESNET = {"text.causal": True, "text.read_at": "end", "text.projection_bias": False, "bias": False}
_CPE = {"stem": "patch", "position": "cpe", "pre_norm": False, "pool": "tokens", "norm_eps": 1e-6, "activation": "gelu"}
_TIMM = {**_CPE, "qkv_bias": True, "patch_bias": False, "mask_token": False}
_INNER = {**_CPE, "patch_bias": True, "mask_token": True, "layer_scale": 1.0, "final_norm": True}
_HEADS = {"heads": "heads"}
_DETECTOR_HEADS = {"heads": "heads", "text_heads": "text.heads"}
_DETECTOR = {"norm_eps": 1e-5, "temperature": 20.0, "context": 256, "backbone.norm_eps": 1e-5, "text.norm_eps": 1e-12}
_TOWERS = {"heads": "image.heads", "text_heads": "text.heads"}


def _openai(state: State, config: Any) -> State:
    """With the numbers that OpenAI's state dicts hold beside the weights.

    Raises:
        ValueError: a tower's feed-forward layers are not four times as wide as it, as OpenAI's code has them.
    """
    for tower in (config.image, config.text):
        if tower is not None and tower.hidden not in (None, 4 * tower.width):
            raise ValueError(f"hidden={tower.hidden} is not four times width={tower.width}")
    sizes = {"input_resolution": config.image_size, "context_length": config.text.context}
    sizes["vocab_size"] = config.text.vocabulary
    return state | {name: torch.tensor(size) for name, size in sizes.items()}


_RADIO_OPTIONS = ("heads", "align_corners", "summary_tokens", "size", "window")


def _radio(name: str, theirs: str, table: Table, adaptors: bool) -> Format:
    """A RADIO of its makers: a file, or a folder, which is read and not written, since it would come without its code.

    Args:
        theirs: what the keys of the trunk begin with.
        adaptors: whether it has heads.
    """
    hub, inside = theirs.startswith(radio_tables.HUB), _INNER if theirs.endswith("inner.") else _TIMM
    heads = f"{radio_tables.HUB}adaptors." if hub else "_feature_projections."
    where = "backbone." if adaptors else ""
    return Format(
        name,
        (f"{theirs}patch_generator.pos_embed", *([heads] if adaptors else [])),
        table,
        radio_student if adaptors else radio_vit(),
        "radio" if hub else None,
        "student" if adaptors else "vit",
        reads=radio.is_packaged,
        always={f"{where}{key}": value for key, value in inside.items()},
        header=None if hub else radio.arguments,
        tidy=radio.tidied(theirs, adaptors),
        finish=radio.finished(theirs),
        unsaid={option: f"{where}{option}" for option in ("heads", "align_corners")},
        options=_RADIO_OPTIONS,
        normalizes=True,
    )


# Positions at other sizes than the trained one: the released DINO and DINOv2 resample by a factor that is 0.1 cells too
# large, DINOv2 with registers to the exact size and low-passed. transformers takes the exact size in all its models, so
# that those without registers differ from the release that they were converted from. Here a file of the makers answers
# as their code does, and a folder of Hugging Face as transformers does. The makers of CLIP and SigLIP have no rule, as
# their code sees the trained size alone; here their files answer at others as transformers does.
# Of RADIO, transformers resizes positions between the centres of cells, and the makers' code does so since 2025; but
# the releases before c-radio_v3-l were trained and judged with those between corners, and files answer so here.
FORMATS = (
    Format(
        "DINOv2 with registers",
        ("cls_token", "pos_embed", "register_tokens"),
        convert.DINOV2_VIT,
        vit(antialias=True),
        always={**_VIT, "mask_token": True, "layer_scale": 1.0},
        unsaid=_HEADS,
    ),
    Format(
        "DINOv2",
        ("cls_token", "pos_embed", "mask_token"),
        convert.DINOV2_VIT,
        vit(position_offset=0.1),
        always={**_VIT, "registers": 0, "mask_token": True, "layer_scale": 1.0},
        unsaid=_HEADS,
    ),
    Format(  # its teachers have no token for what is hidden, and are told as DINO, whose answers are the same
        "iBOT",
        ("cls_token", "pos_embed", "masked_embed"),
        convert.IBOT_VIT,
        vit(position_offset=0.1),
        always={**_DINO, "mask_token": True},
        unsaid=_HEADS,
    ),
    Format(
        "DINO",
        ("cls_token", "pos_embed", "blocks.0.attn.qkv.weight"),
        convert.DINO_VIT,
        vit(position_offset=0.1),
        always=_DINO,
        unsaid=_HEADS,
    ),
    Format(
        "DINO with a ResNet",
        ("conv1.weight", "layer1.0.bn3.weight", "layer4.0.downsample.1.weight"),
        resnet_tables.TORCHVISION_RESNET,
        plain_resnet,
        kind="plain_resnet",
    ),
    Format(
        "Dinov2WithRegistersModel of transformers",
        ("embeddings.position_embeddings", "embeddings.register_tokens"),
        convert.HUGGINGFACE_DINOV2,
        vit(antialias=True),
        "dinov2_with_registers",
        always={**_VIT, "mask_token": True, "layer_scale": 1.0},
        header=headers.dinov2_with_registers,
    ),
    Format(
        "Dinov2Model of transformers",
        ("embeddings.position_embeddings", "encoder.layer.0.layer_scale1.lambda1"),
        convert.HUGGINGFACE_DINOV2,
        vit(),
        "dinov2",
        always={**_VIT, "registers": 0, "layer_scale": 1.0},
        header=headers.dinov2,
    ),
    Format(
        "ViTModel of transformers",
        ("embeddings.position_embeddings", "encoder.layer.0.layernorm_before.weight"),
        convert.HUGGINGFACE_VIT,
        vit(norm_eps=1e-12),
        "vit",
        always=_DINO,
        header=headers.vit,
    ),
    Format(
        "ResNetModel of transformers",
        ("embedder.embedder.convolution.weight", "encoder.stages.0.layers.0.layer.2.convolution.weight"),
        resnet_tables.HUGGINGFACE_RESNET,
        plain_resnet,
        "resnet",
        "plain_resnet",
        reads=is_plain,
        header=headers.plain_resnet,
    ),
    Format(
        "CLIP with a ViT, of OpenAI",
        ("input_resolution", "visual.class_embedding"),
        clip_tables.CLIP_VIT,
        clip(activation="quick_gelu"),
        kind="clip",
        always={**_CLIP, "resnet": None, "text.activation": "quick_gelu"},
        finish=_openai,
        unsaid=_TOWERS,
    ),
    Format(
        "CLIP with a ResNet, of OpenAI",
        ("input_resolution", "visual.attnpool.positional_embedding"),
        clip_tables.CLIP_RESNET,
        clip(activation="quick_gelu"),
        kind="clip",
        always={**_RESNET, "image": None, "text.activation": "quick_gelu"},
        finish=_openai,
        unsaid={"text_heads": "text.heads"},
    ),
    Format(
        "CLIP with a ViT",
        ("visual.class_embedding", "text_projection"),
        clip_tables.CLIP_VIT,
        clip(),
        kind="clip",
        always={**_CLIP, "resnet": None},
        unsaid={**_TOWERS, "activation": "text.activation"},
    ),
    Format(
        "CLIP with a ResNet",
        ("visual.attnpool.positional_embedding", "text_projection"),
        clip_tables.CLIP_RESNET,
        clip(),
        kind="clip",
        always={**_RESNET, "image": None},
        unsaid={"text_heads": "text.heads", "activation": "text.activation"},
    ),
    Format(
        "SigLIP of open_clip",
        ("visual.trunk.attn_pool.latent", "text.text_projection.weight"),
        clip_tables.OPEN_CLIP_SIGLIP,
        siglip(activation="gelu"),
        kind="clip",
        always={**_SIGLIP, "resnet": None},
        unsaid=_TOWERS,
    ),
    Format(
        "CLIPModel of transformers",
        ("vision_model.embeddings.class_embedding", "text_projection.weight"),
        clip_tables.HUGGINGFACE_CLIP,
        clip(),
        "clip",
        "clip",
        always={**_CLIP, "resnet": None},
        header=headers.clip,
    ),
    Format(
        "SiglipModel of transformers",
        ("vision_model.head.probe", "text_model.head.weight"),
        clip_tables.HUGGINGFACE_SIGLIP,
        siglip(activation="gelu_tanh"),
        "siglip",
        "clip",
        always={**_SIGLIP, "resnet": None},
        header=headers.siglip,
    ),
    Format(
        "SAM",
        ("image_encoder.pos_embed", "image_encoder.neck.0.weight"),
        sam_tables.SAM,
        sam(decoder_eps=1e-5),
        kind="sam",
        always={"mean": [*IMAGENET_MEAN], "std": [*IMAGENET_STD], "norm_eps": 1e-6, "decoder.norm_eps": 1e-5},
        unsaid={"decoder_heads": "decoder.heads"},
    ),
    Format(
        "SamModel of transformers",
        ("vision_encoder.pos_embed", "shared_image_embedding.positional_embedding"),
        sam_tables.HUGGINGFACE_SAM,
        sam(decoder_eps=1e-6),
        "sam",
        "sam",
        header=sam_tables.header,
    ),
    Format(
        "SamVisionModel of transformers",
        ("vision_encoder.pos_embed", "vision_encoder.neck.conv1.weight"),
        sam_tables.HUGGINGFACE_SAM,
        sam(decoder_eps=1e-6),
        "sam_vision_model",
        "sam",
        header=sam_tables.header,
    ),
    _radio("RADIO with the heads of teachers", radio_tables.TRUNK, radio_tables.RADIO, True),
    _radio("RADIO", radio_tables.TRUNK, radio_tables.RADIO_TRUNK, False),
    _radio("RADIO on a ViT of DINOv2 with the heads of teachers", radio_tables.INNER, radio_tables.RADIO_INNER, True),
    _radio("RADIO on a ViT of DINOv2", radio_tables.INNER, radio_tables.RADIO_INNER_TRUNK, False),
    _radio("RADIOModel of NVIDIA with adaptors", f"{radio_tables.HUB}model.", radio_tables.HUB_RADIO, True),
    _radio("RADIOModel of NVIDIA", f"{radio_tables.HUB}model.", radio_tables.HUB_RADIO_TRUNK, False),
    _radio(
        "RADIOModel of NVIDIA on a ViT of DINOv2 with adaptors",
        f"{radio_tables.HUB}model.inner.",
        radio_tables.HUB_RADIO_INNER,
        True,
    ),
    _radio(
        "RADIOModel of NVIDIA on a ViT of DINOv2",
        f"{radio_tables.HUB}model.inner.",
        radio_tables.HUB_RADIO_INNER_TRUNK,
        False,
    ),
    Format(
        "RadioModel of transformers",
        (f"{radio_tables.HUB}model.patch_generator.pos_embed", f"{radio_tables.HUB}summary_idxs"),
        radio_tables.HUGGINGFACE_RADIO,
        radio_vit(align_corners=False),
        "radio",
        reads=lambda header: not radio.is_packaged(header),
        always={"position": "cpe", "stem": "patch", "pre_norm": False, "final_norm": False, "pool": "tokens"},
        header=radio.header,
        tidy=radio.tidied_of_transformers,
        finish=radio.finished(f"{radio_tables.HUB}model."),
        options=("window", "size"),
        normalizes=True,
    ),
    Format(
        "Grounding DINO",
        ("transformer.level_embed", "feat_map.weight", "backbone.0.patch_embed.proj.weight"),
        grounding_tables.GROUNDING_DINO,
        grounding.grounding_dino(1e-3, 1e-3),
        kind="grounding_dino",
        always={**_DETECTOR, "refine_eps": 1e-3, "head_eps": 1e-3, "scaled": False},
        tidy=grounding.once,
        finish=grounding.twice,
        unsaid=_DETECTOR_HEADS,
    ),
    Format(
        "MM-Grounding-DINO",
        ("level_embed", "text_feat_map.weight", "neck.convs.0.conv.weight"),
        grounding_tables.MM_GROUNDING_DINO,
        grounding.grounding_dino(1e-3, 1e-5),
        kind="grounding_dino",
        always={**_DETECTOR, "refine_eps": 1e-3, "head_eps": 1e-5, "scaled": True, "shared_heads": False},
        tidy=grounding.of_mmdetection,
        finish=grounding.to_mmdetection,
        unsaid=_DETECTOR_HEADS,
    ),
    Format(
        "GroundingDinoForObjectDetection of transformers",
        ("model.query_position_embeddings.weight", "model.text_projection.weight"),
        grounding_tables.HUGGINGFACE_GROUNDING_DINO,
        grounding.grounding_dino(1e-5, 1e-5),
        "grounding-dino",
        "grounding_dino",
        always={"refine_eps": 1e-5, "head_eps": 1e-5, "scaled": False},
        header=grounding.header("grounding-dino", "GroundingDinoForObjectDetection"),
        tidy=grounding.once,
    ),
    Format(
        "MMGroundingDinoForObjectDetection of transformers",
        ("model.query_position_embeddings.weight", "model.encoder_output_class_embed.bias"),
        grounding_tables.HUGGINGFACE_GROUNDING_DINO,
        grounding.grounding_dino(1e-5, 1e-5),
        "mm-grounding-dino",
        "grounding_dino",
        always={"refine_eps": 1e-5, "head_eps": 1e-5, "scaled": True},
        header=grounding.header("mm-grounding-dino", "MMGroundingDinoForObjectDetection"),
        tidy=grounding.once,
    ),
)


def decisive(config: Any) -> dict[str, Any]:
    """The fields of a configuration that decide a trained model's function, nested ones with dotted names."""

    def walk(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if name == "summary_head" and values.get("summary") is None:
                continue  # of which there is none
            if isinstance(value, Mapping):
                yield prefix + name, "given"
                yield from walk(value, f"{prefix}{name}.")
            elif name == "layer_scale" and value is not None:
                yield prefix + name, 1.0  # where it began no longer matters
            elif name not in _SETTLED:
                yield prefix + name, value

    return dict(walk(to_dict(config), ""))
