"""Key tables of Grounding DINO: of its authors' files, of MM-Grounding-DINO's, and of folders of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from synoptic.weights.convert import Change, Rule, Table, qkv, same
from synoptic.weights.grounding import ENCODER_BRANCH

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


def _fused(theirs: str) -> Iterator[Rule]:
    """Fusion, by the names of GLIP's code."""
    yield from _renamed(_FUSION, theirs, {"image_norm": "layer_norm_v", "text_norm": "layer_norm_l"})
    yield from _renamed(_FUSION, f"{theirs}.attn", {"image_query": "v_proj", "text_key": "l_proj"})
    yield from _renamed(_FUSION, f"{theirs}.attn", {"image_value": "values_v_proj", "text_value": "values_l_proj"})
    yield from _renamed(_FUSION, f"{theirs}.attn", {"image_out": "out_v_proj", "text_out": "out_l_proj"})
    yield same(f"{_FUSION}.image_scale", f"{theirs}.gamma_v")
    yield same(f"{_FUSION}.text_scale", f"{theirs}.gamma_l")


# Files of the authors. Their heads for boxes stand in several places, see `grounding.py`.
GROUNDING_DINO = Table(
    rules=(
        same("backbone.patch_embed.{p}", "backbone.0.patch_embed.proj.{p}"),
        same("backbone.patch_norm.{p}", "backbone.0.patch_embed.norm.{p}"),
        *_kept(_STAGE, f"{_SWIN}.blocks.{{i}}", "norm1.{p}", "norm2.{p}", "attn.qkv.{p}", "attn.proj.{p}"),
        *_kept(_STAGE, f"{_SWIN}.blocks.{{i}}", "mlp.fc1.{p}", "mlp.fc2.{p}"),
        same(f"{_STAGE}.attn.relative_position_bias_table", f"{_SWIN}.blocks.{{i}}.attn.relative_position_bias_table"),
        *_kept("backbone.merges.{stage}", f"{_SWIN}.downsample", "norm.{p}", "reduction.{p}"),
        same("backbone.norms.{i}.{p}", "backbone.0.norm{i}.{p}"),
        *_kept("text.bert", "bert", *_BERT),
        same("text.projection.{p}", "feat_map.{p}"),
        same("neck.projections.{i}.{p}", "input_proj.{i}.0.{p}"),
        same("neck.norms.{i}.{p}", "input_proj.{i}.1.{p}"),
        same("neck.level_embed", "transformer.level_embed"),
        *_fused(_FUSIONS),
        *_attention(f"{_WORDS}.attn", f"{_WORDS_THERE}.self_attn"),
        *_renamed(_WORDS, _WORDS_THERE, {**_FORWARD, "norm1": "norm1", "norm2": "norm2"}),
        *_kept(f"{_IMAGE}.attn", f"{_IMAGE_THERE}.self_attn", "{part}.{p}"),
        *_renamed(_IMAGE, _IMAGE_THERE, {**_FORWARD, "norm1": "norm1", "norm2": "norm2"}),
        *_renamed("select", "transformer", {"enc_output": "enc_output", "norm": "enc_output_norm"}),
        same("select.box.{i}.{p}", "transformer.enc_out_bbox_embed.layers.{i}.{p}"),
        same("queries", "transformer.tgt_embed.weight"),
        *_attention(f"{_DECODER}.attn", f"{_DECODER_THERE}.self_attn"),
        *_attention(f"{_DECODER}.text_attn", f"{_DECODER_THERE}.ca_text"),
        *_kept(f"{_DECODER}.image_attn", f"{_DECODER_THERE}.cross_attn", "{part}.{p}"),
        *_renamed(_DECODER, _DECODER_THERE, {**_FORWARD, "norm1": "norm2", "norm2": "catext_norm"}),
        *_renamed(_DECODER, _DECODER_THERE, {"norm3": "norm1", "norm4": "norm3"}),
        same("decoder.norm.{p}", "transformer.decoder.norm.{p}"),
        same("decoder.ref_point_head.0.{p}", "transformer.decoder.ref_point_head.layers.0.{p}"),
        same("decoder.ref_point_head.2.{p}", "transformer.decoder.ref_point_head.layers.1.{p}"),
        same("decoder.boxes.{layer}.{i}.{p}", "bbox_embed.{layer}.layers.{i}.{p}"),
    ),
    ignored=(
        "bert.pooler.dense.{p}",
        "bert.embeddings.position_ids",
        "label_enc.weight",
        f"{_SWIN}.blocks.{{i}}.attn.relative_position_index",
    ),
)


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Channels of the four patches that are merged, patch after patch, where mmdetection has them channel after channel
    and the patches line by line."""
    (tensor,) = parts
    four = tensor.unflatten(-1, (-1, 4)).transpose(-1, -2)
    return four[..., _COLUMNS, :].flatten(-2)


def _channel_by_channel(tensor: Tensor) -> tuple[Tensor]:
    four = tensor.unflatten(-1, (4, -1))
    return (four[..., _COLUMNS, :].transpose(-1, -2).flatten(-2),)


_COLUMNS = [0, 2, 1, 3]  # lines by columns, which is its own way back
_MERGED = Change(_side_by_side, _channel_by_channel)
_MM_BLOCK, _MM_STAGE = "backbone.stages.{stage}.blocks.{i}", "backbone.stages.{stage}"
_MM_FUSIONS, _MM_WORDS = "encoder.fusion_layers.{i}", "encoder.text_layers.{i}"
_MM_IMAGE, _MM_DECODER = "encoder.layers.{i}", "decoder.layers.{i}"
_MM_FORWARD = {"mlp.fc1": "ffn.layers.0.0", "mlp.fc2": "ffn.layers.1"}
_MM_BERT = "language_model.language_backbone.body.model"


def _numbered(ours: str, theirs: str, count: int) -> Iterator[Rule]:
    """Norms in the order of what they stand behind."""
    yield from _renamed(ours, theirs, {f"norm{place + 1}": f"norms.{place}" for place in range(count)})


# Files of MM-Grounding-DINO, of mmdetection.
MM_GROUNDING_DINO = Table(
    rules=(
        same("backbone.patch_embed.{p}", "backbone.patch_embed.projection.{p}"),
        same("backbone.patch_norm.{p}", "backbone.patch_embed.norm.{p}"),
        *_kept(_STAGE, _MM_BLOCK, "norm1.{p}", "norm2.{p}"),
        *_renamed(_STAGE, _MM_BLOCK, {"attn.qkv": "attn.w_msa.qkv", "attn.proj": "attn.w_msa.proj", **_MM_FORWARD}),
        same(f"{_STAGE}.attn.relative_position_bias_table", f"{_MM_BLOCK}.attn.w_msa.relative_position_bias_table"),
        Rule("backbone.merges.{stage}.norm.{p}", (f"{_MM_STAGE}.downsample.norm.{{p}}",), _MERGED),
        Rule("backbone.merges.{stage}.reduction.{p}", (f"{_MM_STAGE}.downsample.reduction.{{p}}",), _MERGED),
        same("backbone.norms.{i}.{p}", "backbone.norm{i}.{p}"),
        *_kept("text.bert", _MM_BERT, *_BERT),
        same("text.projection.{p}", "text_feat_map.{p}"),
        same("neck.projections.{i}.{p}", "neck.convs.{i}.conv.{p}"),
        same("neck.norms.{i}.{p}", "neck.convs.{i}.gn.{p}"),
        same("neck.level_embed", "level_embed"),
        *_fused(_MM_FUSIONS),
        *_attention(f"{_WORDS}.attn", f"{_MM_WORDS}.self_attn.attn"),
        *_renamed(_WORDS, _MM_WORDS, _MM_FORWARD),
        *_numbered(_WORDS, _MM_WORDS, 2),
        *_kept(f"{_IMAGE}.attn", f"{_MM_IMAGE}.self_attn", "{part}.{p}"),
        *_renamed(_IMAGE, _MM_IMAGE, _MM_FORWARD),
        *_numbered(_IMAGE, _MM_IMAGE, 2),
        same("select.enc_output.{p}", "memory_trans_fc.{p}"),
        same("select.norm.{p}", "memory_trans_norm.{p}"),
        *(same(f"select.box.{place}.{{p}}", f"{ENCODER_BRANCH}.reg_branches.{2 * place}.{{p}}") for place in range(3)),
        same("select.score.bias", f"{ENCODER_BRANCH}.cls_branches.bias"),
        same("queries", "query_embedding.weight"),
        *_attention(f"{_DECODER}.attn", f"{_MM_DECODER}.self_attn.attn"),
        *_attention(f"{_DECODER}.text_attn", f"{_MM_DECODER}.cross_attn_text.attn"),
        *_kept(f"{_DECODER}.image_attn", f"{_MM_DECODER}.cross_attn", "{part}.{p}"),
        *_renamed(_DECODER, _MM_DECODER, _MM_FORWARD),
        *_numbered(_DECODER, _MM_DECODER, 4),
        same("decoder.norm.{p}", "decoder.norm.{p}"),
        same("decoder.ref_point_head.0.{p}", "decoder.ref_point_head.layers.0.{p}"),
        same("decoder.ref_point_head.2.{p}", "decoder.ref_point_head.layers.1.{p}"),
        *(
            same(f"decoder.boxes.{{i}}.{place}.{{p}}", f"bbox_head.reg_branches.{{i}}.{2 * place}.{{p}}")
            for place in range(3)
        ),
        same("decoder.scores.{i}.bias", "bbox_head.cls_branches.{i}.bias"),
    ),
    ignored=(
        f"{_MM_BERT}.embeddings.position_ids",
        f"{_MM_BERT}.pooler.dense.{{p}}",
        "dn_query_generator.label_embedding.weight",
        f"{_MM_BLOCK}.attn.w_msa.relative_position_index",
    ),
)

_SWIN_THERE = "model.backbone.conv_encoder.model"
_STAGE_THERE = f"{_SWIN_THERE}.encoder.layers.{{stage}}"
_BLOCK_THERE = f"{_STAGE_THERE}.blocks.{{i}}"
_LAYER_THERE = "model.encoder.layers.{i}"
_FUSION_THERE, _PHRASES_THERE = f"{_LAYER_THERE}.fusion_layer", f"{_LAYER_THERE}.text_enhancer_layer"
_DEFORMABLE_THERE, _QUERIES_THERE = f"{_LAYER_THERE}.deformable_layer", "model.decoder.layers.{i}"
_FULLY = {"mlp.fc1": "fc1", "mlp.fc2": "fc2"}


def _attention_of_transformers(ours: str, theirs: str) -> Iterator[Rule]:
    yield qkv(f"{ours}.qkv.{{p}}", theirs, "query", "key", "value")
    yield same(f"{ours}.proj.{{p}}", f"{theirs}.out_proj.{{p}}")


# GroundingDinoForObjectDetection and MMGroundingDinoForObjectDetection of transformers, whose norms of stages are named
# after them, counted from 1.
HUGGINGFACE_GROUNDING_DINO = Table(
    rules=(
        same("backbone.patch_embed.{p}", f"{_SWIN_THERE}.embeddings.patch_embeddings.projection.{{p}}"),
        same("backbone.patch_norm.{p}", f"{_SWIN_THERE}.embeddings.norm.{{p}}"),
        *_renamed(_STAGE, _BLOCK_THERE, {"norm1": "layernorm_before", "norm2": "layernorm_after"}),
        *_renamed(_STAGE, _BLOCK_THERE, {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}),
        qkv(f"{_STAGE}.attn.qkv.{{p}}", f"{_BLOCK_THERE}.attention.self", "query", "key", "value"),
        same(f"{_STAGE}.attn.proj.{{p}}", f"{_BLOCK_THERE}.attention.output.dense.{{p}}"),
        same(
            f"{_STAGE}.attn.relative_position_bias_table", f"{_BLOCK_THERE}.attention.self.relative_position_bias_table"
        ),
        *_kept("backbone.merges.{stage}", f"{_STAGE_THERE}.downsample", "norm.{p}", "reduction.{p}"),
        *(
            same(f"backbone.norms.{stage}.{{p}}", f"{_SWIN_THERE}.hidden_states_norms.stage{stage + 1}.{{p}}")
            for stage in range(8)
        ),
        *_kept("text.bert", "model.text_backbone", *_BERT),
        same("text.projection.{p}", "model.text_projection.{p}"),
        same("neck.projections.{i}.{p}", "model.input_proj_vision.{i}.0.{p}"),
        same("neck.norms.{i}.{p}", "model.input_proj_vision.{i}.1.{p}"),
        same("neck.level_embed", "model.level_embed"),
        *_renamed(_FUSION, _FUSION_THERE, {"image_norm": "layer_norm_vision", "text_norm": "layer_norm_text"}),
        *_renamed(_FUSION, f"{_FUSION_THERE}.attn", {"image_query": "vision_proj", "text_key": "text_proj"}),
        *_renamed(
            _FUSION, f"{_FUSION_THERE}.attn", {"image_value": "values_vision_proj", "text_value": "values_text_proj"}
        ),
        *_renamed(_FUSION, f"{_FUSION_THERE}.attn", {"image_out": "out_vision_proj", "text_out": "out_text_proj"}),
        same(f"{_FUSION}.image_scale", f"{_FUSION_THERE}.vision_param"),
        same(f"{_FUSION}.text_scale", f"{_FUSION_THERE}.text_param"),
        *_attention_of_transformers(f"{_WORDS}.attn", f"{_PHRASES_THERE}.self_attn"),
        *_renamed(_WORDS, _PHRASES_THERE, {**_FULLY, "norm1": "layer_norm_before", "norm2": "layer_norm_after"}),
        *_kept(f"{_IMAGE}.attn", f"{_DEFORMABLE_THERE}.self_attn", "{part}.{p}"),
        *_renamed(_IMAGE, _DEFORMABLE_THERE, {**_FULLY, "norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"}),
        *_renamed("select", "model", {"enc_output": "enc_output", "norm": "enc_output_norm"}),
        same("select.box.{i}.{p}", "model.encoder_output_bbox_embed.layers.{i}.{p}"),
        same("select.score.bias", "model.encoder_output_class_embed.bias"),
        same("queries", "model.query_position_embeddings.weight"),
        *_attention_of_transformers(f"{_DECODER}.attn", f"{_QUERIES_THERE}.self_attn"),
        *_attention_of_transformers(f"{_DECODER}.text_attn", f"{_QUERIES_THERE}.encoder_attn_text"),
        *_kept(f"{_DECODER}.image_attn", f"{_QUERIES_THERE}.encoder_attn", "{part}.{p}"),
        *_renamed(
            _DECODER,
            _QUERIES_THERE,
            {**_FULLY, "norm1": "self_attn_layer_norm", "norm2": "encoder_attn_text_layer_norm"},
        ),
        *_renamed(_DECODER, _QUERIES_THERE, {"norm3": "encoder_attn_layer_norm", "norm4": "final_layer_norm"}),
        same("decoder.norm.{p}", "model.decoder.layer_norm.{p}"),
        same("decoder.ref_point_head.0.{p}", "model.decoder.reference_points_head.layers.0.{p}"),
        same("decoder.ref_point_head.2.{p}", "model.decoder.reference_points_head.layers.1.{p}"),
        same("decoder.boxes.{layer}.{i}.{p}", "bbox_embed.{layer}.layers.{i}.{p}"),
        same("decoder.scores.{i}.bias", "class_embed.{i}.bias"),
    ),
    ignored=(
        f"{_SWIN_THERE}.swin.layernorm.{{p}}",
        f"{_BLOCK_THERE}.attention.self.relative_position_index",
        "model.text_backbone.embeddings.position_ids",
    ),
)
