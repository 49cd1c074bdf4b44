"""Sheets of small square pictures in strips, each under its label, laid out to the pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from synoptic.detection.drawing import font_of

INK, GREY = (28, 30, 34), (112, 116, 124)
TITLE, SMALL = 19, 13  # pixels of letters
LINE = 20  # pixels of a line of small ones
MARGIN = 28
WIDEST_WORDS = 900  # pixels, to which a sheet of few panels is widened for the note above it


@dataclass(frozen=True)
class Panel:
    """A picture and what it shows.

    Attributes:
        label: a word or two, above it.
        picture: (S, S, 3) uint8.
        swatch: a colour before the label, which stands for it in other panels.
    """

    label: str
    picture: np.ndarray
    swatch: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Strip:
    """Panels side by side.

    Attributes:
        panels: at least one.
        name: under them; empty leaves it out.
    """

    panels: Sequence[Panel]
    name: str = ""


@dataclass(frozen=True)
class Legend:
    """What the colours of some panels mean.

    Attributes:
        before, behind: words on either side of the bar.
        bar: (h, w, 3) uint8, not higher than a line.
    """

    before: str
    bar: np.ndarray
    behind: str


def sheet(
    title: str,
    note: str,
    strips: Sequence[Strip],
    side: int,
    gap: int,
    across: int = 1,
    legend: Legend | None = None,
) -> Image.Image:
    """Strips of panels under a title.

    Args:
        title, note: above all; the note in small grey letters.
        strips: labels stand above those whose labels differ from what stands above them.
        side: pixels of a panel.
        gap: pixels between panels, and between strips below each other; those beside each other stand three times as
            far apart.
        across: strips beside each other.
        legend: below the note.
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
    top = MARGIN + TITLE + (2 if legend is None else 3) * LINE
    words = min(_room(note, SMALL), WIDEST_WORDS)
    told = 0 if legend is None else _room(legend.before + legend.behind, SMALL) + legend.bar.shape[1] + 16
    wide = max(across * (width + 3 * gap) - 3 * gap, words, told)
    canvas = Image.new("RGB", (2 * MARGIN + wide, top + sum(heights) - gap + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    _write(draw, (MARGIN, MARGIN), title, TITLE, INK, canvas.width - 2 * MARGIN)
    _write(draw, (MARGIN, MARGIN + TITLE + 7), note, SMALL, GREY, canvas.width - 2 * MARGIN)
    if legend is not None:
        _explain(canvas, draw, (MARGIN, MARGIN + TITLE + 7 + LINE), legend)
    for line, shown, height in zip(lines, labelled, heights, strict=True):
        for place, strip in enumerate(line):
            _place(canvas, draw, strip, (MARGIN + place * (width + 3 * gap), top), side, gap, shown)
        top += height
    return canvas


def worded(text: str, side: int) -> np.ndarray:
    """(side, side, 3) uint8, a panel that holds words alone, a line each, in its middle at the right."""
    canvas = Image.new("RGB", (side, side), "white")
    draw, lines = ImageDraw.Draw(canvas), text.split("\n")
    for place, line in enumerate(lines):
        draw.text((side - 4, (side - LINE * len(lines)) // 2 + LINE * place), line, INK, font_of(SMALL), anchor="ra")
    return np.asarray(canvas)


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
            before = 0 if panel.swatch is None else SMALL + 3
            if panel.swatch is not None:
                draw.rectangle((x, top + 2, x + SMALL - 3, top + SMALL - 1), panel.swatch)
            _write(draw, (x + before, top), panel.label, SMALL, GREY, side - before, keep="start")
        picture = Image.fromarray(panel.picture)
        canvas.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x, below))
    if strip.name:
        width = len(strip.panels) * (side + gap) - gap
        _write(draw, (left, below + side + 4), strip.name, SMALL - 2, GREY, width)


def _explain(canvas: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], legend: Legend) -> None:
    """A legend in one line."""
    left, top = corner
    font, (height, width, _) = font_of(SMALL), legend.bar.shape
    draw.text((left, top), legend.before, GREY, font, anchor="la")
    left += round(draw.textlength(legend.before, font)) + 8
    canvas.paste(Image.fromarray(legend.bar), (left, top + (SMALL + 4 - height) // 2))
    draw.text((left + width + 8, top), legend.behind, GREY, font, anchor="la")


def _room(text: str, size: int) -> int:
    """How wide a text is in pixels."""
    return math.ceil(font_of(size).getlength(text))


def _write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    size: int,
    colour: tuple[int, int, int],
    width: int,
    keep: Literal["start", "end"] = "end",
) -> None:
    """Text in one line; of one that is too long its start, or its end, which tells the files of a folder apart."""
    font, cut = font_of(size), text
    while draw.textlength(cut, font) > width and len(cut) > 1:
        cut = f"\N{HORIZONTAL ELLIPSIS}{cut[2:]}" if keep == "end" else f"{cut[:-2]}\N{HORIZONTAL ELLIPSIS}"
    draw.text(corner, cut, colour, font, anchor="la")
