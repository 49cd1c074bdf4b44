"""Where the training of a backbone begins: from random weights of a named architecture, or from those of a model."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from synoptic.models.adaptors import Student
from synoptic.models.clip import Clip
from synoptic.models.vit import NAMES, ViT, ViTConfig, vit_config
from synoptic.predict import load
from synoptic.weights.folder import weights_hash
from synoptic.weights.options import LoadOptions

__all__ = ["LoadOptions", "architecture", "fingerprint", "given_backbone", "tell_if_untrained"]

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
    tell_if_untrained("init", init)
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
    if model in NAMES:
        log.warning("%s=%s is an architecture with random weights; give a run, a weights file or a folder", key, model)


def fingerprint(vit: ViT) -> str:
    """Tells its weights from any others."""
    return weights_hash(vit)


def _trunk(init: str, options: LoadOptions) -> ViT:
    model = load(init, "cpu", **asdict(options)).model
    trunk = model.image if isinstance(model, Clip) else model.backbone if isinstance(model, Student) else model
    if not isinstance(trunk, ViT):
        raise ValueError(f"init={init}: a {type(model).__name__} has no vision transformer to go on with")
    return trunk
