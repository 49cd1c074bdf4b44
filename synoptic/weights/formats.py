"""What is this file? Weights of other makers, told by their keys, shapes and config.json, and read as our models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from synoptic.config import from_dict, load_json, nearest
from synoptic.models.bounds import LARGEST
from synoptic.models.grounding_dino import GroundingDinoConfig
from synoptic.models.sam import SamConfig
from synoptic.types import Preprocess
from synoptic.weights import heads
from synoptic.weights.checksums import file_state
from synoptic.weights.convert import Problems, load_known_state, misfits, refuse, sorted_out
from synoptic.weights.descriptions import CONFIG, Description, describe, tell_without_processor
from synoptic.weights.folder import FORMAT, KINDS, WEIGHTS, Record, shapes_alone
from synoptic.weights.hub import load_hub
from synoptic.weights.layouts import FORMATS, Format
from synoptic.weights.options import LoadOptions
from synoptic.weights.processors import fitting, preprocessing
from synoptic.weights.radio import is_packaged, refuse_hybrid
from synoptic.weights.reading import (
    ARGUMENTS,
    INDEX,
    State,
    check_values,
    is_written_in_place,
    owned,
    read_whole,
    ready,
)
from synoptic.weights.words import find_tokenizer

# What the weights are called in a folder of Hugging Face, the best first.
FILES = (WEIGHTS, WEIGHTS + INDEX, "pytorch_model.bin", f"pytorch_model.bin{INDEX}")

# What may be said of the files of each kind of model.
_OPTIONS = {
    "vit": ("heads", "linear_head"),
    "plain_resnet": ("linear_head",),
    "clip": ("heads", "text_heads", "activation", "vocabulary"),
    "sam": ("heads", "decoder_heads", "window", "global_blocks"),
    "grounding_dino": ("heads", "text_heads", "vocabulary"),
}

# Kinds of models that transformers lets have any activation, and those that ours may have, by its names for them.
_TRANSFORMERS = ("vit", "dinov2", "dinov2_with_registers", "clip", "siglip")
_ACTIVATIONS = {"gelu", "quick_gelu", "gelu_pytorch_tanh"}

# Dictionaries of a file in which a network may lie, the best first; RADIO's makers take the averaged weights, too.
_PARTS = ("", "teacher", "state_dict_ema", "state_dict", "model", "student")
_WHOLE = ("transformer.level_embed", "level_embed")  # of detectors, a part of which is called backbone, too
_USUAL_SIZE = 512  # pixels of the pictures for models that take any, where nothing tells it

# What wrappers of modules (several devices, shards, recomputation, compilation) put into keys.
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
# DINOv2's training groups blocks and counts them through; the layers in a block of RADIO's heads are counted, too.
_CHUNK = re.compile(r"(?<=\bblocks\.)\d+\.(?=\d+\.(?!parametrizations\.)\w+\.)")


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


def load(path: Path, options: LoadOptions) -> tuple[nn.Module, Preprocess, Record]:
    """Reads weights of another maker: the model on the CPU, in evaluation mode, with what belongs to it.

    Args:
        path: a file, or a folder of Hugging Face.
        options: what it does not say itself.
    Raises:
        ValueError: it is damaged, of a layout that is not known, or does not fit together.
    """
    file, said = open_place(path)
    place = _folder_of(path) or path
    if said.config and not _is_read_here(said.config):
        return _through_transformers(place, file, said, options)
    since = file_state(file) if file.is_file() else ("", False)
    parts, args = read_whole(file)
    try:
        header = {**({ARGUMENTS: args} if args else {}), **said.header}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    found = identify(parts, header, options, str(path))
    _check_options(found.format, options, str(path))
    kind = KINDS[found.format.kind]
    words = find_tokenizer(place, found.config, options)
    with shapes_alone():
        model = kind.build(found.config, {"": words} if words else {})
    state = _kept(found.state, mapped=place.is_dir() or not is_written_in_place(file))
    check_values(state, file, since, options.part)
    load_known_state(model, state, str(file))
    name = place.resolve().name if place.is_dir() else path.stem
    try:
        preprocess = prepared(found.config, said, options.size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if said.config and said.processor is None and not found.format.normalizes:
        tell_without_processor(path, seeing(found.config).mean)
    if options.linear_head is None:
        return model.eval(), preprocess, Record(found.format.kind, name, _facts(found, options))
    classifier, preprocess = heads.put_on(model.eval(), preprocess, options.linear_head)
    return classifier, preprocess, Record("classifier", name, _facts(found, options))


def prepared(config: Any, said: Description, size: int | None = None) -> Preprocess:
    """What pictures go through.

    Args:
        config: of a model that a layout reads.
        said: what its folder of Hugging Face says; nothing for a file, whose makers take the largest square, and of
            SigLIP the whole picture. A size that the patches do not tile becomes that of the positions.
        size: side of the pictures in pixels, for a model whose positions are there for any; None takes what the folder
            says.
    Raises:
        ValueError: the folder says what makes no sense.
    """
    if isinstance(config, SamConfig):
        bands = None if config.channels == 3 else config.channels
        return Preprocess(config.image_size, "pad", bands, interpolation="bilinear", fill=config.mean)
    if isinstance(config, GroundingDinoConfig):
        bands = None if config.backbone.channels == 3 else config.backbone.channels
        return fitting(said.processor or {}, bands)
    usual = _size(config, said, size)
    if said.processor is None:
        return Preprocess(usual, "squash" if getattr(config, "bias", False) is True else "crop")
    seen = preprocessing(said.processor, usual)
    vit = seeing(config)
    fits = seen.size % (vit.patch_size * (getattr(vit, "window", None) or 1)) == 0 and size is None
    return seen if fits else replace(seen, size=usual)


def seeing(config: Any) -> Any:
    """The configuration of the part of a model that sees."""
    return getattr(config, "encoder", getattr(config, "backbone", config))


def _size(config: Any, said: Description, size: int | None) -> int:
    """The side of the pictures that a model is given, where its preprocessing does not say it."""
    vit = seeing(config)
    if getattr(vit, "position", "learned") != "cpe":
        return config.image_size
    preferred = said.config.get("preferred_resolution")
    told = preferred[0] if isinstance(preferred, list) and preferred else said.config.get("image_size")
    step = vit.patch_size * (vit.window or 1)
    if size is not None:
        if size % step:
            low = max(size // step, 1) * step
            what = f"windows of {vit.window} patches" if vit.window else f"patches of {vit.patch_size} pixels"
            raise ValueError(f"load.size={size}: {what} do not tile it; the nearest that work: {low}, {low + step}")
        return size
    wanted = told if isinstance(told, int) and told > 0 else min(_USUAL_SIZE, vit.image_size)
    return max(min(wanted, LARGEST) // step, 1) * step


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
    form = _by_header(header, state, where) if _kind_said(header) else _by_keys(state, where)
    kind, misfit = KINDS[form.kind], f"{where}: looks like {form.name}, but the keys do not fit"
    strange: Problems = {}
    try:
        tidy, said = form.tidy(state, header, options)
        ours, strange = sorted_out(tidy, form.table)
        fields = form.fields(ours, said, options)
    except ValueError as error:
        refuse(misfit, strange)
        raise ValueError(f"{where}: looks like {form.name}, but {error}") from None
    config: Any = from_dict(kind.config, fields, where)
    if unlike := form.unlike(config):
        told = "; ".join(f"{name}={mine}, there {theirs}" for name, (mine, theirs) in unlike.items())
        raise ValueError(f"{where}: looks like {form.name}, but its tensors make what that never is: {told}")
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
    known = [name for name in _PARTS if name in parts]
    if len(known) > 1 and not known[0] and len(parts[known[1]]) > len(parts[""]):  # a number beside a network
        known.pop(0)
    chosen = part or next(iter(known), "")
    if chosen not in parts:
        held = f"tensors of {', '.join(parts)}" if any(parts) else "one network" if parts else "no tensors by name"
        raise ValueError(f"{where}: holds {held}, and no {chosen or 'network that is known here'}")
    plain = {_CHUNK.sub("", _WRAPPERS.sub("", key)): tensor for key, tensor in parts[chosen].items()}
    if len(plain) < len(parts[chosen]):
        raise ValueError(f"{where}: several of its keys differ in nothing but the wrappers of modules")
    if not any(key.startswith("backbone.") for key in plain) or any(mark in plain for mark in _WHOLE):
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


def open_place(path: Path) -> tuple[Path, Description]:
    """The file with the weights of a file or folder, and what lies beside it to tell what they are."""
    folder = _folder_of(path)
    if folder is None:
        return path, Description()
    return next(path / name for name in FILES if (path / name).is_file()) if folder == path else path, describe(folder)


def _folder_of(path: Path) -> Path | None:
    """The folder of Hugging Face that is named, or of which one of several files of weights is; None of any other."""
    if path.is_dir():
        return path
    beside = path.parent / CONFIG
    if not beside.is_file() or not (path.name in FILES or path.suffix == ".safetensors"):
        return None
    return path.parent if path.name in FILES or "model_type" in load_json(beside) else None


def _kind_said(header: Mapping[str, Any]) -> str | None:
    """The model_type that config.json says or means; None where there is none."""
    said = header.get("model_type")
    return "radio" if is_packaged(header) else None if said is None else str(said)


def _by_header(header: Mapping[str, Any], state: State, where: str) -> Format:
    """The layout of a folder; where there are several of its model_type, the first whose marks its tensors have."""
    said = _kind_said(header)
    forms = [form for form in FORMATS if form.model_type == said]
    if not forms:
        known = sorted({form.model_type for form in FORMATS if form.model_type is not None})
        raise ValueError(f"{where}: model_type={said} is not known here{nearest(str(said), known)}")
    if len(forms) == 1:
        return forms[0]
    _check_hybrid(state, where)
    read = [form for form in forms if form.reads(header)]
    return next((form for form in read if not form.lacking(state)), read[-1])


def _check_hybrid(state: State, where: str) -> None:
    try:
        refuse_hybrid(state)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _is_read_here(header: Mapping[str, Any]) -> bool:
    """Whether a layout of ours reads a folder: of its kind, and without the heads of a model made for a task."""
    kind, said = _kind_said(header), header.get("architectures")
    names = [form.name.split()[0] for form in FORMATS if form.model_type == kind and kind and form.reads(header)]
    named = bool(names) and (not isinstance(said, list) or not said or said[0] in names)
    return named and _is_activated_alike(header)


def _is_activated_alike(header: Mapping[str, Any]) -> bool:
    """Whether all parts of a model have one activation that ours know; transformers has many more."""
    sections = (header, *(part for part in header.values() if isinstance(part, Mapping)))
    said = {str(part["hidden_act"]) for part in sections if part.get("hidden_act") is not None}
    return header.get("model_type") not in _TRANSFORMERS or (len(said) <= 1 and said <= _ACTIVATIONS)


def _through_transformers(
    folder: Path, file: Path, said: Description, options: LoadOptions
) -> tuple[nn.Module, Preprocess, Record]:
    given = [name for name, value in vars(options).items() if value is not None]
    if given:
        raise ValueError(f"{folder}: says itself what {', '.join(given)}= should be; leave that out")
    model, preprocess, name = load_hub(folder, file, said)
    return model, preprocess, Record("hub", folder.resolve().name, {"from": f"{name} of transformers"})


def _by_keys(state: State, where: str) -> Format:
    _check_hybrid(state, where)
    for form in FORMATS:
        if not form.lacking(state):
            return form
    if (head := heads.find_head(state)) is not None:
        classes, channels = head["weight"].shape
        raise ValueError(
            f"{where}: is a linear classifier of {classes:,} classes that reads {channels:,} channels, and no network; "
            f"give it as load.linear_head={where} to the backbone that it was made for"
        )
    keys = ", ".join(list(state)[:3])
    names = ", ".join(dict.fromkeys(re.split(" with | on |, ", form.name)[0] for form in FORMATS))  # their sorts apart
    raise ValueError(f"{where}: no layout that is known here begins with {keys}; known are {names}")


def _kept(state: State, mapped: bool) -> State:
    """Tensors as models hold them, none in the memory of another.

    Args:
        state: what was read.
        mapped: whether they may stay windows on their file.
    """
    kept: State = {}
    taken: set[int] = set()
    for key, tensor in state.items():
        alone = ready(tensor) if mapped else owned(tensor)
        kept[key] = owned(alone) if alone.data_ptr() in taken else alone
        taken.add(alone.data_ptr())
    return kept


def _check_options(form: Format, options: LoadOptions, where: str) -> None:
    """Refuses options that would decide nothing."""
    known = tuple(dict.fromkeys(("part", *_OPTIONS.get(form.kind, ()), *form.options)))
    idle = [name for name, value in vars(options).items() if value is not None and name not in known]
    if idle:
        told = f"load.{idle[0]}= decides nothing in files of {form.name}, of which can be said {', '.join(known)}"
        raise ValueError(f"{where}: {told}; leave it out")


def _facts(found: Identified, options: LoadOptions) -> dict[str, str]:
    said = {"part": options.part, "linear_head": options.linear_head and Path(options.linear_head).name}
    return {"from": found.format.name} | {key: value for key, value in said.items() if value}
