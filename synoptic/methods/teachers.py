"""Frozen teachers: each sees the student's picture in its own size and normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from synoptic.methods.start import tell_if_untrained
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.predict import load
from synoptic.types import Features
from synoptic.weights.folder import model_hash


class Teacher(nn.Module):
    """A model that is asked but never trained; it stays in evaluation mode.

    Args:
        model: answers with Features for pictures in [0, 1]; its normalisation is inside.
        size: side of the pictures it reads, in pixels.
    """

    def __init__(self, model: nn.Module, size: int):
        super().__init__()
        self.model: Any = model.requires_grad_(False).eval()
        self.size = size
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:  # (B, C, size, size) -> float32 features
        return self.model(images).float()

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:  # n of them -> (n, C) float32
        return self.model.encode_text(self.model.tokenizer(texts)).float()

    def fingerprint(self) -> str:
        """Tells it from any other model by its weights, its configuration and its tokenizer."""
        return model_hash(self.model)

    @torch.no_grad()
    def probe(self) -> Features:
        """Features of one black picture: tells the widths of summary and patches."""
        device = next(self.model.parameters()).device
        return self(torch.zeros(1, self.model.channels, self.size, self.size, device=device))


@dataclass(frozen=True)
class Words:
    """What a student keeps of a teacher that knows words."""

    config: TextConfig
    weights: dict[str, Tensor]
    logit_scale: Tensor
    tokenizer: Tokenizer


def words_of(model: Any) -> Words | None:
    """The text tower of a teacher; None where it has none, or came without a vocabulary."""
    text = getattr(model, "text", None)
    if text is None or model.tokenizer is None:
        return None
    return Words(text.config, text.state_dict(), model.logit_scale.detach(), model.tokenizer)


def parse_teachers(spec: str) -> dict[str, str]:
    """`clip:MODEL,dino:MODEL` as name -> MODEL.

    Raises:
        ValueError: for an entry without a name, and for a name that occurs twice.
    """
    teachers: dict[str, str] = {}
    for entry in spec.split(","):
        name, colon, model = entry.strip().partition(":")
        if not (name and colon and model) or not name.isidentifier():
            raise ValueError(f"teachers={spec!r}: {entry!r} is not of the form name:MODEL, such as clip:runs/clip")
        if name in teachers:
            raise ValueError(f"teachers={spec!r}: the name {name!r} occurs twice")
        teachers[name] = model
    return teachers


def load_teachers(spec: str, sizes: dict[str, int]) -> dict[str, Teacher]:
    """Loads the teachers of `name:MODEL,...`, each at the size it was trained for unless `sizes` names one."""
    teachers = {}
    for name, model in parse_teachers(spec).items():
        tell_if_untrained(f"teachers={name}", model)
        vision = load(model)
        teachers[name] = Teacher(vision.model, sizes.get(name, vision.preprocess.size))
    return teachers


def load_teacher(model: str, channels: int) -> Teacher:
    """The one teacher of a student that reads so many bands.

    Raises:
        ValueError: there is no such model, or it reads other bands.
    """
    tell_if_untrained("teacher", model)
    vision = load(model)
    if vision.channels != channels:
        raise ValueError(f"teacher={model}: reads {vision.channels} bands, its student {channels}")
    return Teacher(vision.model, vision.preprocess.size)
