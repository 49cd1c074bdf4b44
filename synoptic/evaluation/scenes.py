"""What the built-in scenes of one object can be asked in words: which pair of colour and shape is it?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synoptic.data.sources import Source

NOT_ASKED = -1


def is_scenes(source: Source) -> bool:
    """Whether the pictures were written by `synoptic scenes`."""
    return _settings_file(source).is_file()


@dataclass(frozen=True)
class Pairs:
    """Colours and shapes of scenes of one object.

    Attributes:
        labels: (n,) int64, the pair that each picture shows.
        names: of all pairs, such as "red cube"; first those that training pictures show, then the held-out ones.
        seen: how many the former are.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    seen: int


def seen_pairs(source: Source) -> tuple[np.ndarray, tuple[str, ...]]:
    """The pair of each picture, as a class among those that training pictures show.

    Args:
        source: see `pairs`.
    Returns:
        (len(source),) int64 classes, -1 for pictures of held-out pairs; and the classes' names, such as "red cube".
    Raises:
        ValueError: see `pairs`.
    """
    found = pairs(source)
    return np.where(found.labels < found.seen, found.labels, NOT_ASKED), found.names[: found.seen]


def pairs(source: Source) -> Pairs:
    """The colour and shape of each picture's object.

    Args:
        source: pictures of a part (train or test) of a folder of scenes with one object each.
    Raises:
        ValueError: for pictures with several objects, and files that are not those of scenes.
    """
    settings = _load(_settings_file(source))
    instances = _load(source.root.parent / "instances.json")
    try:
        seen, unseen = (settings["seen_pairs"], settings["heldout_pairs"])
        names = tuple(f"{colour} {shape}" for colour, shape in (*seen, *unseen))
        shapes = {category["id"]: category["name"] for category in instances["categories"]}
        objects: dict[int, list[str]] = {image["id"]: [] for image in instances["images"]}
        for annotation in instances["annotations"]:
            name = f"{annotation['attributes']['colour']} {shapes[annotation['category_id']]}"
            objects[annotation["image_id"]].append(name)
        found = {image["file_name"]: objects[image["id"]] for image in instances["images"]}
        shown = [found[key] for key in source.keys]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source.root.parent}/instances.json does not describe its pictures: {error!r}") from None
    for path, names_shown in zip(source.paths, shown, strict=True):
        if len(names_shown) != 1:
            raise ValueError(
                f"{path} shows {len(names_shown)} objects, and pairs of colour and shape are asked of single ones: "
                "take scenes with objects=1"
            )
    classes = {name: number for number, name in enumerate(names)}
    strange = next((name for (name,) in shown if name not in classes), None)
    if strange is not None:
        raise ValueError(
            f"{source.root.parent}/instances.json: {strange!r} is no pair that {_settings_file(source)} lists"
        )
    return Pairs(np.array([classes[name] for (name,) in shown], np.int64), names, len(seen))


def _settings_file(source: Source) -> Path:
    return source.root.parent.parent / "scenes.json"


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
