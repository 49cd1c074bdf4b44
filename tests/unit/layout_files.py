"""Small models with random weights, in files and folders as other makers lay them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from synoptic.models.vit import ViT, ViTConfig
from synoptic.weights.convert import from_ours
from synoptic.weights.layouts import FORMATS, Format

BY_NAME = {form.name: form for form in FORMATS}

# A model of each layout, as its makers configure it, but tiny.
TINY: dict[str, Any] = {"patch_size": 4, "width": 24, "depth": 2, "heads": 3, "hidden": 48, "image_size": 16}
DINOV2 = {"mask_token": True, "layer_scale": 1.0}
CONFIGS = {
    "DINO": ViTConfig(**TINY, position_offset=0.1),
    "iBOT": ViTConfig(**TINY, mask_token=True, position_offset=0.1),
    "DINOv2": ViTConfig(**TINY, **DINOV2, position_offset=0.1),
    "DINOv2 with registers": ViTConfig(**TINY, **DINOV2, registers=4, antialias=True),
    "ViTModel of transformers": ViTConfig(**TINY, norm_eps=1e-12),
    "Dinov2Model of transformers": ViTConfig(**TINY, **DINOV2),
    "Dinov2WithRegistersModel of transformers": ViTConfig(**TINY, **DINOV2, registers=4, antialias=True),
}


def model_of(config: ViTConfig) -> ViT:
    torch.manual_seed(0)
    model = ViT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def theirs(form: Format, config: ViTConfig | None = None) -> dict[str, Tensor]:
    """The tensors of a model in a layout of others."""
    state = from_ours(model_of(config or CONFIGS[form.name]).state_dict(), form.table)
    return {key: tensor.contiguous() for key, tensor in state.items()}


def huggingface(folder: Path, form: Format, **header: Any) -> Path:
    """A folder as transformers writes it."""
    config = CONFIGS[form.name]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(theirs(form), folder / "model.safetensors", metadata={"format": "pt"})
    said = {
        "model_type": form.model_type,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": "gelu",
        **({"num_register_tokens": config.registers} if config.registers else {}),
    }
    (folder / "config.json").write_text(json.dumps(said | header))
    return folder


def dino(folder: Path) -> Path:
    """A backbone file of DINO."""
    torch.save(theirs(BY_NAME["DINO"]), folder / "dino.pth")
    return folder / "dino.pth"


def dino_training(folder: Path) -> Path:
    """A file of DINO's training; the teacher's positions are all zero."""
    backbone = theirs(BY_NAME["DINO"])
    teacher = {f"backbone.{key}": tensor for key, tensor in backbone.items()}
    teacher["backbone.pos_embed"] = torch.zeros_like(backbone["pos_embed"])
    head = {"head.mlp.0.weight": torch.ones(5, 24), "head.mlp.0.bias": torch.ones(5)}
    student = {f"module.backbone.{key}": tensor for key, tensor in backbone.items()}
    torch.save({"student": student | head, "teacher": teacher | head, "epoch": 3}, folder / "full.pth")
    return folder / "full.pth"
