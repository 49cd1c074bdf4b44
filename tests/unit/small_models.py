"""Models of every kind that are made in no time, and their folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.clip import Clip, ClipConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, ViTConfig
from synoptic.types import Preprocess
from synoptic.weights.folder import save_folder

TOKENIZER = Tokenizer.learn(["a red cone", "a blue cube"], vocabulary=300, context=8)
TEXT = TextConfig(vocabulary=TOKENIZER.vocabulary, context=8, end=TOKENIZER.end, width=8, depth=1, heads=2, embedding=6)
MODEL, CONFIG = "model.safetensors", "config.json"


def vit_config(tokens: int = 1) -> ViTConfig:
    return ViTConfig(patch_size=4, width=12, depth=1, heads=3, image_size=16, summary_tokens=tokens)


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "vit":
        return ViT(vit_config()).eval()
    if kind == "clip":
        return Clip(ClipConfig(image=vit_config(), text=TEXT), TOKENIZER).eval()
    if kind == "shared student":  # one summary token for both teachers
        shared = {name: AdaptorConfig(patches=width, summary=width, hidden=16) for name, width in (("a", 7), ("b", 9))}
        return Student(StudentConfig(backbone=vit_config(), adaptors=shared)).eval()
    adaptors = {
        "clip": AdaptorConfig(patches=10, summary=6, hidden=16, text=TEXT),
        "dino": AdaptorConfig(patches=7, summary=None, hidden=16),
    }
    model = Student(StudentConfig(backbone=vit_config(2), adaptors=adaptors), {"clip": TOKENIZER}).eval()
    model.adaptors["clip"].logit_scale.fill_(1.5)
    return model


def saved(folder: Path, kind: str = "clip") -> Path:
    save_folder(folder / "weights", build(kind), Preprocess(16), {"name": kind})
    return folder / "weights"


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text())
        change(values)
        (folder / CONFIG).write_text(json.dumps(values))

    return spoil


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        state = load_file(folder / MODEL)
        change(state)
        save_file(state, folder / MODEL)

    return spoil
