"""What the surfaces of a built-in scene look like: the paint of its solids, its ground and its backdrop.

A solid is painted in a clear colour, in one shade of it or in two. Grounds and backdrops keep to muted colours, so
that the colour of a solid can be told wherever it stands. Colours are sRGB in [0, 1]; vectors are (3, N).
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from synoptic.data.solids import Scalars, Vectors, dot, transform

# The hue's own shade, and how its second shade in a pattern is made: towards black or towards white. Each stays
# within what the name covers: a darker orange would be brown, a lighter red pink.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.07, 0.07),
    "orange": (1.00, 0.50, 0.02),
    "yellow": (0.98, 0.90, 0.08),
    "green": (0.08, 0.62, 0.14),
    "cyan": (0.08, 0.82, 0.86),
    "blue": (0.08, 0.18, 0.88),
    "purple": (0.52, 0.10, 0.70),
    "white": (0.95, 0.95, 0.95),
}
LIGHTENED = ("blue", "purple")


@dataclass(frozen=True)
class Paint:
    """The paint of one solid.

    Attributes:
        texture: one of TEXTURES.
        shades: (2, 3) colours; a plain solid shows only the first.
        frequency: periods of the pattern per unit of the solid's own frame.
        phase: (3,) shifts of the pattern, in periods.
        axis: (3,) unit vector across the stripes.
    """

    texture: str
    shades: NDArray[np.float32]
    frequency: float
    phase: NDArray[np.float32]
    axis: NDArray[np.float32]

    @classmethod
    def sample(cls, colour: str, texture: str, rng: np.random.Generator) -> "Paint":
        """Mixes a paint: the colour varies a little in brightness and hue, the pattern in pitch and place."""
        base = np.array(COLOURS[colour]) * rng.uniform(0.9, 1.04) + rng.uniform(-0.03, 0.03, 3)
        second = base + 0.62 * (1 - base) if colour in LIGHTENED else 0.5 * base
        # Oblique stripes, so that they show on upright and on level faces alike.
        turn, rise = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(25, 65))
        axis = np.array([np.cos(turn) * np.cos(rise), np.sin(turn) * np.cos(rise), np.sin(rise)])
        return cls(
            texture=texture,
            shades=np.clip([base, second], 0, 1).astype(np.float32),
            frequency=float(rng.uniform(0.85, 1.15)),
            phase=rng.uniform(0, 1, 3).astype(np.float32),
            axis=axis.astype(np.float32),
        )

    def colour_at(self, points: Vectors, normals: Vectors) -> Vectors:
        """(3, N) colours at (3, N) points with (3, N) normals, both in the solid's own frame."""
        second = TEXTURES[self.texture](self, points, normals)
        return self.shades.T.take(second.view(np.int8), axis=1)


def _plain(paint: Paint, points: Vectors, normals: Vectors) -> NDArray[np.bool_]:
    return np.zeros(points.shape[1], bool)


def _striped(paint: Paint, points: Vectors, normals: Vectors) -> NDArray[np.bool_]:
    across = 1.9 * paint.frequency * dot(paint.axis[:, None], points) + paint.phase[0]
    return across - np.floor(across) < 0.5


def _checkered(paint: Paint, points: Vectors, normals: Vectors) -> NDArray[np.bool_]:
    cells = np.floor(2.4 * paint.frequency * points + paint.phase[:, None])
    return cells.sum(axis=0) % 2 == 1


def _dotted(paint: Paint, points: Vectors, normals: Vectors) -> NDArray[np.bool_]:
    # Dots lie in the plane that faces the surface most, so that they are round on flat and on curved faces.
    facing = np.argmax(np.abs(normals), axis=0)
    x, y, z = points
    u = 2.0 * paint.frequency * np.where(facing == 0, y, x) + paint.phase[0]
    v = 2.0 * paint.frequency * np.where(facing == 2, y, z) + paint.phase[1]
    row = np.floor(v)
    u, v = u + 0.5 * (row % 2), v - row - 0.5
    u = u - np.floor(u) - 0.5
    return u * u + v * v < 0.33**2


TEXTURES: dict[str, Callable[[Paint, Vectors, Vectors], NDArray[np.bool_]]] = {
    "plain": _plain,
    "striped": _striped,
    "checkered": _checkered,
    "dotted": _dotted,
}


@dataclass(frozen=True)
class Backing:
    """A ground or a backdrop: a pattern between two muted colours over a plane.

    Attributes:
        pattern: one of PATTERNS.
        colours: (2, 3), between which the pattern varies.
        turn: (2, 2) from the plane's coordinates to the pattern's, whose cells are one unit wide.
        shift: (2,) added after that.
    """

    pattern: str
    colours: NDArray[np.float32]
    turn: NDArray[np.float32]
    shift: NDArray[np.float32]

    @classmethod
    def sample(cls, brightness: float, cell: float, rng: np.random.Generator) -> "Backing":
        """A random backing about as bright as `brightness` in [0, 1], its cells about `cell` plane units wide."""
        pattern = tuple(PATTERNS)[rng.integers(len(PATTERNS))]
        hue, saturation = rng.uniform(0, 1), rng.uniform(0.02, 0.22)
        contrast = rng.uniform(0.06, 0.16)
        colours = [
            colorsys.hsv_to_rgb(hue + rng.uniform(-0.06, 0.06), saturation, np.clip(brightness + change, 0.08, 0.85))
            for change in (-contrast, contrast)
        ]
        angle, scale = rng.uniform(0, 2 * np.pi), 1 / (cell * rng.uniform(0.7, 1.4))
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return cls(pattern, *(np.array(part, np.float32) for part in (colours, turn, rng.uniform(0, 64, 2))))

    def colour_at(self, plane: NDArray[np.floating]) -> Vectors:
        """(3, N) colours at (2, N) coordinates of the plane."""
        u, v = transform(self.turn, plane) + self.shift[:, None]
        dark, bright = self.colours[:, :, None]
        return dark + (bright - dark) * PATTERNS[self.pattern](u, v)


@cache
def _noise() -> NDArray[np.float32]:
    """(256, 256) fractal noise in [0, 1] that tiles the plane: the same for every scene."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None]) * 256
    spectrum = np.fft.rfft2(rng.standard_normal((256, 256))) / np.maximum(frequency, 4) ** 1.6
    noise = np.fft.irfft2(np.where(frequency < 48, spectrum, 0))
    noise = 0.5 + 0.2 * (noise - noise.mean()) / noise.std()
    return np.clip(noise, 0, 1).astype(np.float32)


@cache
def _hashed() -> NDArray[np.float32]:
    """(4096,) uniform random numbers: the same for every scene."""
    return np.random.default_rng(1).uniform(0, 1, 4096).astype(np.float32)


def _noise_at(u: Scalars, v: Scalars) -> Scalars:
    """Noise whose largest blotches are about one unit wide."""
    column, row = (64 * u).astype(np.int32) & 255, (64 * v).astype(np.int32) & 255
    return _noise().take(256 * row + column)


def _cell_shade(column: Scalars, row: Scalars) -> Scalars:
    return _hashed().take((61 * column + 517 * row).astype(np.int32) & 4095)


def _smooth(u: Scalars, v: Scalars) -> Scalars:
    return 0.8 * _noise_at(u * 0.3, v * 0.3) + 0.1


def _blotched(u: Scalars, v: Scalars) -> Scalars:
    return _noise_at(u, v)


def _planks(u: Scalars, v: Scalars) -> Scalars:
    column = np.floor(u)
    row = np.floor(v * 0.22 + 0.37 * column)
    shade = 0.6 * _cell_shade(column, row) + 0.4 * _noise_at(u * 1.5, v * 0.15)
    return np.where(u - column < 0.06, 0, shade)


def _tiles(u: Scalars, v: Scalars) -> Scalars:
    column, row = np.floor(u), np.floor(v)
    shade = 0.35 + 0.4 * _cell_shade(column, row) + 0.25 * _noise_at(u, v)
    return np.where((u - column < 0.07) | (v - row < 0.07), 0, shade)


def _bricks(u: Scalars, v: Scalars) -> Scalars:
    row = np.floor(v)
    return _tiles(u * 0.5 + 0.5 * (row % 2), v)


def _ramp(u: Scalars, v: Scalars) -> Scalars:
    return 0.5 + 0.4 * np.sin(0.4 * u) + 0.1 * _noise_at(u, v)


def _grain(u: Scalars, v: Scalars) -> Scalars:
    return 0.5 * _noise_at(u * 2.2, v * 2.2) + 0.5 * _noise_at(u * 0.4, v * 0.4)


PATTERNS: dict[str, Callable[[Scalars, Scalars], Scalars]] = {
    "smooth": _smooth,
    "blotched": _blotched,
    "planks": _planks,
    "tiles": _tiles,
    "bricks": _bricks,
    "ramp": _ramp,
    "grain": _grain,
}
