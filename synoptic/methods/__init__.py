"""One file a method: its configuration, its Task and its presets."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synoptic.methods.base import Method

_MODULES = {"dino": "synoptic.methods.dino", "clip": "synoptic.methods.clip", "radio": "synoptic.methods.radio"}
METHOD_NAMES = tuple(_MODULES)


def get_method(name: str) -> Method:
    """The method that users call `name`.

    Raises:
        ValueError: for an unknown name, with the nearest ones.
    """
    if name not in _MODULES:
        near = difflib.get_close_matches(name, METHOD_NAMES, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"methods are {', '.join(METHOD_NAMES)}"
        raise ValueError(f"unknown method {name!r}; {hint}")
    return importlib.import_module(_MODULES[name]).METHOD
