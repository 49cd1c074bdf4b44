"""What is this file? Layouts of other makers, told by their keys, shapes and config.json, and read as our models.

To add a layout: a table of its keys in `convert.py`, and a line in `FORMATS`. The same line says how it is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from synoptic.config import from_dict, load_json, nearest
from synoptic.models.sam import SamConfig
from synoptic.models.vit import IMAGENET_MEAN, IMAGENET_STD
from synoptic.types import Preprocess
from synoptic.weights import clip_tables, convert, headers, heads, resnet_tables, sam_tables
from synoptic.weights.convert import Table, load_state, misfits, refuse, sorted_out
from synoptic.weights.fields import Fields, clip, is_plain, plain_resnet, sam, siglip, vit
from synoptic.weights.folder import CONFIG, FORMAT, KINDS, WEIGHTS, Record, shapes_alone
from synoptic.weights.hub import load_hub
from synoptic.weights.options import LoadOptions
from synoptic.weights.processors import PROCESSOR, preprocessing
from synoptic.weights.reading import INDEX, State, owned, read_parts
from synoptic.weights.words import find_tokenizer

# What the weights are called in a folder of Hugging Face, the best first.
FILES = (WEIGHTS, WEIGHTS + INDEX, "pytorch_model.bin", f"pytorch_model.bin{INDEX}")

# Dictionaries of a file in which a network may lie, the best first.
_PARTS = ("", "teacher", "state_dict", "model", "student")

# What wrappers of modules (several devices, shards, recomputation, compilation) put into keys.
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
_CHUNK = re.compile(r"(?<=\bblocks\.)\d+\.(?=\d+\.)")  # DINOv2's training groups blocks and counts them through


@dataclass(frozen=True)
class Format:
    """A layout of weights.

    Attributes:
        name: as people call its models.
        marks: keys by which it is told from the others; the first format of `FORMATS` holds that has all of its marks.
        table: names its tensors as ours.
        fields: (our tensors, values of config.json where there is one, options) -> our configuration's fields.
        model_type: what config.json says in a folder of Hugging Face, in place of the marks.
        kind: of our models, a key of `folder.KINDS`.
        reads: whether a config.json of that model_type is of a model that ours is; transformers makes the others.
        always: fields of our configuration (dotted where nested) in which its makers' code has no choice: a model that
            differs there is not written in it.
        header: our configuration -> what config.json says of it; None for what has no header, or is not written.
        constants: our configuration -> tensors of theirs that follow from it.
        unsaid: options that a file leaves open -> where our configuration has them.
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
    constants: Callable[[Any], State] = lambda config: {}
    unsaid: Mapping[str, str] = field(default_factory=dict)

    @property
    def maker(self) -> Literal["official", "huggingface"]:
        """Whose layout it is: that of the models' makers, or of transformers."""
        return "official" if self.model_type is None else "huggingface"


@dataclass(frozen=True)
class Identified:
    """A file of which is known what it is.

    Attributes:
        format: its layout.
        config: our configuration.
        state: its tensors under our keys.
    """

    format: Format
    config: Any
    state: State


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
_HEADS = {"heads": "heads"}
_TOWERS = {"heads": "image.heads", "text_heads": "text.heads"}


def _openai(config: Any) -> State:
    """The numbers that OpenAI's state dicts hold beside the weights.

    Raises:
        ValueError: a tower's feed-forward layers are not four times as wide as it, as OpenAI's code has them.
    """
    for tower in (config.image, config.text):
        if tower is not None and tower.hidden not in (None, 4 * tower.width):
            raise ValueError(f"hidden={tower.hidden} is not four times width={tower.width}")
    sizes = {"input_resolution": config.image_size, "context_length": config.text.context}
    return {name: torch.tensor(size) for name, size in {**sizes, "vocab_size": config.text.vocabulary}.items()}


# Positions at other sizes than the trained one: the released DINO and DINOv2 resample by a factor that is 0.1 cells too
# large, DINOv2 with registers to the exact size and low-passed. transformers takes the exact size in all its models, so
# that those without registers differ from the release that they were converted from. Here a file of the makers answers
# as their code does, and a folder of Hugging Face as transformers does. The makers of CLIP and SigLIP have no rule, as
# their code sees the trained size alone; here their files answer at others as transformers does.
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
        constants=_openai,
        unsaid=_TOWERS,
    ),
    Format(
        "CLIP with a ResNet, of OpenAI",
        ("input_resolution", "visual.attnpool.positional_embedding"),
        clip_tables.CLIP_RESNET,
        clip(activation="quick_gelu"),
        kind="clip",
        always={**_RESNET, "image": None, "text.activation": "quick_gelu"},
        constants=_openai,
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
)


def load(path: Path, options: LoadOptions) -> tuple[nn.Module, Preprocess, Record]:
    """Reads weights of another maker: the model on the CPU, in evaluation mode, with what belongs to it.

    Args:
        path: a file, or a folder of Hugging Face.
        options: what it does not say itself.
    Raises:
        ValueError: it is damaged, of a layout that is not known, or does not fit together.
    """
    file, header = open_place(path)
    if header and not _is_read_here(header):
        return _through_transformers(path, file, options)
    found = identify(read_parts(file), header, options, str(path))
    kind = KINDS[found.format.kind]
    words = find_tokenizer(path, found.config.text, options) if found.format.kind == "clip" else None
    with shapes_alone():
        model = kind.build(found.config, {"": words} if words else {})
    load_state(model, {key: owned(tensor) for key, tensor in found.state.items()}, str(file))
    name = path.resolve().name if path.is_dir() else path.stem
    try:
        preprocess = prepared(found.config, header)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if options.linear_head is None:
        return model.eval(), preprocess, Record(found.format.kind, name, _facts(found, options))
    classifier, preprocess = heads.put_on(model.eval(), preprocess, options.linear_head)
    return classifier, preprocess, Record("classifier", name, _facts(found, options))


def prepared(config: Any, header: Mapping[str, Any]) -> Preprocess:
    """What pictures go through.

    Args:
        config: of a model that a layout reads.
        header: what its folder of Hugging Face says; nothing for a file, whose makers take the largest square, and of
            SigLIP the whole picture. A size that the patches do not tile becomes that of the positions.
    Raises:
        ValueError: the folder says what makes no sense.
    """
    if isinstance(config, SamConfig):
        bands = None if config.channels == 3 else config.channels
        return Preprocess(config.image_size, "pad", bands, interpolation="bilinear", fill=config.mean)
    if not header:
        return Preprocess(config.image_size, "squash" if getattr(config, "bias", False) is True else "crop")
    seen, _, _ = preprocessing(header, config.image_size)
    return seen if seen.size % _patch_size(config) == 0 else replace(seen, size=config.image_size)


def identify(parts: Mapping[str, State], header: Mapping[str, Any], options: LoadOptions, where: str) -> Identified:
    """Tells what a file is, from what it holds.

    Args:
        parts: its dictionaries of tensors, as `reading.read_parts` gives them; tensors on the meta device will do.
        header: the values of config.json, where there is one.
        options: what the file does not say.
        where: told in errors, the file.
    Raises:
        ValueError: its layout is not known, or its tensors do not make a model.
    """
    state = networks(parts, options.part, where)["backbone"]
    form = _by_header(header, where) if header else _by_keys(state, where)
    ours, strange = sorted_out(state, form.table)
    kind, misfit = KINDS[form.kind], f"{where}: looks like {form.name}, but the keys do not fit"
    try:
        fields = form.fields(ours, header, options)
    except ValueError as error:
        refuse(misfit, strange)
        raise ValueError(f"{where}: looks like {form.name}, but {error}") from None
    config: Any = from_dict(kind.config, fields, where)
    if any(strange.values()):
        with shapes_alone():
            refuse(misfit, {**strange, **misfits(kind.build(config, {}), ours)})
    return Identified(form, config, ours)


def networks(parts: Mapping[str, State], part: str | None, where: str) -> dict[str, State]:
    """The networks in a file, by the name that its training gave them, without what that added to their keys.

    Args:
        parts: its dictionaries of tensors.
        part: the one that is wanted; None takes the teacher, or whatever there is.
        where: told in errors, the file.
    Returns:
        "backbone" -> key -> tensor, and of a training's file its heads likewise ("head"; "dino_head", "ibot_head").
    Raises:
        ValueError: the file has no such part, or two of its keys say the same.
    """
    chosen = part or next((name for name in _PARTS if name in parts), "")
    if chosen not in parts:
        held = f"tensors of {', '.join(parts)}" if any(parts) else "one network" if parts else "no tensors by name"
        raise ValueError(f"{where}: holds {held}, and no {chosen or 'network that is known here'}")
    plain = {_CHUNK.sub("", _WRAPPERS.sub("", key)): tensor for key, tensor in parts[chosen].items()}
    if len(plain) < len(parts[chosen]):
        raise ValueError(f"{where}: several of its keys differ in nothing but the wrappers of modules")
    if not any(key.startswith("backbone.") for key in plain):
        return {"backbone": plain}
    found: dict[str, State] = {}
    for key, tensor in plain.items():
        network, _, rest = key.partition(".")
        found.setdefault(network, {})[rest] = tensor
    return found


def has_weights(folder: Path) -> bool:
    """Whether a folder looks like a weights folder, of this library or of Hugging Face."""
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in FILES)


def is_ours(path: Path) -> bool:
    """Whether what lies there is a weights folder of this library.

    Raises:
        ValueError: for a folder of which neither this library nor Hugging Face says what it is.
    """
    if not path.is_dir():
        return False
    header = load_json(path / CONFIG)
    if not header.keys() & {"model_type", "auto_map"} and header.get("format") != FORMAT:
        raise ValueError(f'{path / CONFIG}: says neither "format": "{FORMAT}" nor a "model_type", as Hugging Face does')
    return header.get("format") == FORMAT


def open_place(path: Path) -> tuple[Path, dict[str, Any]]:
    """The file with the weights of a file or folder, and what lies beside it to tell what they are."""
    if not path.is_dir():
        return path, {}
    extra = load_json(path / PROCESSOR) if (path / PROCESSOR).is_file() else {}
    return next(path / name for name in FILES if (path / name).is_file()), {**extra, **load_json(path / CONFIG)}


def _by_header(header: Mapping[str, Any], where: str) -> Format:
    known = {form.model_type: form for form in FORMATS if form.model_type is not None}
    said = str(header.get("model_type"))
    if said not in known:
        raise ValueError(f"{where}: model_type={said} is not known here{nearest(said, known)}")
    return known[said]


def _is_read_here(header: Mapping[str, Any]) -> bool:
    """Whether a layout of ours reads a folder: of its kind, and without the heads of a model made for a task."""
    kind, said = header.get("model_type"), header.get("architectures")
    names = [form.name.split()[0] for form in FORMATS if form.model_type == kind and kind and form.reads(header)]
    return bool(names) and (not isinstance(said, list) or not said or said[0] in names)


def _through_transformers(folder: Path, file: Path, options: LoadOptions) -> tuple[nn.Module, Preprocess, Record]:
    given = [name for name, value in vars(options).items() if value is not None]
    if given:
        raise ValueError(f"{folder}: says itself what {', '.join(given)}= should be; leave that out")
    model, preprocess, name = load_hub(folder, file)
    return model, preprocess, Record("hub", folder.resolve().name, {"from": f"{name} of transformers"})


def _by_keys(state: State, where: str) -> Format:
    for form in FORMATS:
        if all(mark in state for mark in form.marks):
            return form
    if (head := heads.find_head(state)) is not None:
        classes, channels = head["weight"].shape
        raise ValueError(
            f"{where}: is a linear classifier of {classes:,} classes that reads {channels:,} channels, and no network; "
            f"give it as load.linear_head={where} to the backbone that it was made for"
        )
    keys = ", ".join(list(state)[:3])
    names = ", ".join(form.name for form in FORMATS)
    raise ValueError(f"{where}: no layout that is known here begins with {keys}; known are {names}")


def _patch_size(config: Any) -> int:
    return getattr(config, "encoder", config).patch_size


def _facts(found: Identified, options: LoadOptions) -> dict[str, str]:
    said = {"part": options.part, "linear_head": options.linear_head and Path(options.linear_head).name}
    return {"from": found.format.name} | {key: value for key, value in said.items() if value}
