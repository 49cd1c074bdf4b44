"""Key tables of models that see with words: CLIP of OpenAI and of open_clip, SigLIP, and those of transformers."""

from __future__ import annotations

import torch
from torch import Tensor

from synoptic.weights.convert import (
    HUGGINGFACE_CLIP_TEXT,
    Change,
    Rule,
    Table,
    qkv,
    same,
)

TRANSPOSED = Change(lambda parts: parts[0].T, lambda tensor: (tensor.T,))
SCALAR = Change(lambda parts: parts[0].reshape(()), lambda tensor: (tensor,))
ONE_NUMBER = Change(lambda parts: parts[0].reshape(()), lambda tensor: (tensor.reshape(1),))
ONE_TOKEN = Change(lambda parts: parts[0].reshape(1, 1, -1), lambda tensor: (tensor.reshape(-1),))
ONE_TABLE = Change(lambda parts: parts[0][None], lambda tensor: (tensor[0],))


def _split_query(tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.split([len(tensor) // 3, len(tensor) // 3 * 2])


QUERY_AND_REST = Change(lambda parts: torch.cat(list(parts)), _split_query)


def _openai_blocks(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (
        same(f"{ours}.blocks.{{i}}.norm1.{{p}}", f"{theirs}.resblocks.{{i}}.ln_1.{{p}}"),
        same(f"{ours}.blocks.{{i}}.norm2.{{p}}", f"{theirs}.resblocks.{{i}}.ln_2.{{p}}"),
        same(f"{ours}.blocks.{{i}}.attn.qkv.weight", f"{theirs}.resblocks.{{i}}.attn.in_proj_weight"),
        same(f"{ours}.blocks.{{i}}.attn.qkv.bias", f"{theirs}.resblocks.{{i}}.attn.in_proj_bias"),
        same(f"{ours}.blocks.{{i}}.attn.proj.{{p}}", f"{theirs}.resblocks.{{i}}.attn.out_proj.{{p}}"),
        same(f"{ours}.blocks.{{i}}.mlp.fc1.{{p}}", f"{theirs}.resblocks.{{i}}.mlp.c_fc.{{p}}"),
        same(f"{ours}.blocks.{{i}}.mlp.fc2.{{p}}", f"{theirs}.resblocks.{{i}}.mlp.c_proj.{{p}}"),
    )


def _huggingface_blocks(ours: str, theirs: str) -> tuple[Rule, ...]:
    layer = f"{theirs}.encoder.layers.{{i}}"
    return (
        same(f"{ours}.blocks.{{i}}.norm1.{{p}}", f"{layer}.layer_norm1.{{p}}"),
        same(f"{ours}.blocks.{{i}}.norm2.{{p}}", f"{layer}.layer_norm2.{{p}}"),
        qkv(f"{ours}.blocks.{{i}}.attn.qkv.{{p}}", f"{layer}.self_attn", "q_proj", "k_proj", "v_proj"),
        same(f"{ours}.blocks.{{i}}.attn.proj.{{p}}", f"{layer}.self_attn.out_proj.{{p}}"),
        same(f"{ours}.blocks.{{i}}.mlp.{{layer}}.{{p}}", f"{layer}.mlp.{{layer}}.{{p}}"),
    )


def _openai_text(prefix: str = "") -> tuple[Rule, ...]:
    return (
        same("text.token_embedding.weight", f"{prefix}token_embedding.weight"),
        same("text.positions", f"{prefix}positional_embedding"),
        *_openai_blocks("text", f"{prefix}transformer"),
        same("text.norm.{p}", f"{prefix}ln_final.{{p}}"),
    )


_WORDS = (
    *_openai_text(),
    Rule("text.projection.weight", ("text_projection",), TRANSPOSED),
    Rule("logit_scale", ("logit_scale",), SCALAR),
)
_BUFFERS = ("input_resolution", "context_length", "vocab_size")  # of OpenAI's archives

# CLIP with a ViT, as OpenAI released it and as open_clip writes it.
CLIP_VIT = Table(
    rules=(
        Rule("image.summary_token", ("visual.class_embedding",), ONE_TOKEN),
        Rule("image.positions.table", ("visual.positional_embedding",), ONE_TABLE),
        same("image.patch_embed.weight", "visual.conv1.weight"),
        same("image.pre_norm.{p}", "visual.ln_pre.{p}"),
        *_openai_blocks("image", "visual.transformer"),
        same("image.norm.{p}", "visual.ln_post.{p}"),
        Rule("projection.weight", ("visual.proj",), TRANSPOSED),
        *_WORDS,
    ),
    ignored=_BUFFERS,
)

# CLIP with a ResNet.
CLIP_RESNET = Table(
    rules=(
        *(same(f"image.stem.{3 * place}.{{p}}", f"visual.conv{place + 1}.{{p}}") for place in range(3)),
        *(same(f"image.stem.{3 * place + 1}.{{p}}", f"visual.bn{place + 1}.{{p}}") for place in range(3)),
        *(
            same(
                f"image.stages.{stage}.{{i}}.shortcut.{place + 1}.{{p}}",
                f"visual.layer{stage + 1}.{{i}}.downsample.{place}.{{p}}",
            )
            for stage in range(4)
            for place in range(2)
        ),
        *(
            same(f"image.stages.{stage}.{{i}}.{{layer}}.{{p}}", f"visual.layer{stage + 1}.{{i}}.{{layer}}.{{p}}")
            for stage in range(4)
        ),
        same("image.pool.positions", "visual.attnpool.positional_embedding"),
        qkv("image.pool.attn.qkv.{p}", "visual.attnpool", "q_proj", "k_proj", "v_proj"),
        same("image.pool.attn.proj.{p}", "visual.attnpool.c_proj.{p}"),
        *_WORDS,
    ),
    ignored=_BUFFERS,
)

# SigLIP as open_clip writes it; its picture encoder is timm's.
OPEN_CLIP_SIGLIP = Table(
    rules=(
        same("image.positions.table", "visual.trunk.pos_embed"),
        same("image.patch_embed.{p}", "visual.trunk.patch_embed.proj.{p}"),
        same("image.blocks.{i}.{part}.{p}", "visual.trunk.blocks.{i}.{part}.{p}"),
        same("image.blocks.{i}.{part}.{layer}.{p}", "visual.trunk.blocks.{i}.{part}.{layer}.{p}"),
        same("image.norm.{p}", "visual.trunk.norm.{p}"),
        same("image.pool.probe", "visual.trunk.attn_pool.latent"),
        Rule(
            "image.pool.attn.qkv.{p}",
            ("visual.trunk.attn_pool.q.{p}", "visual.trunk.attn_pool.kv.{p}"),
            QUERY_AND_REST,
        ),
        same("image.pool.attn.proj.{p}", "visual.trunk.attn_pool.proj.{p}"),
        same("image.pool.norm.{p}", "visual.trunk.attn_pool.norm.{p}"),
        same("image.pool.mlp.{layer}.{p}", "visual.trunk.attn_pool.mlp.{layer}.{p}"),
        *_openai_text("text."),
        same("text.projection.{p}", "text.text_projection.{p}"),
        Rule("logit_scale", ("logit_scale",), SCALAR),
        Rule("logit_bias", ("logit_bias",), SCALAR),
    )
)

# CLIPModel of transformers.
HUGGINGFACE_CLIP = Table(
    rules=(
        Rule("image.summary_token", ("vision_model.embeddings.class_embedding",), ONE_TOKEN),
        Rule("image.positions.table", ("vision_model.embeddings.position_embedding.weight",), ONE_TABLE),
        same("image.patch_embed.weight", "vision_model.embeddings.patch_embedding.weight"),
        same("image.pre_norm.{p}", "vision_model.pre_layrnorm.{p}"),
        *_huggingface_blocks("image", "vision_model"),
        same("image.norm.{p}", "vision_model.post_layernorm.{p}"),
        same("projection.weight", "visual_projection.weight"),
        *(Rule(f"text.{rule.ours}", rule.theirs, rule.change) for rule in HUGGINGFACE_CLIP_TEXT.rules),
        Rule("logit_scale", ("logit_scale",), SCALAR),
    ),
    ignored=("vision_model.embeddings.position_ids", *HUGGINGFACE_CLIP_TEXT.ignored),
)

# SiglipModel of transformers.
HUGGINGFACE_SIGLIP = Table(
    rules=(
        Rule("image.positions.table", ("vision_model.embeddings.position_embedding.weight",), ONE_TABLE),
        same("image.patch_embed.{p}", "vision_model.embeddings.patch_embedding.{p}"),
        *_huggingface_blocks("image", "vision_model"),
        same("image.norm.{p}", "vision_model.post_layernorm.{p}"),
        same("image.pool.probe", "vision_model.head.probe"),
        same("image.pool.attn.qkv.weight", "vision_model.head.attention.in_proj_weight"),
        same("image.pool.attn.qkv.bias", "vision_model.head.attention.in_proj_bias"),
        same("image.pool.attn.proj.{p}", "vision_model.head.attention.out_proj.{p}"),
        same("image.pool.norm.{p}", "vision_model.head.layernorm.{p}"),
        same("image.pool.mlp.{layer}.{p}", "vision_model.head.mlp.{layer}.{p}"),
        same("text.token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        same("text.positions", "text_model.embeddings.position_embedding.weight"),
        *_huggingface_blocks("text", "text_model"),
        same("text.norm.{p}", "text_model.final_layer_norm.{p}"),
        same("text.projection.{p}", "text_model.head.{p}"),
        Rule("logit_scale", ("logit_scale",), ONE_NUMBER),
        Rule("logit_bias", ("logit_bias",), ONE_NUMBER),
    ),
    ignored=("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids"),
)
