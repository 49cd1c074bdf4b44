"""What RADIO's files say beside the tensors that our model has, found when they are read and put there when written.

Which teachers a file was distilled from, which summary token is whose, and which tokens make the summary, stand in the
arguments of its training, or in the config.json of its makers; other learned tokens are registers. Pixel statistics lie
among the tensors.

Source: the keys and arguments that timm 1.0.31, vLLM and NVIDIA TAO (all Apache-2.0) read of these files.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synoptic.models.adaptors import AdaptorConfig, StudentConfig
from synoptic.models.clip import CLIP_MEAN, CLIP_STD
from synoptic.models.layers import gated_width
from synoptic.models.vit import ViTConfig
from synoptic.weights.headers import ACTIVATIONS
from synoptic.weights.options import LoadOptions
from synoptic.weights.radio_tables import HUB, INNER, TRUNK
from synoptic.weights.reading import ARGUMENTS, State
from synoptic.weights.spectral import folded

log = logging.getLogger(__name__)

Values = Mapping[str, Any]
Tidy = Callable[[State, Values, LoadOptions], tuple[State, Values]]

# Tokens of files without arguments: how many of so many make the summary. radio_v2.5 and c-radio_v3 have four for
# teachers, of which SAM has no summary, and c-radio_v4 has three; the others are registers.
_RELEASED_SUMMARY = {8: 3, 10: 2}

_TOKENS = "patch_generator.cls_token"
_NAMES = {  # of timm's models by width and depth, which the makers' code builds
    (384, 12): "small",
    (768, 12): "base",
    (1024, 24): "large",
    (1152, 27): "so400m",
    (1280, 32): "huge",
    (1536, 40): "giant",
}
_DINOV2 = "dino_v2_g_student"  # likewise, of radio_v2.5-g
_CALLED = {"siglip2_g": "siglip2-g"}  # adaptors whose names in files are no identifiers, as here they have to be
_VERSIONS = {"v1": "v1", "v2": "v2", "attention": "attn"}  # of heads, ours by theirs


@dataclass(frozen=True)
class Tokens:
    """What the learned tokens of a file are for.

    Attributes:
        count: how many are there for teachers; those behind them are registers.
        summary: those that make the summary, in order.
        slots: which one each teacher has, by its name as an identifier.
        finer: how many times finer a teacher's grid is than the student's, where it is.
    """

    count: int
    summary: tuple[int, ...]
    slots: Mapping[str, int] = field(default_factory=dict)
    finer: Mapping[str, int] = field(default_factory=dict)


def is_packaged(header: Values) -> bool:
    """Whether config.json is of RADIO's makers, whose folders come with code of their own, not of transformers."""
    named = (*_texts(header.get("architectures")), *_texts(header.get("auto_map")))
    return isinstance(header.get(ARGUMENTS), Mapping) and any("RADIO" in name for name in named)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def refuse_hybrid(state: State) -> None:
    """Raises for an E-RADIO.

    Raises:
        ValueError: it is one.
    """
    if any(f"{begin}patch_embed.conv_down.0.conv.weight" in state for begin in (TRUNK, f"{HUB}model.")):
        raise ValueError("is an E-RADIO, a network of convolutions and attention, which is not read here yet")


def tidied(theirs: str, adaptors: bool) -> Tidy:
    """How files and folders of the makers become what a table names.

    Args:
        theirs: what the keys of the trunk begin with.
        adaptors: whether heads are read with it; otherwise tokens that are not of the summary become registers.
    """

    def tidy(state: State, header: Values, options: LoadOptions) -> tuple[State, Values]:
        state = folded(state)
        _check_feed_forward(state)
        if any("_feature_normalizer.alphas" in key or "inter_feature_normalizer." in key for key in state):
            log.warning("statistics of its blocks are left out: their features are as the network makes them")
        hub = theirs.startswith(HUB)
        args = header.get(ARGUMENTS)
        teachers = _teachers(args if isinstance(args, Mapping) else {})
        state, keys = _named(state, teachers, hub) if adaptors else (dict(state), {})
        kept = state.pop(f"{HUB}summary_idxs", None)
        total = _count(state, theirs)
        tokens = _tokens(teachers, args if isinstance(args, Mapping) else {}, keys, total, options, adaptors)
        if hub:
            tokens = _as_packaged(tokens, header, kept, keys)
        if tokens.count > total:
            raise ValueError(f"it says that {tokens.count} tokens are of teachers, and it has {total} in all")
        conditioner = f"{HUB}input_conditioner" if hub else "input_conditioner"
        order = range(tokens.count) if adaptors else tokens.summary
        state, said = _arranged(state, header, theirs, conditioner, order)
        state |= {f"{name}.logit_scale": torch.zeros(()) for name in keys}
        return state, {**said, "radio": tokens}

    return tidy


def tidied_of_transformers(state: State, header: Values, options: LoadOptions) -> tuple[State, Values]:
    """Likewise, of a RadioModel of transformers. Tokens of which it makes no summary are as good as registers."""
    state = dict(state)
    kept = _whole_numbers(state.pop(f"{HUB}summary_idxs", None)) or header.get("summary_idxs") or [0, 1]
    if not isinstance(kept, list) or not _are_slots(kept, _count(state, f"{HUB}model.")):
        raise ValueError(f"its summary_idxs {kept} are not different ones of its tokens")
    return _arranged(state, header, f"{HUB}model.", f"{HUB}input_conditioner", kept)


def finished(theirs: str) -> Callable[[State, Any], State]:
    """How a model under the keys of a table becomes a file: the way back of both."""

    def finish(state: State, config: Any) -> State:
        vit: ViTConfig = getattr(config, "backbone", config)
        begin = f"{theirs}{_TOKENS}"
        parts = [state.pop(f"{begin}.{part}", None) for part in ("summary", "registers")]
        rows = [part[0] for part in parts if part is not None]
        if not rows:
            raise ValueError("it has no learned tokens, of which RADIO has one at least")
        both = {"norm_mean": _column(vit.mean, CLIP_MEAN), "norm_std": _column(vit.std, CLIP_STD)}
        hub = theirs.startswith(HUB)
        places = [HUB] if hub else ["", TRUNK] if theirs == INNER else [""]
        state |= {f"{place}input_conditioner.{name}": both[name].clone() for place in places for name in both}
        if hub:
            state[f"{HUB}summary_idxs"] = torch.arange(vit.summary_tokens)
        else:
            state = {_as_called(key): tensor for key, tensor in state.items()}
        return state | {f"{begin}.token": torch.cat(rows)}

    return finish


def _as_called(key: str) -> str:
    """A key of a head as files call its teacher."""
    place, _, rest = key.partition(".")
    name, _, layer = rest.partition(".")
    return (
        f"{place}.{_CALLED[name]}.{layer}" if place in ("_heads", "_feature_projections") and name in _CALLED else key
    )


# What the makers' code reads of the arguments of any file, with the values of a network without its training.
_OF_A_TRAINING: dict[str, Any] = {
    **{"pretrained": False, "num_classes": None, "input_size": None, "model_kwargs": {}, "initial_checkpoint": ""},
    **{"drop": 0.0, "drop_path": None, "drop_block": None, "gp": None, "bn_momentum": None, "bn_eps": None},
    **{"torchscript": False, "spectral_reparam": False, "mlp_version": "v2"},
}


def arguments(config: ViTConfig | StudentConfig) -> dict[str, Any]:
    """What a file's arguments say of a model: all that no shape of its tensors tells, and what its makers ask."""
    vit = config.backbone if isinstance(config, StudentConfig) else config
    size = _NAMES.get((vit.width, vit.depth), f"{vit.width}x{vit.depth}")
    said = {
        **_OF_A_TRAINING,
        "model": _DINOV2 if vit.feed_forward == "swiglu" else f"vit_{size}_patch{vit.patch_size}_224",
        "in_chans": vit.channels,
        "cpe_max_size": vit.image_size,
        "cpe_num_registers": vit.registers,
        "register_multiple": None,
        "cls_token_per_teacher": vit.summary_tokens > 1,
        "model_norm": vit.final_norm,
        "vitdet_window_size": vit.window,
        "vitdet_num_global": vit.global_blocks,
    }
    if not isinstance(config, StudentConfig):
        named = [{"name": f"teacher{slot}", **_GENERIC, "use_summary": True} for slot in range(vit.summary_tokens)]
        return {ARGUMENTS: {**said, "teachers": [{**each, "token_slot": slot} for slot, each in enumerate(named)]}}
    slots = config.slots
    owned = set(slots.values())
    kept = range(vit.summary_tokens) if config.summary is None else config.summary
    teachers = [
        {"name": _CALLED.get(name, name), **_GENERIC, "token_slot": slots[name], **_versions(part)}
        for name, part in config.adaptors.items()
    ]
    free = [slot for slot in range(vit.summary_tokens) if slot not in owned]
    teachers += [{"name": f"teacher{slot}", **_GENERIC, "token_slot": slot} for slot in free]
    return {ARGUMENTS: {**said, "teachers": [{**each, "use_summary": each["token_slot"] in kept} for each in teachers]}}


_GENERIC = {"type": "generic"}  # an adaptor without the words of its teacher


def _versions(adaptor: AdaptorConfig) -> dict[str, Any]:
    return {
        "mlp_version": _VERSIONS.get(adaptor.summary_head.form),
        "spatial_mlp_version": _VERSIONS.get(adaptor.patch_head.form),
        "fd_upsample_factor": adaptor.patch_head.upsample,
    }


def header(config: ViTConfig) -> dict[str, Any]:
    """`config.json` of a RadioModel of transformers.

    Raises:
        ValueError: its feed-forward layers are of a width that transformers cannot say.
    """
    hidden = config.hidden or 4 * config.width
    gated = config.feed_forward == "swiglu"
    ratio = hidden / config.width
    read = int(config.width * ratio)
    if (gated_width(read) != gated_width(hidden)) if gated else read != hidden:
        raise ValueError(f"hidden={hidden} is no ratio of width={config.width} that transformers rounds to it")
    return {
        "model_type": "radio",
        "architectures": ["RadioModel"],
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "mlp_ratio": ratio,
        "hidden_act": ACTIVATIONS.get(config.activation, config.activation),
        "layer_norm_eps": config.norm_eps,
        "use_swiglu_ffn": gated,
        "qkv_bias": config.qkv_bias,
        "layerscale_value": 1.0,
        "num_channels": config.channels,
        "patch_size": config.patch_size,
        "max_img_size": config.image_size,
        "num_cls_tokens": config.summary_tokens,
        "num_registers": config.registers,
        "summary_idxs": list(range(config.summary_tokens)),
        "norm_mean": list(config.mean),
        "norm_std": list(config.std),
    }


def _check_feed_forward(state: State) -> None:
    if any(key.endswith(".mlp.norm.weight") and ".blocks." in key for key in state):
        raise ValueError(
            "its feed-forward layers have norms of their own (the first C-RADIO), and such are not known here"
        )


def _teachers(args: Values) -> list[Values]:
    """The teachers of a file, in order; of one name there may be several, for pictures of several sizes."""
    found = args.get("teachers")
    return [each if isinstance(each, Mapping) else {} for each in found] if isinstance(found, list) else []


def _name_of(teacher: Values, place: int) -> str:
    name = teacher.get("name")
    return _identifier(name if isinstance(name, str) and name else f"teacher{place}")


def _identifier(name: str) -> str:
    """A teacher's name as those of our adaptors are, such as siglip2_g of siglip2-g."""
    plain = re.sub(r"\W", "_", name)
    return plain if plain.isidentifier() else f"teacher_{plain}"


def _named(state: State, teachers: Sequence[Values], hub: bool) -> tuple[State, dict[str, str]]:
    """Tensors with the heads of adaptors by identifiers, and how each was called, in order."""
    begin = re.escape(f"{HUB}adaptors") if hub else "_heads|_feature_projections"
    pattern = re.compile(rf"({begin})\.([^.]+)\.(.+)")
    found: dict[str, str] = {}
    named = State()
    for key, tensor in state.items():
        match = pattern.fullmatch(key)
        if match is None:
            named[key] = tensor
            continue
        place, called, rest = match.groups()
        name = _identifier(called)
        if called.isdecimal():  # counted as the teachers are
            number = int(called)
            name = _name_of(teachers[number] if number < len(teachers) else {}, number)
        if found.setdefault(name, called) != called:
            raise ValueError(f"two of its teachers, {found[name]} and {called}, are both called {name} here")
        named[f"{place}.{name}.{rest}"] = tensor
    order = dict.fromkeys(_name_of(teacher, place) for place, teacher in enumerate(teachers))
    listed = [name for name in order if name in found]
    rest = sorted((name for name in found if name not in order), key=lambda name: (len(found[name]), found[name]))
    return named, {name: found[name] for name in (*listed, *rest)}


def _tokens(
    teachers: Sequence[Values], args: Values, keys: Mapping[str, str], total: int, options: LoadOptions, adaptors: bool
) -> Tokens:
    """What the arguments of a file tell of its tokens; without any, what its keys do.

    Args:
        keys: how adaptors were called in keys, by their names.
        total: how many tokens there are, registers among them.
    Raises:
        ValueError: nothing tells how many tokens make the summary, or they are told twice.
    """
    asked = options.summary_tokens
    if teachers:
        if asked is not None:
            raise ValueError(f"its own arguments tell the tokens of its summary; leave load.summary_tokens={asked} out")
        return _of_teachers(teachers, args)
    if adaptors:
        counted = {name: int(called) for name, called in keys.items() if called.isdecimal()}
        if len(counted) < len(keys):
            raise ValueError(
                f"it does not say which token is that of {', '.join(keys)}, which its arguments would tell"
            )
        count = max((1 + max(counted.values()), asked or 0))
        return Tokens(count, tuple(range(asked or count)), counted)
    known = asked or _RELEASED_SUMMARY.get(total)
    if known is None:
        told = "say how many, load.summary_tokens=N"
        raise ValueError(f"it does not say how many of its {total} tokens make the summary; {told}")
    return Tokens(known, tuple(range(known)))


def _of_teachers(teachers: Sequence[Values], args: Values) -> Tokens:
    names = [_name_of(teacher, place) for place, teacher in enumerate(teachers)]
    alone = args.get("cls_token_per_teacher") is False
    slots = {name: 0 if alone else place for place, name in enumerate(dict.fromkeys(names))}
    for name, teacher in zip(reversed(names), reversed(teachers), strict=True):  # of several the first decides
        if isinstance(teacher.get("token_slot"), int):
            slots[name] = teacher["token_slot"]
    if min(slots.values()) < 0:
        raise ValueError(f"its arguments tell tokens before the first one ({slots})")
    used = [
        slots[name] for name, teacher in zip(names, teachers, strict=True) if teacher.get("use_summary") is not False
    ]
    if not used:
        raise ValueError("its arguments tell of no teacher with a summary")
    both = reversed(list(zip(names, teachers, strict=True)))
    finer = {name: _times(each.get("fd_upsample_factor")) for name, each in both}  # here, too
    return Tokens(1 + max(slots.values()), tuple(dict.fromkeys(used)), slots, finer)


def _times(value: Any) -> int:
    """How many times finer a grid is, where something tells it."""
    return value if isinstance(value, int) and value > 0 else 1


def _as_packaged(tokens: Tokens, header: Values, kept: Tensor | None, keys: Mapping[str, str]) -> Tokens:
    """What a folder of the makers says of its tokens more exactly than the arguments in it."""
    summary = tuple(_whole_numbers(kept) or tokens.summary)
    described = header.get("adaptor_configs")
    slots, finer = dict(tokens.slots), dict(tokens.finer)
    for name, called in keys.items():
        said = described.get(called) if isinstance(described, Mapping) else None
        said = said if isinstance(said, Mapping) else {}
        if isinstance(said.get("head_idx"), int):
            slots[name] = said["head_idx"]
        feature = said.get("feature")
        if isinstance(feature, Mapping):
            finer[name] = _times(feature.get("upsample_factor"))
    count = 1 + max(tokens.count - 1, *summary, *(slots[name] for name in keys if name in slots))
    if not _are_slots(list(summary), count):
        raise ValueError(f"its summary_idxs {list(summary)} are not different ones of its tokens")
    return Tokens(count, summary, slots, finer)


def _whole_numbers(tensor: Tensor | None) -> list[int] | None:
    if tensor is None or tensor.is_meta:
        return None
    if tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(f"its summary_idxs are of {str(tensor.dtype).removeprefix('torch.')}, not whole numbers")
    return [int(each) for each in tensor.flatten().tolist()]


def _are_slots(slots: Sequence[Any], count: int) -> bool:
    whole = all(isinstance(slot, int) and 0 <= slot < count for slot in slots)
    return whole and 0 < len(slots) == len(set(slots))


def _count(state: State, theirs: str) -> int:
    """How many learned tokens there are."""
    token = state.get(f"{theirs}{_TOKENS}.token")
    if token is None or token.ndim != 2:
        raise ValueError(f"it has no {theirs}{_TOKENS}.token of two dimensions")
    return len(token)


def _arranged(
    state: State, header: Values, theirs: str, conditioner: str, first: Sequence[int]
) -> tuple[State, Values]:
    """Tokens apart, patches as convolutions hold them, and pixel statistics in the header.

    Args:
        conditioner: what the keys of the statistics begin with.
        first: the tokens of the summary, in order.
    """
    state = dict(state)
    token = state.pop(f"{theirs}{_TOKENS}.token")
    rest = [place for place in range(len(token)) if place not in set(first)]
    for part, places in (("summary", list(first)), ("registers", rest)):
        if places:
            whole = places == list(range(len(token)))
            state[f"{theirs}{_TOKENS}.{part}"] = (token if whole else token[places])[None]
    mean, std = (state.pop(f"{conditioner}.{name}", None) for name in ("norm_mean", "norm_std"))
    said = dict(header)
    bands = 3 if mean is None else mean.numel()
    said["image_mean"], said["image_std"] = _after(header, _row(mean, CLIP_MEAN), _row(std, CLIP_STD))
    key = f"{theirs}patch_generator.embedder.weight"
    if key in state:
        state[key] = _cut(state[key], bands)
    return state, said


def _after(header: Values, mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    """Statistics of the network, behind those by which a folder's processor already normalises, where it does."""
    first, scale = header.get("image_mean"), header.get("image_std")
    if not (isinstance(first, list) and isinstance(scale, list) and len(first) == len(scale) == len(mean)):
        return list(mean), list(std)
    both = list(zip(first, scale, mean, std, strict=True))
    return [m + s * inner for m, s, inner, _ in both], [s * inner for _, s, _, inner in both]


def _row(tensor: Tensor | None, usual: Sequence[float]) -> list[float]:
    """Values of a tensor with as few digits as float32 tells apart, so that 0.485 is 0.485 again; CLIP's if they are.

    Args:
        tensor: statistics; None, or on the meta device, stands for the usual ones.
        usual: CLIP's.
    """
    if tensor is None or tensor.is_meta:
        return list(usual)
    if tensor.dtype == torch.float64:
        return tensor.flatten().tolist()
    numbers = [np.float32(each) for each in tensor.float().flatten().tolist()]
    if numbers == [np.float32(each) for each in usual]:
        return list(usual)
    return [float(str(each)) for each in numbers]


def _column(values: Sequence[float], usual: Sequence[float]) -> Tensor:
    """(C, 1, 1) statistics, in float64 only where they would be read as others from float32."""
    short = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
    return short if _row(short, usual) == list(values) else torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)


def _cut(weight: Tensor, bands: int) -> Tensor:
    """(D, C*p*p) weights of patches as (D, C, p, p)."""
    side = math.isqrt(weight.shape[-1] // bands) if weight.ndim == 2 and bands else 0
    if not side or bands * side**2 != weight.shape[1]:
        raise ValueError(f"patches of {tuple(weight.shape)[1:]} numbers are no squares of {bands} bands")
    return weight.unflatten(1, (bands, side, side))
