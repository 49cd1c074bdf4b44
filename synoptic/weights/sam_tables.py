"""Key tables of SAM: of its makers' files, and of SamModel and SamVisionModel of transformers, with what these say of
themselves beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from synoptic.models.sam import SamConfig
from synoptic.weights.convert import Change, Rule, Table, same


def _in_a_line(parts: Sequence[Tensor]) -> Tensor:
    """(1, h, h, D) positions as (1, h*h, D)."""
    (grid,) = parts
    if grid.ndim != 4 or grid.shape[1] != grid.shape[2]:
        raise ValueError(f"its positions of the shape {tuple(grid.shape)} make no square")
    return grid.flatten(1, 2)


def _in_a_square(table: Tensor) -> tuple[Tensor, ...]:
    side = round(table.shape[1] ** 0.5)
    return (table.unflatten(1, (side, side)),)


POSITIONS = Change(_in_a_line, _in_a_square)

_MASKS = "decoder.masks"
_PROMPTS = "decoder.prompts"

# Files of the makers; the statistics of pixels, which they do not have, are in some that others wrote.
SAM = Table(
    rules=(
        Rule("encoder.positions.table", ("image_encoder.pos_embed",), POSITIONS),
        same("encoder.patch_embed.{p}", "image_encoder.patch_embed.proj.{p}"),
        same("encoder.blocks.{i}.norm1.{p}", "image_encoder.blocks.{i}.norm1.{p}"),
        same("encoder.blocks.{i}.norm2.{p}", "image_encoder.blocks.{i}.norm2.{p}"),
        same("encoder.blocks.{i}.attn.down", "image_encoder.blocks.{i}.attn.rel_pos_h"),
        same("encoder.blocks.{i}.attn.across", "image_encoder.blocks.{i}.attn.rel_pos_w"),
        same("encoder.blocks.{i}.attn.{layer}.{p}", "image_encoder.blocks.{i}.attn.{layer}.{p}"),
        same("encoder.blocks.{i}.mlp.fc1.{p}", "image_encoder.blocks.{i}.mlp.lin1.{p}"),
        same("encoder.blocks.{i}.mlp.fc2.{p}", "image_encoder.blocks.{i}.mlp.lin2.{p}"),
        same("encoder.neck.{i}.{p}", "image_encoder.neck.{i}.{p}"),
        same(
            f"{_PROMPTS}.shared_embedding.positional_embedding",
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        ),
        same(f"{_PROMPTS}.point_embed.{{i}}.weight", "prompt_encoder.point_embeddings.{i}.weight"),
        same(f"{_PROMPTS}.not_a_point_embed.weight", "prompt_encoder.not_a_point_embed.weight"),
        same(f"{_PROMPTS}.no_mask_embed.weight", "prompt_encoder.no_mask_embed.weight"),
        *(
            same(f"{_PROMPTS}.mask_embed.{layer}.{{p}}", f"prompt_encoder.mask_downscaling.{place}.{{p}}")
            for place, layer in ((0, "conv1"), (1, "layer_norm1"), (3, "conv2"), (4, "layer_norm2"), (6, "conv3"))
        ),
        same(f"{_MASKS}.iou_token.weight", "mask_decoder.iou_token.weight"),
        same(f"{_MASKS}.mask_tokens.weight", "mask_decoder.mask_tokens.weight"),
        *(
            same(
                f"{_MASKS}.transformer.layers.{{i}}.layer_norm{number}.{{p}}",
                f"mask_decoder.transformer.layers.{{i}}.norm{number}.{{p}}",
            )
            for number in (1, 2, 3, 4)
        ),
        same(
            f"{_MASKS}.transformer.layers.{{i}}.{{part}}.{{layer}}.{{p}}",
            "mask_decoder.transformer.layers.{i}.{part}.{layer}.{p}",
        ),
        same(
            f"{_MASKS}.transformer.final_attn_token_to_image.{{layer}}.{{p}}",
            "mask_decoder.transformer.final_attn_token_to_image.{layer}.{p}",
        ),
        same(f"{_MASKS}.transformer.layer_norm_final_attn.{{p}}", "mask_decoder.transformer.norm_final_attn.{p}"),
        *(
            same(f"{_MASKS}.{layer}.{{p}}", f"mask_decoder.output_upscaling.{place}.{{p}}")
            for place, layer in ((0, "upscale_conv1"), (1, "upscale_layer_norm"), (3, "upscale_conv2"))
        ),
        *(
            same(f"{_MASKS}.{head}.{layer}.{{p}}", f"mask_decoder.{head}.layers.{place}.{{p}}")
            for head in ("output_hypernetworks_mlps.{i}", "iou_prediction_head")
            for place, layer in enumerate(("proj_in", "layers.0", "proj_out"))
        ),
    ),
    ignored=("pixel_mean", "pixel_std"),
)

# Folders of transformers, whose names those of the decoder are.
HUGGINGFACE_SAM = Table(
    rules=(
        Rule("encoder.positions.table", ("vision_encoder.pos_embed",), POSITIONS),
        same("encoder.patch_embed.{p}", "vision_encoder.patch_embed.projection.{p}"),
        same("encoder.blocks.{i}.norm1.{p}", "vision_encoder.layers.{i}.layer_norm1.{p}"),
        same("encoder.blocks.{i}.norm2.{p}", "vision_encoder.layers.{i}.layer_norm2.{p}"),
        same("encoder.blocks.{i}.attn.down", "vision_encoder.layers.{i}.attn.rel_pos_h"),
        same("encoder.blocks.{i}.attn.across", "vision_encoder.layers.{i}.attn.rel_pos_w"),
        same("encoder.blocks.{i}.attn.{layer}.{p}", "vision_encoder.layers.{i}.attn.{layer}.{p}"),
        same("encoder.blocks.{i}.mlp.fc1.{p}", "vision_encoder.layers.{i}.mlp.lin1.{p}"),
        same("encoder.blocks.{i}.mlp.fc2.{p}", "vision_encoder.layers.{i}.mlp.lin2.{p}"),
        *(
            same(f"encoder.neck.{place}.{{p}}", f"vision_encoder.neck.{layer}.{{p}}")
            for place, layer in enumerate(("conv1", "layer_norm1", "conv2", "layer_norm2"))
        ),
        same(f"{_PROMPTS}.shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding"),
        *(
            same(f"{_PROMPTS}.{key}", f"prompt_encoder.{key}")
            for key in (
                *("point_embed.{i}.weight", "not_a_point_embed.weight", "no_mask_embed.weight"),
                "mask_embed.{layer}.{p}",
            )
        ),
        *(
            same(f"{_MASKS}.{key}", f"mask_decoder.{key}")
            for key in (
                *("{part}.{p}", "transformer.{layer}.{p}", "transformer.{part}.{layer}.{p}"),
                *("transformer.layers.{i}.{part}.{p}", "transformer.layers.{i}.{part}.{layer}.{p}"),
                *("iou_prediction_head.{part}.{p}", "iou_prediction_head.{part}.{i}.{p}"),
                *("output_hypernetworks_mlps.{i}.{part}.{p}", "output_hypernetworks_mlps.{i}.{part}.{layer}.{p}"),
            )
        ),
    ),
    ignored=("prompt_encoder.shared_embedding.positional_embedding",),  # the same as shared_image_embedding
)


def header(config: SamConfig) -> dict[str, Any]:
    """What config.json says of a model in a folder of transformers: a SamModel, or a SamVisionModel without decoder."""
    vision = {
        "hidden_size": config.width,
        "output_channels": config.embedding,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_channels": config.channels,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "layer_norm_eps": config.norm_eps,
        "mlp_dim": config.hidden or 4 * config.width,
        "window_size": config.window,
        "global_attn_indexes": list(config.global_blocks),
        "num_pos_feats": config.embedding // 2,
    }
    decoder = config.decoder
    if decoder is None:
        return {"model_type": "sam_vision_model", "architectures": ["SamVisionModel"], **vision}
    prompts = {
        "hidden_size": config.embedding,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "mask_input_channels": decoder.mask_channels,
    }
    masks = {
        "hidden_size": config.embedding,
        "mlp_dim": decoder.hidden,
        "num_hidden_layers": decoder.depth,
        "num_attention_heads": decoder.heads,
        "attention_downsample_rate": decoder.downsample,
        "num_multimask_outputs": decoder.masks,
        "iou_head_hidden_dim": decoder.iou_hidden,
        "layer_norm_eps": decoder.norm_eps,
    }
    name = {"model_type": "sam", "architectures": ["SamModel"]}
    return {**name, "vision_config": vision, "prompt_encoder_config": prompts, "mask_decoder_config": masks}
