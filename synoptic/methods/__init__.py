"""One file a method: its configuration, its Task and its presets."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from synoptic.config import nearest

if TYPE_CHECKING:
    from synoptic.methods.base import Method

_MODULES = {
    "dino": "synoptic.methods.dino",
    "dinov2": "synoptic.methods.dinov2",
    "clip": "synoptic.methods.clip",
    "radio": "synoptic.methods.radio",
}
METHOD_NAMES = tuple(_MODULES)


def get_method(name: str) -> Method:
    """The method that users call `name`.

    Raises:
        ValueError: for an unknown name, with the nearest ones.
    """
    if name not in _MODULES:
        raise ValueError(f"unknown method {name!r}{nearest(name, METHOD_NAMES)}")
    return importlib.import_module(_MODULES[name]).METHOD
