"""What `segment` writes: a picture with masks and prompts drawn on it, and the masks themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from synoptic.data.listing import expand
from synoptic.data.pictures import read_picture
from synoptic.detection.drawing import colour_of
from synoptic.files import check_file, write_atomically
from synoptic.predict import VisionModel, load
from synoptic.types import Segments

TINT = 0.45  # of a mask's colour, over the picture
LINE = 250  # pixels of a picture's longer side for one of a line's width

Rows = Sequence[Sequence[float]]


def segment(
    image: str,
    model: str | VisionModel,
    points: Rows | None = None,
    boxes: Rows | None = None,
    labels: Sequence[int] | None = None,
    alternatives: bool = False,
    out: Path | None = None,
    masks: Path | None = None,
    **options: Any,
) -> list[tuple[float, int, float]]:
    """Cuts out what points and boxes mean, draws it and writes it.

    Args:
        image: the file.
        model: a MODEL that segments, or one that is loaded.
        points, boxes, labels, alternatives: see `Segmenter.segment`.
        out: PNG file, the picture with masks and prompts drawn on it.
        masks: the masks themselves. Masks may lie on each other, so that one picture of labels cannot hold them: an
            `.npz` file holds them all as `masks` (n, H, W) bool and `scores` (n,); a `.png` file, which every program
            opens, holds one, and several masks go into files numbered as `masks-1.png`.
        options: what a weights file of other makers does not say itself.
    Returns:
        Of each mask its score, its pixels, and their share of the picture.
    Raises:
        ValueError: no such picture or model, a file cannot be written or has another ending; see `Segmenter.segment`.
    """
    _check_place("out", out, ".png")
    _check_place("masks", masks, ".npz", ".png")
    path = expand(image)
    if not path.is_file():
        raise ValueError(f"{image}: no such picture; give the file of one")
    vision = model if isinstance(model, VisionModel) else load(model, **options)
    found = vision.segment(path, points, boxes, labels, alternatives)
    if out is not None:
        _save(out, draw(read_picture(path), found, points or (), boxes or (), labels))
    if masks is not None:
        _write(masks, found)
    areas = [int(mask.sum()) for mask in found.masks]
    return [
        (float(score), area, area / mask.size)
        for score, area, mask in zip(found.scores, areas, found.masks, strict=True)
    ]


def draw(
    picture: np.ndarray, found: Segments, points: Rows = (), boxes: Rows = (), labels: Sequence[int] | None = None
) -> Image.Image:
    """A picture with masks tinted and outlined, boxes, and points as dots: white in the object, black beside it.

    Args:
        picture: (H, W, 3) uint8.
        found: masks of that size.
        points, boxes, labels: what was asked, in its pixels.
    """
    width = max(1, round(max(picture.shape[:2]) / LINE))
    colours = [np.array(colour_of(number), np.float32) for number in range(len(found.masks))]
    canvas = picture.astype(np.float32)
    for mask, colour in zip(found.masks, colours, strict=True):
        canvas[mask] += TINT * (colour - canvas[mask])
    for mask, colour in zip(found.masks, colours, strict=True):  # after all tints, which would cover them
        canvas[outline(mask, width)] = colour
    drawn = Image.fromarray(canvas.round().astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    for box in boxes:
        pen.rectangle(tuple(box), outline="white", width=width)
    for (x, y), label in zip(points, labels or [1] * len(points), strict=True):
        reach = 3 * width + 1
        spot = (x - reach, y - reach, x + reach, y + reach)
        pen.ellipse(spot, fill="white" if label else "black", outline="black" if label else "white", width=width)
    return drawn


def outline(mask: np.ndarray, width: int) -> np.ndarray:
    """(H, W) bool, the pixels of a mask that lie within `width` of its edge, down, up, left or right."""
    core = mask
    for _ in range(width):
        wide = np.pad(core, 1)
        core = core & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    return mask & ~core


def _check_place(key: str, path: Path | None, *endings: str) -> None:
    if path is None:
        return
    if path.suffix.lower() not in endings:
        raise ValueError(f"{key}={path}: give a name that ends in {' or '.join(endings)}")
    check_file(path)


def _write(path: Path, found: Segments) -> None:
    if path.suffix.lower() == ".npz":
        return write_atomically(path, lambda file: np.savez_compressed(file, masks=found.masks, scores=found.scores))
    for number, mask in enumerate(found.masks, start=1):
        place = path if len(found.masks) == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        _save(place, Image.fromarray(mask))
    return None


def _save(path: Path, image: Image.Image) -> None:
    write_atomically(path, lambda file: image.save(file, "PNG"))
