"""What the demo trains: how many pictures, which models, how many steps. Nothing in it watches a clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Words = Mapping[str, str | int | float]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the demo's outcome, beside its seed.

    The keys of the trainings are those of `synoptic train`, with their values as typed there; `data` names the sets
    of pictures, comma-separated: "single", "multi", or both.

    Attributes:
        size: side of the pictures in pixels.
        single: pictures of one object each, in class folders by shape.
        multi: pictures of one to six objects.
        clip: keys of the teacher that learns from captions.
        dino: keys of the teacher that learns from pictures alone.
        radio: keys of the student that both are merged into.
    """

    size: int
    single: int
    multi: int
    clip: Words
    dino: Words
    radio: Words


FULL = Recipe(
    size=96,
    single=7500,
    multi=1500,
    clip={
        "data": "single",
        "model": "vit_mini16",
        "size": 64,
        "steps": 780,
        "batch": 128,
        "optim.lr": "1e-3",
        "embedding": 128,
        "text_width": 128,
        "text_depth": 2,
        "text_heads": 2,
        "context": 32,
        "evaluate_every": 260,
        "loader.validation": 0.05,
    },
    dino={
        "data": "single",
        "preset": "short",
        "model": "vit_nano8",
        "size": 32,
        "steps": 900,
        "batch": 128,
        # Strong changes of colour: what two crops are left with in common is shape.
        "crops.brightness": 0.6,
        "crops.contrast": 0.6,
        "crops.saturation": 0.8,
        "crops.hue": 0.5,
        "crops.gray": 0.3,
        "crops.sigma": "0.1,1.0",
        "evaluate_every": 300,
        "loader.validation": 0.05,
    },
    radio={
        "data": "single,multi",
        "model": "vit_mini16",
        "size": 96,
        "steps": 480,
        "batch": 96,
        "optim.lr": "2e-3",
        "optim.warmup": 0.25,
        # The weaker teacher has less to say: at full weight it pulls the shared summary away from shape.
        "teacher.dino.summary_weight": 0.25,
        "summary": "shared",
        "position": "learned",
        "crop_scale": "0.6,1.0",
        "loader.validation": 0.05,
    },
)

_BRIEF: Words = {
    "size": 32,
    "steps": 20,
    "batch": 16,
    "optim.lr": "1e-3",
    "log_every": 4,
    "evaluate_every": 10,
    "checkpoint_every": 10,
}

QUICK = Recipe(
    size=48,
    single=240,
    multi=60,
    clip={
        "data": "single",
        "model": "vit_mini16",
        **_BRIEF,
        "embedding": 64,
        "text_width": 64,
        "text_depth": 1,
        "text_heads": 1,
    },
    dino={"data": "single", "preset": "short", "model": "vit_nano8", **_BRIEF, "head_hidden": 64, "prototypes": 64},
    radio={
        "data": "single,multi",
        "model": "vit_mini8",
        **_BRIEF,
        "teacher.dino.summary_weight": 0.25,
        "summary": "shared",
        "position": "learned",
    },
)

RECIPES: Mapping[str, Recipe] = {"full": FULL, "quick": QUICK}
