"""Boxes with their names drawn on a picture."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from synoptic.data.pictures import to_rgb

if TYPE_CHECKING:
    from synoptic.detection.detections import Detections

GOLDEN = 0.618034  # of the circle of hues from one colour to the next: neighbours differ, however many there are
_LINE = 300  # pixels of a picture's longer side for one of a line's width
_LETTERS = 40  # likewise for one of letters' height
_SMALLEST, _LARGEST = 10, 40  # pixels of letters


def colour_of(number: int) -> tuple[int, int, int]:
    """The colour of a class or a mask of that number, the first blue."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + GOLDEN * number) % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(picture: Image.Image | np.ndarray, found: Detections) -> Image.Image:
    """A picture with the boxes of what was found, a colour a class, and names with scores above them; surer ones lie on
    top.

    Args:
        picture: of the size that `found` says, once it is upright; an array is (H, W, 3) uint8.
        found: at most a few dozen boxes can be told apart.
    Raises:
        ValueError: it is no picture, or of another size.
    """
    drawn = _upright(picture)
    if (drawn.height, drawn.width) != tuple(found.size):
        told = f"{found.size[1]} x {found.size[0]}"
        raise ValueError(
            f"the picture is of {drawn.width} x {drawn.height} pixels, and these objects are of one of {told}"
        )
    pen, longer = ImageDraw.Draw(drawn), max(drawn.size)
    width = max(2, round(longer / _LINE))
    font = font_of(min(max(round(longer / _LETTERS), _SMALLEST), _LARGEST))
    texts = [f"{name} {score:.2f}" for name, score in zip(found.found, found.scores, strict=True)]
    for place in reversed(range(len(found))):
        colour = colour_of(int(found.labels[place]))
        left, top, right, bottom = (round(float(each)) for each in found.boxes[place])
        pen.rectangle((left, top, max(right, left + 1), max(bottom, top + 1)), outline=colour, width=width)
        _label(pen, texts[place], (left, top), drawn.size, colour, font)
    return drawn


def _upright(picture: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
        told = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise ValueError(f"draw: expected a Pillow picture, an array (H, W, 3) of bytes or a file, got {told}")
    return Image.fromarray(picture)


def _label(
    pen: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[int, int],
    size: tuple[int, int],
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    """A name on its colour, above a box; of a box at the upper border inside of it, and wholly in the picture."""
    _, _, wide, high = (round(each) for each in font.getbbox(text))
    high += 4
    left = max(min(corner[0], size[0] - wide - 6), 0)
    top = corner[1] - high if corner[1] >= high else corner[1]
    pen.rectangle((left, top, left + wide + 6, top + high), fill=colour)
    pen.text((left + 3, top + 1), text, fill=_ink(colour), font=font, anchor="la")


def _ink(colour: Sequence[int]) -> str:
    """Black on light colours, white on dark ones, by their luminance (ITU-R BT.601)."""
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows most alphabets, with letters of so many pixels."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
