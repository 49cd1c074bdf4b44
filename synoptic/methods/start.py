"""Where the training of a backbone begins: from random weights of a named architecture, or from those of a model."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synoptic.models.adaptors import Student
from synoptic.models.classifier import Classifier
from synoptic.models.clip import Clip, ClipConfig, Towers
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, ViTConfig, vit_config
from synoptic.weights import zoo
from synoptic.weights.folder import model_hash
from synoptic.weights.options import LoadOptions
from synoptic.weights.words import fetch_tokenizer, read_tokenizer

__all__ = [
    "LoadOptions",
    "architecture",
    "fingerprint",
    "given_backbone",
    "given_sizes",
    "given_student",
    "given_tokenizer",
    "given_towers",
    "tell_if_untrained",
]

log = logging.getLogger(__name__)


def architecture(model: str, init: str | None, options: LoadOptions) -> ViTConfig:
    """The architecture that is trained: that of the model in `init`, or else the one that `model` names.

    Raises:
        ValueError: `init` is no model, or `model` no architecture.
    """
    if init is not None:
        return _given_architecture(init, options)
    try:
        return vit_config(model)
    except ValueError:
        if not Path(model).expanduser().exists():
            raise
        given = f"model={model}: is no architecture; init={model} begins with the weights that lie there"
        raise ValueError(given) from None


@lru_cache(maxsize=4)
def _given_architecture(init: str, options: LoadOptions) -> ViTConfig:
    return _trunk(init, options).config


def given_backbone(init: str, options: LoadOptions, **changes: Any) -> ViT:
    """A ViT with the weights of a model: of a CLIP its image tower, of a student its backbone.

    Args:
        init: a MODEL.
        options: what its file does not say itself.
        changes: to fields of its configuration that leave the weights as they are (`drop_path`), and `mask_token`,
            which starts at zero where the weights have none.
    Raises:
        ValueError: there is no such model.
    """
    tell_if_untrained("init=", init)
    given = _trunk(init, options)
    vit = ViT(replace(given.config, **changes))
    state = given.state_dict()
    if vit.mask_token is not None:
        state.setdefault("mask_token", torch.zeros_like(vit.mask_token))
    else:
        state.pop("mask_token", None)
    vit.load_state_dict(state)
    return vit


def tell_if_untrained(key: str, model: str) -> None:
    """Warns where what should have learned is an architecture of this library, whose weights are random."""
    if model in zoo.NAMES:
        log.warning("%s%s is an architecture with random weights; give a run, a weights file or a folder", key, model)


def given_towers(init: str, options: LoadOptions) -> Clip | None:
    """The CLIP or SigLIP of a MODEL, with both of its towers; None where it is something else."""
    model, _, _ = zoo.load(init, options)
    return model if isinstance(model, Clip) else None


@lru_cache(maxsize=4)
def given_sizes(init: str, options: LoadOptions) -> ClipConfig | None:
    """The configuration of the CLIP or SigLIP of a MODEL; None where it is something else."""
    model = given_towers(init, options)
    return None if model is None else model.config


def given_student(init: str, options: LoadOptions) -> tuple[Student, int]:
    """The student of a MODEL, and the side in pixels of its pictures.

    Raises:
        ValueError: there is no such model, or it is no student.
    """
    tell_if_untrained("init=", init)
    model, preprocess, _ = zoo.load(init, options)
    if not isinstance(model, Student):
        raise ValueError(f"init={init}: a {type(model).__name__} is no student of teachers; begin one without init=")
    return model, preprocess.size


def given_tokenizer(spec: str, context: int, towers: Towers) -> Tokenizer:
    """The tokenizer that a file holds, or a model on the Hub (`hf:owner/name`).

    Raises:
        ValueError: there is none, or it is of another kind than the towers read.
    """
    place = fetch_tokenizer(spec[3:]) if spec.startswith("hf:") else Path(spec).expanduser()
    if place.is_dir():
        raise ValueError(f"tokenizer={spec}: is a folder; name the tokenizer.json in it")
    try:
        tokenizer = read_tokenizer(place, context, towers)
    except ValueError as error:
        raise ValueError(f"tokenizer={error}") from None
    if tokenizer.full != (towers == "siglip"):
        kind = "SigLIP's towers" if tokenizer.full else "CLIP's towers"
        raise ValueError(f"tokenizer={spec}: its rows are made for {kind}, not for towers={towers}")
    return tokenizer


def fingerprint(model: nn.Module) -> str:
    """Tells it from any other by its weights, its configuration and its tokenizer."""
    return model_hash(model)


def _trunk(init: str, options: LoadOptions) -> ViT:
    model, _, _ = zoo.load(init, options)
    trunk = (
        model.image if isinstance(model, Clip) else model.backbone if isinstance(model, Student | Classifier) else model
    )
    if not isinstance(trunk, ViT):
        raise ValueError(f"init={init}: a {type(model).__name__} has no vision transformer to go on with")
    return trunk
