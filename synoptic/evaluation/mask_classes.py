"""What the classes of a data set's masks are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from synoptic.data.sources import Source
from synoptic.evaluation.dense import masks_of

BACKGROUND = "background"  # what a class is called that stands for all the rest
_CLASSES, _SCENES = "classes.json", "scenes.json"


def mask_classes(source: Source) -> tuple[str, ...]:
    """Names of the classes in the masks, by their numbers; () where the data do not tell them, or several sets differ.

    They are told by `classes.json` beside the parts of a data set, or beside `masks/` of one in one piece: a list of
    names, or an object with such a list as "classes". Built-in scenes have their shapes.

    Raises:
        ValueError: that file tells no names, or there are no masks.
    """
    told = {_told(folder) for folder in _sets(source)}
    return told.pop() if len(told) == 1 else ()


def in_scenes(source: Source) -> bool:
    """Whether the masks are those of built-in scenes."""
    return all(any((place / _SCENES).is_file() for place in (folder, folder.parent)) for folder in _sets(source))


def _sets(source: Source) -> list[Path]:
    """The folders that hold the folders of masks."""
    return list(dict.fromkeys(_masks_folder(path).parent for path in masks_of(source)))


def _masks_folder(path: Path) -> Path:
    return next((folder for folder in path.parents if folder.name == "masks"), path.parent)


def _told(folder: Path) -> tuple[str, ...]:
    for place in (folder, folder.parent):
        if (place / _CLASSES).is_file():
            return _names(place / _CLASSES, "classes")
        if (place / _SCENES).is_file():
            return (BACKGROUND, *_names(place / _SCENES, "shapes"))
    return ()


def background_of(names: tuple[str, ...]) -> int | None:
    """The number of the class that is called background; None where none is."""
    return next((number for number, name in enumerate(names) if name.strip().lower() == BACKGROUND), None)


def _names(path: Path, key: str) -> tuple[str, ...]:
    told = _read(path)
    names = told.get(key) if isinstance(told, dict) else told
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(
            f'{path}: tells no names; it should be {{"{key}": ["sky", "road"]}}, in the order of the masks'
        )
    return tuple(names)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
