"""Tiny models of transformers that are twins of ours, and what they are asked."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertConfig as TheirBertConfig
from transformers import GroundingDinoConfig as TheirConfig
from transformers import (
    GroundingDinoForObjectDetection,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
)
from transformers import SwinConfig as TheirSwinConfig

SEED = 4  # with which none of the three models of transformers takes a place that is filled up for a query
PROMPTS = ([101, 500, 600, 1012, 700, 1012, 102], [101, 800, 1012, 900, 901, 902, 1012, 1000, 1029, 102])
INSIDE = (80, 100)  # of the second picture


def their_model(kind: str, **options: Any) -> Any:
    """A tiny random model of transformers."""
    swin = TheirSwinConfig(
        embed_dim=24,
        depths=[1, 1, 2, 1],
        num_heads=[2, 2, 4, 4],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    bert = TheirBertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=2000
    )
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "num_queries": 20}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_ffn_dim": 64, f"{part}_attention_heads": 4}
    torch.manual_seed(SEED)
    scaled = kind == "scaled"
    config: Any = (MMGroundingDinoConfig if scaled else TheirConfig)(
        backbone_config=swin, text_config=bert, **sizes, **options
    )
    model = (MMGroundingDinoForObjectDetection if scaled else GroundingDinoForObjectDetection)(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


OWN_HEADS = {"decoder_bbox_embed_share": False, "decoder_cls_embed_share": False}
