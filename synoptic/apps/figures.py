"""Pictures of what models see, as functions of arrays: patches as colours, classes as colours, curves, grids."""

from __future__ import annotations

import base64
import io
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from synoptic.evaluation.calibration import Calibration
from synoptic.files import write_atomically

OUTLIERS = 0.01  # of the patches on either side, beyond which colours are cut off
NO_SPAN = 1e-6  # of the largest component's span: a component that varies less does not vary
FEW_POINTS = 15  # of a curve, which are then marked
LEAST_SPAN = 0.02  # of its values, that the vertical axis of a plot shows: what varies less is drawn as level
LEAST_ROOM = 0.065  # of a logarithmic axis, that the number of a mark needs
LEAST_SHARE = 0.05  # that an axis from zero shows: percentages have no digits for less
TONES = tuple(f"var(--tone-{number})" for number in range(8))  # colours that the page chooses
# The same where a picture stands alone; as in page/report.css.
PAGE_TONES = ("#d9541e", "#2b6cb0", "#218c74", "#9a948a", "#c4beb3", "#8e44ad", "#b7791f", "#c2417c")
_PROPER = {"clip": "CLIP", "dino": "DINO", "dinov2": "DINOv2", "ibot": "iBOT", "radio": "AM-RADIO", "sam": "SAM"}
_INK, _FAINT = "#010203", "#030201"  # stand-ins, since matplotlib knows no variables
_TONE_INKS = tuple(f"#0a0b0{number}" for number in range(len(TONES)))
_STAND_INS = {_INK: "currentColor", _FAINT: "var(--line)", **dict(zip(_TONE_INKS, TONES, strict=True))}

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it warns when it first looks for fonts


@dataclass(frozen=True)
class PatchColours:
    """Which colour a patch feature has: its first three principal components as red, green and blue.

    Attributes:
        mean: (D,) of the patches that the components were found from.
        axes: (D, 3) components, the largest first; each points where its largest loading is positive.
        low, high: (3,) projections that become 0 and 1.
    """

    mean: np.ndarray
    axes: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, patches: np.ndarray) -> PatchColours:
        """Finds the components of (..., D) features: those of all pictures that will be shown beside each other."""
        rows = patches.reshape(-1, patches.shape[-1]).astype(np.float64)
        mean = rows.mean(0)
        centred = rows - mean
        _, components = np.linalg.eigh(centred.T @ centred)  # (D, D), the smallest first
        axes = np.zeros((rows.shape[1], 3))
        axes[:, : components.shape[1]] = components[:, :-4:-1]
        largest = axes[np.abs(axes).argmax(0), range(3)]
        axes *= np.where(largest < 0, -1.0, 1.0)
        low, high = np.quantile((rows - mean) @ axes, (OUTLIERS, 1 - OUTLIERS), axis=0)
        return cls(mean, axes, low, high)

    def paint(self, patches: np.ndarray, grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """Pictures of features, smooth between the centres of the patches.

        Args:
            patches: (B, h*w, D).
            grid: (h, w).
            size: height and width in pixels.
        Returns:
            (B, height, width, 3) uint8; where a component does not vary, its colour is half.
        """
        span = self.high - self.low
        varies = span > NO_SPAN * span.max()
        shares = ((patches.astype(np.float64) - self.mean) @ self.axes - self.low) / np.where(varies, span, 1.0)
        shares = np.where(varies, shares, 0.5)
        small = torch.from_numpy(shares).unflatten(1, grid).permute(0, 3, 1, 2)  # (B, 3, h, w)
        smooth = F.interpolate(small, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
        return (smooth.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def paint_attention(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps of attention as heat, smooth between the centres of the patches: dark is none, light the map's own most.

    Args:
        maps: (n, h, w) shares, 0 or more.
        size: height and width in pixels.
    Returns:
        (n, height, width, 3) uint8.
    """
    import matplotlib

    most = np.quantile(maps.reshape(len(maps), -1), 1 - OUTLIERS, axis=1)
    shares = torch.from_numpy(maps.astype(np.float64) / np.maximum(most, 1e-300)[:, None, None])
    smooth = F.interpolate(shares[None], size=size, mode="bicubic", align_corners=False)[0].clamp(0, 1)
    return matplotlib.colormaps["inferno"](smooth.numpy(), bytes=True)[..., :3]


@dataclass(frozen=True)
class Scale:
    """Which cosine has which colour, one scale for all that is to be compared.

    Attributes:
        low, high: what is as dark, and as light, as it gets.
    """

    low: float
    high: float

    @classmethod
    def of(cls, maps: np.ndarray) -> Scale:
        """From the values of all maps, of any shape; the outermost ones on either side are cut off."""
        low, high = np.quantile(maps, (OUTLIERS, 1 - OUTLIERS))
        return cls(float(low), float(high))

    def paint(self, maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Maps of (n, h, w) cosines as (n, height, width, 3) uint8, smooth between the centres of the patches."""
        span = max(self.high - self.low, NO_SPAN)
        shares = torch.from_numpy((maps.astype(np.float64) - self.low) / span)
        smooth = F.interpolate(shares[None], size=size, mode="bicubic", align_corners=False)[0].clamp(0, 1)
        return _heat(smooth.numpy())

    def bar(self, width: int, height: int) -> np.ndarray:
        """(height, width, 3) uint8, the colours from low to high."""
        return _heat(np.tile(np.linspace(0, 1, width), (height, 1)))


def _heat(shares: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 of shares in [0, 1], in other colours than attention, which is on a scale of each map's own."""
    import matplotlib

    return matplotlib.colormaps["viridis"](shares, bytes=True)[..., :3]


def proper_name(name: str) -> str:
    """What a method, a loss or a teacher is called in pictures and texts, where its name is one of a paper's."""
    return _PROPER.get(name, name)


def class_colours(count: int) -> np.ndarray:
    """(count, 3) uint8, colours that tell classes apart; class 0, the background, is dark."""
    hues = np.arange(max(count - 1, 1)) / max(count - 1, 1)
    light = np.where(np.arange(len(hues)) % 2, 0.62, 0.9)
    colours = [_rgb(hue, 0.6, value) for hue, value in zip(hues, light, strict=True)]
    return np.array([(0.16, 0.17, 0.2), *colours][:count]) * 255 // 1


def _rgb(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    import colorsys

    return colorsys.hsv_to_rgb(hue, saturation, value)


def paint_classes(mask: np.ndarray, count: int) -> np.ndarray:
    """(H, W, 3) uint8 from (H, W) classes below `count`; pixels of no class are grey."""
    colours = np.vstack([class_colours(count), [[128, 128, 128]]]).astype(np.uint8)
    return colours[np.minimum(mask, count)]


def paint_named(picture: np.ndarray, mask: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """A picture in shades of grey under the colours of its classes.

    Args:
        picture: (H, W, 3) uint8.
        mask: (H, W) classes; those from n on are left grey.
        colours: (n, 3) of the classes.
    Returns:
        (H, W, 3) uint8.
    """
    grey = picture.mean(-1, keepdims=True)
    every = np.vstack([colours, [[160, 160, 160]]])[np.minimum(mask, len(colours))]
    return (grey * (0.35 + 0.65 * every / 255) * 0.55 + every * 0.45).clip(0, 255).astype(np.uint8)


def data_uri(picture: np.ndarray | Image.Image, longest: int = 192) -> str:
    """A picture as text that a page can hold, its longer side at most `longest` pixels."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image = image.convert("RGB")
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


@dataclass(frozen=True)
class Line:
    """A line of a plot.

    Attributes:
        label: for the legend; empty leaves it out.
        x, y: points, equally many.
        tone: number of its colour, see TONES.
        dashed: its look.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    tone: int
    dashed: bool = False


@dataclass(frozen=True)
class Mark:
    """A thin level line across a plot, such as what guessing gives, with what it means."""

    value: float
    label: str


def curves(
    lines: Sequence[Line],
    xlabel: str,
    percent: bool = False,
    from_zero: bool = False,
    marks: Sequence[Mark] = (),
    ticks: Sequence[int] = (),
) -> str:
    """A plot as SVG without a size of its own, in the colours of the page that it stands in.

    Args:
        lines: at least one point each.
        xlabel: under the horizontal axis, which counts in whole numbers.
        percent: the vertical axis shows fractions as percentages, from zero.
        from_zero: the vertical axis begins at zero in any case.
        marks: level lines; the vertical axis reaches to them.
        ticks: where the horizontal axis is marked, which then is logarithmic.
    """

    def draw(axes: Any) -> None:
        _lines(axes, lines, _TONE_INKS)
        _marks(axes, marks, _INK)
        axes.set_xlabel(xlabel)
        axes.grid(axis="y", linewidth=0.5)
        axes.set_axisbelow(True)
        _scale(axes, percent, percent or from_zero)
        if ticks:
            _logarithmic(axes, ticks)
        if any(line.label for line in lines):
            axes.legend(handlelength=1.2, borderaxespad=0.2)

    return _svg(draw)


def _lines(axes: Any, lines: Sequence[Line], inks: Sequence[str]) -> None:
    for line in lines:
        (drawn,) = axes.plot(line.x, line.y, "--" if line.dashed else "-", linewidth=1.5, label=line.label)
        drawn.set_color(inks[line.tone % len(inks)])
        if len(line.x) < FEW_POINTS:
            drawn.set(marker="o", markersize=3, clip_on=False)  # whole, also on an axis


def _marks(axes: Any, marks: Sequence[Mark], ink: str) -> None:
    for mark in marks:
        axes.axhline(mark.value, color=ink, linewidth=0.6)
        where = axes.get_yaxis_transform()  # across the plot, at its value
        axes.text(1, mark.value, mark.label, transform=where, ha="right", va="bottom", fontsize=7)


def _logarithmic(axes: Any, ticks: Sequence[int]) -> None:
    """A logarithmic horizontal axis with these marks, and the numbers of those that have room for theirs."""
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(ticks) / 1.06, max(ticks) * 1.06)
    axes.set_xticks(list(ticks), _with_room(ticks))
    axes.minorticks_off()


def _with_room(ticks: Sequence[int]) -> list[str]:
    """Labels of marks on a logarithmic axis, from the largest down, without those that would lie on one another."""
    kept: list[int] = []
    for tick in sorted(ticks, reverse=True):
        if not kept or math.log(kept[-1] / tick) > LEAST_ROOM * math.log(max(ticks) / min(ticks)):
            kept.append(tick)
    return [str(tick) if tick in kept else "" for tick in ticks]


@dataclass(frozen=True)
class Plot:
    """Curves over sizes in pixels, for a picture of several plots.

    Attributes:
        title: above them.
        lines: at least one point each.
        marks: level lines with what they mean.
    """

    title: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()


def save_plots(path: Path, title: str, plots: Sequence[Plot], ticks: Sequence[int]) -> None:
    """Plots over one logarithmic axis of sizes, side by side as a PNG, with one legend below them.

    Args:
        path: the file.
        title: above all.
        plots: at least one; a line of the same label and tone means the same in each.
        ticks: sizes in pixels that are marked.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.3 + 3.2 * len(plots), 3.3), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, color="#222222")
    for axes, plot in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots, strict=True):
        _lines(axes, plot.lines, PAGE_TONES)
        _marks(axes, plot.marks, "#707070")
        axes.set_title(plot.title, fontsize=8.5, color="#222222")
        axes.set_xlabel("size of the picture in pixels", fontsize=8)
        axes.grid(axis="y", linewidth=0.5, color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7.5)
        _scale(axes, percent=False, from_zero=False)
        _logarithmic(axes, ticks)
    legends = [axes.get_legend_handles_labels() for axes in figure.axes]
    known = {label: line for lines, labels in legends for line, label in zip(lines, labels, strict=True)}
    figure.legend(list(known.values()), list(known), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=160))


def reliability(found: Calibration) -> str:
    """A reliability diagram as SVG, in the colours of the page: a bar for each bin of confidence, as high as the share
    of right answers, and a dot at their mean confidence, as large as their number; on the diagonal both agree.

    Source: Guo et al. 2017 (arXiv 1706.04599), fig. 1.
    """
    some = np.flatnonzero(found.counts)
    width = 1 / len(found.counts)

    def draw(axes: Any) -> None:
        axes.bar(some * width, found.accuracy[some], width, align="edge", color=_TONE_INKS[0], alpha=0.35, linewidth=0)
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.6)
        sizes = 4 + 60 * found.counts[some] / found.counts.max()
        axes.scatter(found.confidence[some], found.accuracy[some], sizes, color=_TONE_INKS[0], clip_on=False, zorder=3)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="how sure", ylabel="how often right")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_percent())

    return _svg(draw)


def _svg(draw: Callable[[Any], None]) -> str:
    """What a function draws on the axes that it is handed, as SVG for the page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "synoptic",
        "font.size": 8,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _FAINT,
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "xtick.color": _FAINT,
        "ytick.color": _FAINT,
        "grid.color": _FAINT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(3.7, 2.4), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue())


def _scale(axes: Any, percent: bool, from_zero: bool) -> None:
    """Axes whose labels can be read: whole steps, no offsets, no magnified noise."""
    axes.ticklabel_format(useOffset=False)
    axes.ticklabel_format(axis="x", style="plain")
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.locator_params(axis="y", nbins=6)
    if axes.dataLim.width == 0:  # one point, else with a step cut into shares beside it
        axes.set_xlim(axes.dataLim.x0 - 1, axes.dataLim.x0 + 1)
    low, high = axes.get_ylim()
    if from_zero:
        axes.set_ylim(0, max(1.06 * axes.dataLim.y1, LEAST_SHARE))
    elif high - low < (span := LEAST_SPAN * max(abs(low), abs(high))):
        axes.set_ylim((low + high - span) / 2, (low + high + span) / 2)
    if percent:
        axes.yaxis.set_major_formatter(_percent())


def _percent() -> Any:
    """Fractions as percentages without digits."""
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0, decimals=0)


def _for_page(svg: str) -> str:
    """Without the header, the metadata, fixed sizes, and names that a second plot on the page would have too."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg)
    svg = re.sub(r' id="[a-z._A-Z]*_\d+"', "", svg)
    svg = re.sub(r"font: [^;\"]*px [^;\"]*", lambda found: found[0].split("px")[0] + "px var(--sans)", svg)
    for stand_in, colour in _STAND_INS.items():
        svg = svg.replace(stand_in, colour)
    return re.sub(r"\s*\n\s*", "\n", svg)


def save_grid(path: Path, columns: Mapping[str, Sequence[np.ndarray]], scale: float = 1.1) -> None:
    """Pictures in titled columns as a PNG, as the README shows them.

    Args:
        path: the file.
        columns: title -> (H, W, 3) uint8 pictures, equally many in each column.
        scale: inches a picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = len(next(iter(columns.values())))
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    figure = Figure(figsize=(scale * len(columns), scale * rows + 0.35), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=7.5, color="#222222")
        for row, picture in enumerate(pictures):
            axes[row, column].imshow(picture, interpolation="lanczos")
            axes[row, column].set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
