"""What a file's tensors, under our keys, and the config.json beside it tell of a model's configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from synoptic.models.clip import CLIP_MEAN, CLIP_STD
from synoptic.weights.options import LoadOptions
from synoptic.weights.reading import ARGUMENTS, State

Fields = Callable[[State, Mapping[str, Any], LoadOptions], dict[str, Any]]


def vit(**known: Any) -> Fields:
    """The configuration of a ViT from the shapes of its weights, from `known` fields and from config.json."""

    def fields(state: State, header: Mapping[str, Any], options: LoadOptions) -> dict[str, Any]:
        said = {ours: header[theirs] for ours, theirs in _SAID.items() if header.get(theirs) is not None}
        if "activation" in said:
            said["activation"] = _called(said["activation"])
        shapes = _shapes(state)
        registers = header.get("num_register_tokens")
        if registers is not None and registers != shapes["registers"]:
            raise ValueError(f"it has {shapes['registers']} registers, and its config.json says {registers}")
        heads = options.heads or said.get("heads") or _usual_heads(shapes["width"])
        return {**shapes, **known, **said, "heads": heads}

    return fields


_SAID = {  # our field: its name in config.json and preprocessor_config.json
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
    "mean": "image_mean",
    "std": "image_std",
    "mask_token": "use_mask_token",
}


def clip(**known: Any) -> Fields:
    """The configuration of a CLIP, with a ViT or a ResNet.

    Args:
        known: "activation", where the layout tells it.
    """

    def fields(state: State, header: Mapping[str, Any], options: LoadOptions) -> dict[str, Any]:
        act = _activation(known, header, options)
        if "image.pool.positions" in state:
            tower = {"resnet": _resnet(part_of(state, "image"))}
        else:
            fixed = {"pre_norm": True, "norm_eps": 1e-5, "mean": CLIP_MEAN, "std": CLIP_STD}
            image = vit(**fixed)(part_of(state, "image"), _part_header(header, "vision"), options)
            tower = {"image": image | {"activation": act}}
        text = _text(part_of(state, "text"), _part_header(header, "text"), options)
        # OpenAI's code reads at the highest id, and so does transformers where the configuration says 2.
        end = _part_header(header, "text").get("eos_token_id", 2)
        end = text["vocabulary"] - 1 if end == 2 else end
        return {**tower, "text": {**text, "activation": act, "end": end}}

    return fields


def siglip(**known: Any) -> Fields:
    """The configuration of a SigLIP."""

    def fields(state: State, header: Mapping[str, Any], options: LoadOptions) -> dict[str, Any]:
        act = _activation(known, header, options)
        half = (0.5, 0.5, 0.5)
        fixed = {"pool": "attention", "mean": half, "std": half}
        image = vit(**fixed)(part_of(state, "image"), _part_header(header, "vision"), options)
        text = _text(part_of(state, "text"), _part_header(header, "text"), options)
        # The token that fills rows ends them too; that which transformers calls the end is never read.
        end = _part_header(header, "text").get("pad_token_id")
        whole = {"causal": False, "read_at": "last", "activation": act, "end": 1 if end is None else end}
        return {"image": {**image, "activation": act}, "text": {"norm_eps": 1e-6, **text, **whole}, "bias": True}

    return fields


def sam(decoder_eps: float) -> Fields:
    """The configuration of a SAM, with its decoder where there is one; the shapes of its relative positions tell heads,
    windows and which blocks attend over the whole picture.

    Args:
        decoder_eps: of the norms in its decoder, where config.json says nothing of them.
    """

    def fields(state: State, header: Mapping[str, Any], options: LoadOptions) -> dict[str, Any]:
        encoder, decoder = part_of(state, "encoder"), part_of(state, "decoder")
        vision = section(header, "vision_config") or header  # that of SamVisionModel is all vision
        masks = section(header, "mask_decoder_config")
        refuse_other(vision, use_abs_pos=True, use_rel_pos=True, qkv_bias=True, hidden_act="gelu")
        refuse_other(section(header, "prompt_encoder_config"), hidden_act="gelu", layer_norm_eps=1e-6)
        refuse_other(masks, hidden_act="relu")
        both = {**vision, **header}
        said = {ours: both[theirs] for ours, theirs in _SAM_SAID.items() if both.get(theirs) is not None}
        width, channels, patch, across = shape_of(encoder, "patch_embed.weight", 4)
        side = _side(shape_of(encoder, "positions.table", 3)[1], patch, across)
        shapes = {
            "patch_size": patch,
            "width": width,
            "depth": _depth(encoder),
            "hidden": shape_of(encoder, "blocks.0.mlp.fc1.weight", 2)[0],
            "image_size": side * patch,
            "channels": channels,
            "embedding": shape_of(encoder, "neck.0.weight", 4)[0],
            "heads": max(width // shape_of(encoder, "blocks.0.attn.down", 2)[1], 1),
            **_windows(encoder, side, vision, options),
        }
        given = {"heads": options.heads} if options.heads else {}
        answers = {"norm_eps": decoder_eps, **_sam_decoder(decoder, masks, options)} if decoder else None
        return {**shapes, **said, **given, "decoder": answers}

    return fields


_SAM_SAID = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "embedding": "output_channels",
    "norm_eps": "layer_norm_eps",
    "mean": "image_mean",
    "std": "image_std",
}
_SAM_DECODER_SAID = {"depth": "num_hidden_layers", "hidden": "mlp_dim", "norm_eps": "layer_norm_eps"}


def section(header: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """One part of a config.json; nothing where it has none."""
    found = header.get(name) or {}
    if not isinstance(found, Mapping):
        raise ValueError(f"{name} in its config.json should hold keys and values, not {found!r}")
    return found


def refuse_other(said: Mapping[str, Any], **usual: Any) -> None:
    """Refuses what a config.json of transformers may say, and no released model does."""
    for key, value in usual.items():
        if said.get(key, value) != value:
            raise ValueError(f"{key}={said[key]} is not known here, only {value}")


def _windows(encoder: State, side: int, vision: Mapping[str, Any], options: LoadOptions) -> dict[str, Any]:
    """Which blocks of a SAM attend over the whole picture, and in which windows the others do.

    Shapes do not tell where windows are as large as the trained grid: then all blocks are global, unless it is said.
    """
    sides = [(shape_of(encoder, f"blocks.{block}.attn.down", 2)[0] + 1) // 2 for block in range(_depth(encoder))]
    others = sorted({each for each in sides if each != side})
    if len(others) > 1:
        raise ValueError(f"its blocks attend in windows of several sizes ({', '.join(map(str, others))} patches)")
    window = options.window or vision.get("window_size") or (others[0] if others else side)
    whole = [block for block, each in enumerate(sides) if each == side]
    said = vision.get("global_attn_indexes", whole)
    return {"window": window, "global_blocks": said if options.global_blocks is None else options.global_blocks}


def _sam_decoder(state: State, said: Mapping[str, Any], options: LoadOptions) -> dict[str, Any]:
    """What the shapes of the weights tell of a SAM's prompt encoder and mask decoder."""
    width = shape_of(state, "masks.mask_tokens.weight", 2)[1]
    heads = options.decoder_heads or said.get("num_attention_heads")
    if heads is None and width != 256:
        told = "say how many its mask decoder has, decoder_heads=N (load.decoder_heads=N on the command line)"
        raise ValueError(f"8 heads belong to a mask decoder of 256 channels, and it has {width}; {told}")
    layers = [int(key.split(".")[3]) for key in state if key.startswith("masks.transformer.layers.")]
    narrow = shape_of(state, "masks.transformer.final_attn_token_to_image.q_proj.weight", 2)[0]
    shapes = {
        "depth": 1 + max(layers, default=-1),
        "heads": heads or 8,
        "hidden": shape_of(state, "masks.transformer.layers.0.mlp.lin1.weight", 2)[0],
        "downsample": max(width // narrow, 1),
        "mask_channels": shape_of(state, "prompts.mask_embed.conv2.weight", 4)[0],
        "iou_hidden": shape_of(state, "masks.iou_prediction_head.proj_in.weight", 2)[0],
        "masks": shape_of(state, "masks.mask_tokens.weight", 2)[0] - 1,
    }
    return shapes | {ours: said[theirs] for ours, theirs in _SAM_DECODER_SAID.items() if theirs in said}


def radio_vit(**known: Any) -> Fields:
    """The configuration of a RADIO without heads, of which its tokens are told apart already (`radio.tidied`)."""

    def fields(state: State, header: Mapping[str, Any], options: LoadOptions) -> dict[str, Any]:
        shapes = _shapes(state, cropped=True)
        said = {ours: header[theirs] for ours, theirs in _SAID.items() if header.get(theirs) is not None}
        if "activation" in said:
            said["activation"] = _called(said["activation"])
        args = section(header, ARGUMENTS)
        both = {**args, **header}
        version, window = str(header.get("version", "")).lower(), both.get("vitdet_window_size")
        usual = _GLOBAL_BLOCKS_OF.get(version) or _GLOBAL_BLOCKS.get(shapes["depth"], 4)
        trained = {
            "position": "cpe",
            "final_norm": "norm.weight" in state,
            "patch_normaliser": "patch_normaliser.mean" in state,
            "align_corners": _align_corners(header) if options.align_corners is None else options.align_corners,
            "window": options.window or (window if isinstance(window, int) and window > 0 else None),
            "global_blocks": _global_blocks(args, shapes["depth"]) or usual,
        }
        heads = options.heads or said.get("heads") or _usual_heads(shapes["width"])
        return {**shapes, **trained, **known, **said, "heads": heads}

    return fields


# Blocks that attend over the whole picture where others attend in windows, by depth: those of ViT-g; others have four
# but for releases whose makers' list says otherwise, as five blocks with windows between two global ones.
_GLOBAL_BLOCKS = {40: 8}
_GLOBAL_BLOCKS_OF = {"radio_v2": 5, "radio_v2.1": 5, "c-radio_v2-vlm-h": 8}

# Releases whose tables of positions were trained to be resized between the centres of cells. Those before were released
# when all were resized between corners (align_corners), and answer so though their makers' code has changed since.
_BETWEEN_CENTRES = ("c-radio_v3-l", "c-radio_v3-g", "c-radio_v4")


_OF_THE_FOURTH = ("dino_v3", "sam3")  # teachers of C-RADIOv4 and of no release before


def _align_corners(header: Mapping[str, Any]) -> bool:
    teachers = section(header, ARGUMENTS).get("teachers")
    names = [each.get("name") for each in teachers if isinstance(each, Mapping)] if isinstance(teachers, list) else []
    is_later = str(header.get("version", "")).lower().startswith(_BETWEEN_CENTRES)
    return not is_later and not any(name in names for name in _OF_THE_FOURTH)


def _global_blocks(args: Mapping[str, Any], depth: int) -> int | None:
    """How many blocks are global, where arguments of a training say it, or how many with windows lie between two."""
    count, between = args.get("vitdet_num_global"), args.get("vitdet_num_windowed")
    if isinstance(count, int) and count > 0:
        return count
    return max(depth // (between + 1), 1) if isinstance(between, int) and between >= 0 else None


def radio_student(state: State, header: Mapping[str, Any], options: LoadOptions) -> dict[str, Any]:
    """The configuration of a RADIO with the heads of its teachers."""
    backbone, tokens = radio_vit()(part_of(state, "backbone"), header, options), header["radio"]
    parts = part_of(state, "adaptors")
    names = dict.fromkeys(key.partition(".")[0] for key in parts)
    found = [name for name in tokens.slots if name in names]
    adaptors = {name: _adaptor(part_of(parts, name), name, tokens.finer.get(name, 1)) for name in found}
    if lacking := [name for name in names if name not in adaptors]:
        raise ValueError(f"it does not say which token is that of {', '.join(lacking)}")
    slots, summary = {name: tokens.slots[name] for name in found}, tokens.summary
    plain = tokens.count in (1, len(found)) and list(slots.values()) == (
        [0] * len(found) if tokens.count == 1 else list(range(len(found)))
    )
    whole = summary == tuple(range(tokens.count))
    said = {"tokens": None if plain else slots, "summary": None if whole else summary}
    return {"backbone": backbone, "adaptors": adaptors, **said}


def _adaptor(state: State, name: str, times: int) -> dict[str, Any]:
    """The heads of a teacher."""
    if not (patches := part_of(state, "patch_head")):
        raise ValueError(f"it has no head for the patches of {name}")
    form, out = _head(patches)
    if out % times**2:
        raise ValueError(f"the head for the patches of {name} answers {out} channels, no grid {times} times finer")
    summary = part_of(state, "summary_head")
    said = {"patches": out // times**2, "summary": None, "hidden": form.pop("hidden")}
    if summary:
        head, channels = _head(summary)
        hidden = head.pop("hidden")
        said |= {"summary": channels, "summary_head": head | ({} if hidden == said["hidden"] else {"hidden": hidden})}
    return {**said, "patch_head": form | ({"upsample": times} if times > 1 else {})}


def _head(state: State) -> tuple[dict[str, Any], int]:
    """What the keys and shapes of a head tell of it, and how many channels it answers."""
    attends = "blocks.0.attn.qkv.weight" in state
    mlp = part_of(state, "mlp") if attends else state
    hidden = shape_of(mlp, "fc1.weight", 2)[0]
    if "final.2.weight" not in mlp and not attends:
        return {"form": "v1", "hidden": hidden}, shape_of(mlp, "fc2.weight", 2)[0]
    inner = 1 + max((int(key.split(".")[1]) for key in mlp if key.startswith("blocks.")), default=-1)
    form: dict[str, Any] = {"form": "attention" if attends else "v2", "hidden": hidden, "inner": inner}
    if attends and "blocks.0.attn.qkv.bias" not in state:
        form["qkv_bias"] = False
    return form, shape_of(mlp, "final.2.weight", 2)[0]


def plain_resnet(state: State, header: Mapping[str, Any], options: LoadOptions) -> dict[str, Any]:
    """The configuration of a plain ResNet."""
    width, channels, *_ = shape_of(state, "stem.0.weight", 4)
    said = {ours: header[theirs] for ours, theirs in (("mean", "image_mean"), ("std", "image_std")) if theirs in header}
    return {"blocks": _blocks(state), "width": width, "channels": channels, **said}


def is_plain(header: Mapping[str, Any]) -> bool:
    """Whether a ResNet of transformers is a plain one of bottlenecks, each stage twice as wide as the one before."""
    first, sides = header.get("embedding_size", 64), header.get("hidden_sizes", [256, 512, 1024, 2048])
    usual = {"layer_type": "bottleneck", "hidden_act": "relu", "downsample_in_first_stage": False}
    return (
        all(header.get(key, value) == value for key, value in {**usual, "downsample_in_bottleneck": False}.items())
        and isinstance(first, int)
        and sides == [4 * first << stage for stage in range(4)]
    )


def part_of(state: State, name: str) -> State:
    """The tensors of one part of a model, by their keys in it."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}


def _part_header(header: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What config.json says of one tower, and the preprocessor of pictures."""
    processor = {key: header[key] for key in ("image_mean", "image_std") if key in header}
    own = header.get(f"{name}_config")
    return {**(processor if name == "vision" else {}), **(own if isinstance(own, Mapping) else {})}


def _activation(known: Mapping[str, Any], header: Mapping[str, Any], options: LoadOptions) -> str:
    """The one activation of both towers.

    Raises:
        ValueError: nothing tells it, or what is said differs.
    """
    said = [_part_header(header, name).get("hidden_act") for name in ("vision", "text")]
    told = {_called(name) for name in said if name is not None} or {known.get("activation")} - {None}
    if len(told) > 1:
        raise ValueError(f"its towers have different activations ({', '.join(sorted(map(str, told)))})")
    (found,) = told or {None}
    if found is not None and options.activation not in (None, found):
        raise ValueError(f"its activation is {found}, not {options.activation}; leave load.activation out")
    if found is None and options.activation is None:
        raise ValueError(
            "its keys do not tell the activation; say load.activation=quick_gelu (OpenAI, DFN, MetaCLIP) or "
            "load.activation=gelu (LAION, DataComp)"
        )
    return str(found or options.activation)


def _called(activation: Any) -> str:
    """An activation by our name for it."""
    return {"gelu_pytorch_tanh": "gelu_tanh"}.get(str(activation), str(activation))


def _text(state: State, header: Mapping[str, Any], options: LoadOptions) -> dict[str, Any]:
    """What the shapes of a text tower's weights tell."""
    vocabulary, width = shape_of(state, "token_embedding.weight", 2)
    heads = options.text_heads or header.get("num_attention_heads") or _usual_heads(width, "text_heads")
    said = {"norm_eps": header["layer_norm_eps"]} if header.get("layer_norm_eps") is not None else {}
    return {
        **said,
        "vocabulary": vocabulary,
        "context": shape_of(state, "positions", 2)[0],
        "width": width,
        "depth": _depth(state),
        "heads": heads,
        "hidden": shape_of(state, "blocks.0.mlp.fc1.weight", 2)[0],
        "embedding": shape_of(state, "projection.weight", 2)[0],
        "projection_bias": "projection.bias" in state,
    }


def _resnet(state: State) -> dict[str, Any]:
    """What the shapes of a ResNet's weights tell; its heads are of 64 channels."""
    width = shape_of(state, "stem.6.weight", 4)[0]
    cells = shape_of(state, "pool.positions", 2)[0] - 1
    side = math.isqrt(max(cells, 0))
    if not side or side**2 != cells:
        raise ValueError(f"its {cells} positions make no square")
    return {
        "blocks": _blocks(state),
        "width": width,
        "heads": max(width * 32 // 64, 1),
        "embedding": shape_of(state, "pool.attn.proj.weight", 2)[0],
        "image_size": side * 32,
    }


def _blocks(state: State) -> tuple[int, ...]:
    """How many blocks each of the four stages of a ResNet has."""
    found = [{key.split(".")[2] for key in state if key.startswith(f"stages.{stage}.")} for stage in range(4)]
    return tuple(map(len, found))


def _shapes(state: State, cropped: bool = False) -> dict[str, Any]:
    """What the shapes of a ViT's weights, under our keys, tell of its configuration.

    Args:
        cropped: whether its positions are those of patches alone, cut out of a table (CPE).
    """
    width, channels, patch, across = shape_of(state, "patch_embed.weight", 4)
    tokens = shape_of(state, "summary_token", 3)[1] if "summary_token" in state else 0
    cells = shape_of(state, "positions.table", 3)[1] - (0 if cropped else tokens)
    side = _side(cells, patch, across)
    gated = "blocks.0.mlp.w12.weight" in state
    rows = shape_of(state, "blocks.0.mlp.w12.weight" if gated else "blocks.0.mlp.fc1.weight", 2)[0]
    return {
        "patch_size": patch,
        "width": width,
        "depth": _depth(state),
        "hidden": rows * 3 // 4 if gated else rows,  # of two matrices, each two thirds of a plain layer's
        "image_size": side * patch,
        "channels": channels,
        "summary_tokens": tokens,
        "registers": state["register_token"].shape[1] if "register_token" in state else 0,
        "feed_forward": "swiglu" if gated else "mlp",
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in state else None,  # where it begins no longer matters
        "mask_token": "mask_token" in state,
        "patch_bias": "patch_embed.bias" in state,
    }


def _side(cells: int, patch: int, across: int) -> int:
    """How many patches lie along a side of the picture that a table of positions covers."""
    side = math.isqrt(max(cells, 0))
    if patch != across or not side or side**2 != cells:
        raise ValueError(f"its {cells} positions of patches of {patch} x {across} pixels make no square")
    return side


def shape_of(state: State, key: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor, which has so many dimensions."""
    if key not in state:
        raise ValueError(f"it has no {key} (by our names)")
    shape = tuple(state[key].shape)
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"{key} (by our names) is of the shape {shape}")
    return shape


def _depth(state: State) -> int:
    return 1 + max((int(key.split(".")[1]) for key in state if key.startswith("blocks.")), default=-1)


# Width of pictures' ViT-H, ViT-g and ViT-bigG (open_clip) and of both towers of SigLIP's SO400M: their heads.
_WIDE_HEADS = {"heads": {1280: 16, 1408: 16, 1664: 16, 1152: 16}, "text_heads": {1152: 16}}


def _usual_heads(width: int, key: str = "heads") -> int:
    if width in _WIDE_HEADS[key]:
        return _WIDE_HEADS[key][width]
    if width % 64:
        told = f"say how many it has, {key}=N (load.{key}=N on the command line)"
        raise ValueError(f"heads of 64 channels do not divide its width of {width}; {told}")
    return width // 64
