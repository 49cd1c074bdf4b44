"""Vision foundation models: train several, merge them into one, and put the result to work.

    import synoptic

    model = synoptic.load("runs/demo/student")
    model.embed(["a.jpg"])                      # (1, C) float32, L2-normalised
    model.classify("a.jpg", ["cat", "dog"])     # [{"label": "cat", "score": 0.93}, ...]

The verbs are imported when first used, so that `import synoptic` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synoptic.apps.embeddings import embed
    from synoptic.apps.search import search
    from synoptic.judging import evaluate
    from synoptic.piloting import pilot
    from synoptic.predict import VisionModel, load
    from synoptic.run import train
    from synoptic.weights.zoo import list_models

__all__ = ["VisionModel", "embed", "evaluate", "list_models", "load", "pilot", "search", "train"]
__version__ = "0.1.0"

_HOMES = {
    "VisionModel": "synoptic.predict",
    "embed": "synoptic.apps.embeddings",
    "evaluate": "synoptic.judging",
    "list_models": "synoptic.weights.zoo",
    "load": "synoptic.predict",
    "pilot": "synoptic.piloting",
    "search": "synoptic.apps.search",
    "train": "synoptic.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'synoptic' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
