"""Sheets of small square pictures in strips, each under its label, laid out to the pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, GREY = (28, 30, 34), (112, 116, 124)
TITLE, SMALL = 19, 13  # pixels of letters
LINE = 20  # pixels of a line of small ones
MARGIN = 28


@dataclass(frozen=True)
class Panel:
    """A picture and what it shows.

    Attributes:
        label: a word or two, above it.
        picture: (S, S, 3) uint8.
    """

    label: str
    picture: np.ndarray


@dataclass(frozen=True)
class Strip:
    """Panels side by side.

    Attributes:
        panels: at least one.
        name: under them; empty leaves it out.
    """

    panels: Sequence[Panel]
    name: str = ""


def sheet(title: str, note: str, strips: Sequence[Strip], side: int, gap: int, across: int = 1) -> Image.Image:
    """Strips of panels under a title.

    Args:
        title, note: above all; the note in small grey letters.
        strips: labels stand above those whose labels differ from what stands above them.
        side: pixels of a panel.
        gap: pixels between panels, and between strips below each other; those beside each other stand three times as
            far apart.
        across: strips beside each other.
    """
    longest = max(len(strip.panels) for strip in strips)
    width = longest * (side + gap) - gap
    lines = [strips[start : start + across] for start in range(0, len(strips), across)]
    labels = [[panel.label for panel in line[0].panels] for line in lines]
    labelled = [place == 0 or labels[place] != labels[place - 1] for place in range(len(lines))]
    heights = [
        LINE * shown + side + LINE * any(strip.name for strip in line) + gap
        for line, shown in zip(lines, labelled, strict=True)
    ]
    top = MARGIN + TITLE + 2 * LINE
    canvas = Image.new(
        "RGB",
        (2 * MARGIN + across * (width + 3 * gap) - 3 * gap, top + sum(heights) - gap + MARGIN),
        "white",
    )
    draw = ImageDraw.Draw(canvas)
    _write(draw, (MARGIN, MARGIN), title, TITLE, INK, canvas.width - 2 * MARGIN)
    _write(draw, (MARGIN, MARGIN + TITLE + 7), note, SMALL, GREY, canvas.width - 2 * MARGIN)
    for line, shown, height in zip(lines, labelled, heights, strict=True):
        for place, strip in enumerate(line):
            _place(canvas, draw, strip, (MARGIN + place * (width + 3 * gap), top), side, gap, shown)
        top += height
    return canvas


def _place(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    strip: Strip,
    corner: tuple[int, int],
    side: int,
    gap: int,
    labelled: bool,
) -> None:
    left, top = corner
    below = top + LINE * labelled
    for place, panel in enumerate(strip.panels):
        x = left + place * (side + gap)
        if labelled:
            _write(draw, (x, top), panel.label, SMALL, GREY, side)
        picture = Image.fromarray(panel.picture)
        canvas.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x, below))
    if strip.name:
        width = len(strip.panels) * (side + gap) - gap
        _write(draw, (left, below + side + 4), strip.name, SMALL - 2, GREY, width)


def _write(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, size: int, colour: tuple[int, int, int], width: int
) -> None:
    """Text in one line; of one that is too long the end, which tells the files of a folder apart."""
    font, cut = _font(size), text
    while draw.textlength(cut, font) > width and len(cut) > 1:
        cut = f"\N{HORIZONTAL ELLIPSIS}{cut[2:]}"
    draw.text(corner, cut, colour, font, anchor="la")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows most alphabets."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
