"""What files of Grounding DINO say beside the names of their tensors: heads that stand in several places, layers that
are counted otherwise, and the configuration that shapes and config.json tell."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from synoptic.models.grounding_dino import GroundingDinoConfig
from synoptic.models.swin import SwinConfig, distances
from synoptic.weights.fields import Fields, part_of, refuse_other, section, shape_of
from synoptic.weights.options import LoadOptions
from synoptic.weights.reading import State

Values = Mapping[str, Any]

_USUAL_HEADS = 8  # of all releases
_HEAD = re.compile(r"(?:(?:model|transformer)\.decoder\.)?(bbox_embed|class_embed)\.([0-9]+)\.(.+)")
_SHARE = ("decoder_bbox_embed_share", "decoder_cls_embed_share")  # whether layers share their heads
_BRANCH = re.compile(r"bbox_head\.(cls_branches|reg_branches)\.([0-9]+)\.(.+)")
_OTHER_BACKBONE = "it does not see through a Swin, as theirs do"
_BIASES = "cls_branches"
ENCODER_BRANCH = "encoder_head"  # what the last branch of mmdetection's heads is called in its table


def once(state: State, header: Values, options: LoadOptions) -> tuple[State, Values]:
    """Without copies of the decoder's heads: files have them in two places, and once a layer where layers share one.

    Raises:
        ValueError: two that should be the same differ.
    """
    rest: State = {}
    heads: dict[tuple[str, str], dict[int, Tensor]] = {}
    for key, tensor in state.items():
        found = _HEAD.fullmatch(key)
        if found is None:
            rest[key] = tensor
            continue
        layers = heads.setdefault((found[1], found[3]), {})
        if not _same(layers.setdefault(int(found[2]), tensor), tensor):
            raise ValueError(f"{key} differs from its copy elsewhere in the file")
    return rest | _told_apart(heads, any(header.get(name) is False for name in _SHARE)), header


def _told_apart(heads: Mapping[tuple[str, str], Mapping[int, Tensor]], own: bool) -> State:
    """Heads of each layer, or of the first where all are the same, unless it is said that each has its own."""
    shared = not own and all(
        _same(layers[min(layers)], tensor) for layers in heads.values() for tensor in layers.values()
    )
    return {
        f"{name}.{layer}.{rest}": tensor
        for (name, rest), layers in heads.items()
        for layer, tensor in layers.items()
        if not shared or layer == min(layers)
    }


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and (one.is_meta or torch.equal(one, other)))


def twice(state: State, config: GroundingDinoConfig) -> State:
    """With all copies that files of the authors have."""
    heads = {key: state.pop(key) for key in list(state) if _HEAD.fullmatch(key)}
    for layer in range(config.decoder_depth):
        own = f"bbox_embed.{0 if config.shared_heads else layer}."
        for key, tensor in heads.items():
            if key.startswith(own):
                name = f"bbox_embed.{layer}.{key.removeprefix(own)}"
                state |= {name: tensor, f"transformer.decoder.{name}": tensor}
    return state | _indices(config, "backbone.0.layers.{stage}.blocks.{block}.attn.relative_position_index")


def of_mmdetection(state: State, header: Values, options: LoadOptions) -> tuple[State, Values]:
    """Maps that are made of others counted on behind them; the branch of the encoder's head, which stands behind those
    of the decoder's layers, by a name of its own; and biases of scores, which are there rows of one number
    (mmdetection's ContrastiveEmbed), as numbers."""
    maps = len({key.split(".")[2] for key in state if key.startswith("neck.convs.")})
    depth = len({key.split(".")[2] for key in state if key.startswith("decoder.layers.")})
    found: State = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if key.startswith("neck.extra_convs.") and parts[2].isdecimal():
            key = ".".join(["neck", "convs", str(int(parts[2]) + maps), *parts[3:]])
        branch = _BRANCH.fullmatch(key)
        if branch and branch[1] == _BIASES:
            tensor = tensor.reshape(())
        if branch and int(branch[2]) == depth:
            key = f"{ENCODER_BRANCH}.{branch[1]}.{branch[3]}"
        found[key] = tensor
    return found, header


def to_mmdetection(state: State, config: GroundingDinoConfig) -> State:
    """The way back."""
    maps = len(config.backbone.stages) if isinstance(config.backbone, SwinConfig) else 3
    found: State = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if key.startswith("neck.convs.") and int(parts[2]) >= maps:
            key = ".".join(["neck", "extra_convs", str(int(parts[2]) - maps), *parts[3:]])
        if parts[0] == ENCODER_BRANCH:
            key = ".".join(["bbox_head", parts[1], str(config.decoder_depth), *parts[2:]])
        branch = _BRANCH.fullmatch(key)
        found[key] = tensor.reshape(1) if branch and branch[1] == _BIASES else tensor
    return found | _indices(config, "backbone.stages.{stage}.blocks.{block}.attn.w_msa.relative_position_index")


def _indices(config: GroundingDinoConfig, name: str) -> State:
    """What the modules of others keep beside the weights of their windows."""
    if not isinstance(config.backbone, SwinConfig):
        raise ValueError(_OTHER_BACKBONE)
    index = distances(config.backbone.window, torch.device("cpu"))
    blocks = ((stage, block) for stage, depth in enumerate(config.backbone.depths) for block in range(depth))
    return {name.format(stage=stage, block=block): index.clone() for stage, block in blocks}


def grounding_dino(refine_eps: float, head_eps: float) -> Fields:
    """The configuration of a Grounding DINO with a Swin Transformer.

    Args:
        refine_eps, head_eps: of its makers, see GroundingDinoConfig.
    """

    def fields(state: State, header: Values, options: LoadOptions) -> dict[str, Any]:
        _check(header)
        heads = options.heads or header.get("encoder_attention_heads") or _USUAL_HEADS
        levels, width = shape_of(state, "neck.level_embed", 2)
        layers = [_count(state, f"{part}.") for part in ("fusions", "decoder.layers")]
        said = {"temperature": "positional_embedding_temperature", "context": "max_text_len"}
        said |= {"norm_eps": "layer_norm_eps", "drop_path": "fusion_droppath"}
        points = [_points(state, key, heads * levels) for key in ("image_layers.0.attn", "decoder.layers.0.image_attn")]
        return {
            "backbone": _swin(part_of(state, "backbone"), header),
            "text": _bert(part_of(state, "text.bert"), section(header, "text_config"), options),
            "width": width,
            "heads": heads,
            "hidden": shape_of(state, "image_layers.0.mlp.fc1.weight", 2)[0],
            **dict(zip(("encoder_depth", "decoder_depth"), layers, strict=True)),
            "levels": levels,
            **dict(zip(("encoder_points", "decoder_points"), points, strict=True)),
            "queries": shape_of(state, "queries", 2)[0],
            "scaled": "select.score.bias" in state,
            "shared_heads": _count(state, "decoder.boxes.") == 1,
            "refine_eps": refine_eps,
            "head_eps": head_eps,
            **{ours: header[theirs] for ours, theirs in said.items() if header.get(theirs) is not None},
        }

    return fields


def _check(header: Values) -> None:
    """Refuses what a config.json may say and no release does."""
    usual = {"two_stage": True, "embedding_init_target": True, "two_stage_bbox_embed_share": False, "query_dim": 4}
    refuse_other(header, **usual, position_embedding_type="sine", activation_function="relu")
    heads, hidden = (header.get(f"encoder_{name}") for name in ("attention_heads", "ffn_dim"))
    refuse_other(header, decoder_attention_heads=heads or _USUAL_HEADS, decoder_ffn_dim=hidden or 2048)
    refuse_other(section(header, "backbone_config"), model_type="swin", use_absolute_embeddings=False, qkv_bias=True)
    refuse_other(section(header, "backbone_config"), hidden_act="gelu")
    refuse_other(section(header, "text_config"), model_type="bert", hidden_act="gelu")


def _count(state: State, begin: str) -> int:
    """How many numbered parts there are behind what their keys begin with."""
    return len({key.removeprefix(begin).split(".")[0] for key in state if key.startswith(begin)})


def _points(state: State, attention: str, each: int) -> int:
    """Points that a head looks at in a level."""
    weights = shape_of(state, f"{attention}.attention_weights.weight", 2)[0]
    if weights % each:
        told = "say how many it has, heads=N (load.heads=N on the command line)"
        raise ValueError(f"its {weights} attention weights are no multiple of {each}, of 8 heads in all levels; {told}")
    return weights // each


def _swin(state: State, header: Values) -> dict[str, Any]:
    """The configuration of a Swin Transformer."""
    said = section(header, "backbone_config")
    width, channels, patch, _ = shape_of(state, "patch_embed.weight", 4)
    depths = [_count(state, f"stages.{stage}.") for stage in range(_count(state, "stages."))]
    tables = [shape_of(state, f"stages.{stage}.0.attn.relative_position_bias_table", 2) for stage in range(len(depths))]
    side = round(tables[0][0] ** 0.5) if tables else 0
    statistics = {
        ours: header[theirs] for ours, theirs in (("mean", "image_mean"), ("std", "image_std")) if theirs in header
    }
    kept = {"norm_eps": "layer_norm_eps", "drop_path": "drop_path_rate"}
    return {
        "width": width,
        "depths": depths,
        "heads": [heads for _, heads in tables],
        "window": (side + 1) // 2,
        "hidden": shape_of(state, "stages.0.0.mlp.fc1.weight", 2)[0] // width,
        "patch_size": patch,
        "channels": channels,
        "stages": sorted(
            int(key.split(".")[1]) for key in state if key.startswith("norms.") and key.endswith("weight")
        ),
        **{ours: said[theirs] for ours, theirs in kept.items() if theirs in said},
        **statistics,
    }


def _bert(state: State, said: Values, options: LoadOptions) -> dict[str, Any]:
    """The configuration of a BERT."""
    vocabulary, width = shape_of(state, "embeddings.word_embeddings.weight", 2)
    heads = options.text_heads or said.get("num_attention_heads") or (width // 64 if not width % 64 else None)
    if heads is None:
        told = "say how many it has, text_heads=N (load.text_heads=N on the command line)"
        raise ValueError(f"heads of 64 channels do not divide the width of {width} of its words; {told}")
    return {
        "vocabulary": vocabulary,
        "width": width,
        "depth": _count(state, "encoder.layer."),
        "heads": heads,
        "hidden": shape_of(state, "encoder.layer.0.intermediate.dense.weight", 2)[0],
        "positions": shape_of(state, "embeddings.position_embeddings.weight", 2)[0],
        "types": shape_of(state, "embeddings.token_type_embeddings.weight", 2)[0],
        **({"norm_eps": said["layer_norm_eps"]} if "layer_norm_eps" in said else {}),
    }


def header(kind: str, name: str) -> Callable[[GroundingDinoConfig], dict[str, Any]]:
    """config.json of GroundingDinoForObjectDetection, or of MMGroundingDinoForObjectDetection."""

    def said(config: GroundingDinoConfig) -> dict[str, Any]:
        swin, text = config.backbone, config.text
        if not isinstance(swin, SwinConfig):
            raise ValueError(_OTHER_BACKBONE)
        stages = [f"stage{stage + 1}" for stage in swin.stages]
        backbone = {
            "model_type": "swin",
            "embed_dim": swin.width,
            "depths": list(swin.depths),
            "num_heads": list(swin.heads),
            "window_size": swin.window,
            "mlp_ratio": float(swin.hidden),
            "patch_size": swin.patch_size,
            "num_channels": swin.channels,
            "out_features": stages,
            "out_indices": [stage + 1 for stage in swin.stages],
            "layer_norm_eps": swin.norm_eps,
            "drop_path_rate": swin.drop_path,
        }
        bert = {
            "model_type": "bert",
            "vocab_size": text.vocabulary,
            "hidden_size": text.width,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.heads,
            "intermediate_size": text.hidden,
            "max_position_embeddings": text.positions,
            "type_vocab_size": text.types,
            "layer_norm_eps": text.norm_eps,
        }
        if config.temperature % 1:
            raise ValueError(f"transformers takes no temperature={config.temperature}, which is not whole")
        heads = dict.fromkeys(_SHARE if config.scaled else _SHARE[:1], config.shared_heads)
        return {
            "model_type": kind,
            "architectures": [name],
            "backbone_config": backbone,
            "text_config": bert,
            "d_model": config.width,
            "num_queries": config.queries,
            "num_feature_levels": config.levels,
            "encoder_layers": config.encoder_depth,
            "decoder_layers": config.decoder_depth,
            "encoder_ffn_dim": config.hidden,
            "decoder_ffn_dim": config.hidden,
            "encoder_attention_heads": config.heads,
            "decoder_attention_heads": config.heads,
            "encoder_n_points": config.encoder_points,
            "decoder_n_points": config.decoder_points,
            "positional_embedding_temperature": int(config.temperature),
            "max_text_len": config.context,
            "layer_norm_eps": config.norm_eps,
            "fusion_droppath": config.drop_path,
            "dropout": 0.0,
            **heads,
        }

    return said
