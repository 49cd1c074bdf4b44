"""Sheets of figures, looked at before they are painted."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import pytest
from PIL import Image

from synoptic.apps.sheets import Strip, sheet


def noted_strips(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> dict[str, list[Strip]]:
    """The strips of every sheet that a module draws from now on, by its title."""
    found: dict[str, list[Strip]] = {}

    def noted(title: str, note: str, strips: Sequence[Strip], *rest, **keys) -> Image.Image:
        found[title] = list(strips)
        return sheet(title, note, strips, *rest, **keys)

    monkeypatch.setattr(module, "sheet", noted)
    return found
