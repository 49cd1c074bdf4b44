"""Key tables of Grounding DINO: of its authors' files and of folders of transformers."""

from __future__ import annotations

from collections.abc import Iterator

from synoptic.weights.convert import Rule, Table, qkv, same

_BERT = (
    "embeddings.{part}.{p}",
    "encoder.layer.{i}.attention.self.{part}.{p}",
    "encoder.layer.{i}.attention.output.{part}.{p}",
    "encoder.layer.{i}.intermediate.dense.{p}",
    "encoder.layer.{i}.output.{part}.{p}",
)


def _renamed(ours: str, theirs: str, names: dict[str, str]) -> Iterator[Rule]:
    """Layers with a weight and a bias, ours by theirs."""
    for name, their_name in names.items():
        yield same(f"{ours}.{name}.{{p}}", f"{theirs}.{their_name}.{{p}}")


def _kept(ours: str, theirs: str, *keys: str) -> Iterator[Rule]:
    """Keys that both have alike behind what they begin with."""
    for key in keys:
        yield same(f"{ours}.{key}", f"{theirs}.{key}")


_STAGE, _SWIN = "backbone.stages.{stage}.{i}", "backbone.0.layers.{stage}"
_FUSION, _FUSIONS = "fusions.{i}", "transformer.encoder.fusion_layers.{i}"
_WORDS, _WORDS_THERE = "text_layers.{i}", "transformer.encoder.text_layers.{i}"
_IMAGE, _IMAGE_THERE = "image_layers.{i}", "transformer.encoder.layers.{i}"
_DECODER, _DECODER_THERE = "decoder.layers.{i}", "transformer.decoder.layers.{i}"
_FORWARD = {"mlp.fc1": "linear1", "mlp.fc2": "linear2"}


def _attention(ours: str, theirs: str) -> Iterator[Rule]:
    """PyTorch's own multi-head attention."""
    for p in ("weight", "bias"):
        yield same(f"{ours}.qkv.{p}", f"{theirs}.in_proj_{p}")
    yield same(f"{ours}.proj.{{p}}", f"{theirs}.out_proj.{{p}}")


# Files of the authors. Their heads for boxes stand in several places, see `grounding.py`.
GROUNDING_DINO = Table(
    rules=(
        same("backbone.patch_embed.{p}", "backbone.0.patch_embed.proj.{p}"),
        same("backbone.patch_norm.{p}", "backbone.0.patch_embed.norm.{p}"),
        *_kept(_STAGE, f"{_SWIN}.blocks.{{i}}", "norm1.{p}", "norm2.{p}", "attn.qkv.{p}", "attn.proj.{p}"),
        *_kept(_STAGE, f"{_SWIN}.blocks.{{i}}", "mlp.fc1.{p}", "mlp.fc2.{p}"),
        same(f"{_STAGE}.attn.distances", f"{_SWIN}.blocks.{{i}}.attn.relative_position_bias_table"),
        *_kept("backbone.merges.{stage}", f"{_SWIN}.downsample", "norm.{p}", "reduction.{p}"),
        same("backbone.norms.{i}.{p}", "backbone.0.norm{i}.{p}"),
        *_kept("text.bert", "bert", *_BERT),
        same("text.projection.{p}", "feat_map.{p}"),
        same("neck.projections.{i}.{p}", "input_proj.{i}.0.{p}"),
        same("neck.norms.{i}.{p}", "input_proj.{i}.1.{p}"),
        same("neck.level_embed", "transformer.level_embed"),
        *_renamed(_FUSION, _FUSIONS, {"image_norm": "layer_norm_v", "text_norm": "layer_norm_l"}),
        *_renamed(_FUSION, f"{_FUSIONS}.attn", {"image_query": "v_proj", "text_key": "l_proj"}),
        *_renamed(_FUSION, f"{_FUSIONS}.attn", {"image_value": "values_v_proj", "text_value": "values_l_proj"}),
        *_renamed(_FUSION, f"{_FUSIONS}.attn", {"image_out": "out_v_proj", "text_out": "out_l_proj"}),
        same(f"{_FUSION}.image_scale", f"{_FUSIONS}.gamma_v"),
        same(f"{_FUSION}.text_scale", f"{_FUSIONS}.gamma_l"),
        *_attention(f"{_WORDS}.attn", f"{_WORDS_THERE}.self_attn"),
        *_renamed(_WORDS, _WORDS_THERE, {**_FORWARD, "norm1": "norm1", "norm2": "norm2"}),
        *_kept(f"{_IMAGE}.attn", f"{_IMAGE_THERE}.self_attn", "{part}.{p}"),
        *_renamed(_IMAGE, _IMAGE_THERE, {**_FORWARD, "norm1": "norm1", "norm2": "norm2"}),
        *_renamed("select", "transformer", {"memory": "enc_output", "norm": "enc_output_norm"}),
        same("select.box.{i}.{p}", "transformer.enc_out_bbox_embed.layers.{i}.{p}"),
        same("queries", "transformer.tgt_embed.weight"),
        *_attention(f"{_DECODER}.attn", f"{_DECODER_THERE}.self_attn"),
        *_attention(f"{_DECODER}.text_attn", f"{_DECODER_THERE}.ca_text"),
        *_kept(f"{_DECODER}.image_attn", f"{_DECODER_THERE}.cross_attn", "{part}.{p}"),
        *_renamed(_DECODER, _DECODER_THERE, {**_FORWARD, "norm1": "norm2", "norm2": "catext_norm"}),
        *_renamed(_DECODER, _DECODER_THERE, {"norm3": "norm1", "norm4": "norm3"}),
        same("decoder.norm.{p}", "transformer.decoder.norm.{p}"),
        same("decoder.place.0.{p}", "transformer.decoder.ref_point_head.layers.0.{p}"),
        same("decoder.place.2.{p}", "transformer.decoder.ref_point_head.layers.1.{p}"),
        same("decoder.boxes.{layer}.{i}.{p}", "bbox_embed.{layer}.layers.{i}.{p}"),
    ),
    ignored=(
        "bert.pooler.dense.{p}",
        "bert.embeddings.position_ids",
        "label_enc.weight",
        f"{_SWIN}.blocks.{{i}}.attn.relative_position_index",
    ),
)
