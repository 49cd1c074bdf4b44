"""Draws built-in scenes at random: what stands where, seen from where, in which light."""

import math

import numpy as np
from numpy.typing import NDArray

from synoptic.data.scene_description import SIZES, Body, Camera, Kind, Light, Scene
from synoptic.data.scene_surfaces import TEXTURES, Backing, Paint
from synoptic.data.solids import SOLIDS, Solid

SIZE_JITTER = 0.07  # sizes stay apart: no small body is as large as a medium one
FLOATING = 0.25  # fraction of bodies
TRIES = 60  # to find a body a free place

MEDIUM_ALONE = 0.51  # what a medium body alone fills of its picture's side
CROWD_DISTANCE = (1.0, 1.55, 1.8, 2.05, 2.25, 2.4)  # how much farther off the camera stands from 1, 2, ... 6 bodies
AIM = 0.45  # height of what the camera looks at, metres


class _Stage:
    """The first camera, and the ground before it on which bodies are placed.

    Args:
        count: bodies to come.
        size: side of the picture in pixels.
    """

    def __init__(self, count: int, size: int, rng: np.random.Generator) -> None:
        self.azimuth = rng.uniform(0, 2 * math.pi)
        self.pitch = math.radians(rng.uniform(14, 36))
        focal = size * rng.uniform(1.15, 1.5)
        self.distance = focal * 2 * SIZES["medium"] / (MEDIUM_ALONE * size) * CROWD_DISTANCE[count - 1]
        # One body alone keeps its distance, and so the width its size stands for; the aim moves it about the picture.
        self.target = np.array([0.0, 0.0, AIM + (rng.uniform(-0.35, 0.35) if count == 1 else 0.0)])
        self.camera = Camera.looking_at(self.target, self.azimuth, self.pitch, self.distance, focal, size)
        self.depths = (-0.06, 0.06) if count == 1 else (-0.3, 0.48)  # times the distance

    def spot(self, rng: np.random.Generator) -> tuple[float, float]:
        """A random x, y on the ground."""
        ahead, right = self.distance * rng.uniform(*self.depths), self.distance * rng.uniform(-0.38, 0.38)
        sine, cosine = math.sin(self.azimuth), math.cos(self.azimuth)
        return ahead * sine + right * cosine, ahead * cosine - right * sine

    def shows(self, body: Body) -> bool:
        """Whether the whole body is in the picture."""
        pixels, depth = self.camera.project(body.outline())
        return bool(depth.min() > 0.5 and pixels.min() > 0 and pixels.max() < self.camera.size)

    def second_camera(self, rng: np.random.Generator) -> Camera:
        """A camera elsewhere with the same target."""
        turn = rng.choice([-1, 1]) * math.radians(rng.uniform(8, 22))
        pitch = np.clip(self.pitch + math.radians(rng.uniform(-6, 6)), math.radians(12), math.radians(38))
        distance = self.distance * rng.uniform(0.9, 1.12)
        return Camera.looking_at(
            self.target, self.azimuth + turn, float(pitch), distance, self.camera.focal, self.camera.size
        )


def sample_kind(colour: str, shape: str, rng: np.random.Generator) -> Kind:
    """A kind of body of this colour and shape."""
    texture, size = tuple(TEXTURES)[rng.integers(len(TEXTURES))], tuple(SIZES)[rng.integers(len(SIZES))]
    return Kind(shape, colour, texture, size)


def sample_scene(kinds: list[Kind], size: int, views: int, rng: np.random.Generator) -> Scene:
    """Draws a scene with one body of each kind, save those for which no free place was found.

    Args:
        kinds: one to six of them.
        size: side of the picture in pixels.
        views: 1 or 2 cameras.
    """
    stage = _Stage(len(kinds), size, rng)
    bodies: list[Body] = []
    # The largest first: they are the hardest to find a place for.
    for kind in sorted(kinds, key=lambda kind: -SIZES[kind.size]):
        body = _place(kind, bodies, stage, rng)
        if body is not None:
            bodies.append(body)
    brightness = rng.uniform(0.3, 0.68)
    contrast = rng.choice([-1, 1]) * rng.uniform(0.08, 0.25)
    edge_distance = max(0.9, stage.distance * rng.uniform(0.35, 2.0))
    return Scene(
        bodies=tuple(bodies),
        cameras=(stage.camera,) if views == 1 else (stage.camera, stage.second_camera(rng)),
        light=_sample_light(stage.azimuth, rng),
        ground=Backing.sample(brightness, 0.55, rng),
        backdrop=Backing.sample(min(max(brightness + contrast, 0.15), 0.8), 0.09, rng),
        edge=np.array([math.sin(stage.azimuth), math.cos(stage.azimuth), edge_distance], np.float32),
        noise=rng.uniform(0.0, 0.03),
    )


def _sample_light(azimuth: float, rng: np.random.Generator) -> Light:
    """Light from anywhere but steeply behind: there, all that a camera looking to `azimuth` sees would be dark."""
    towards = azimuth + math.pi + math.radians(rng.uniform(-115, 115))
    rise = math.radians(rng.uniform(30, 70))
    direction = [math.sin(towards) * math.cos(rise), math.cos(towards) * math.cos(rise), math.sin(rise)]
    return Light(np.array(direction, np.float32), shadows=rng.uniform() < 0.75)


def _place(kind: Kind, others: list[Body], stage: _Stage, rng: np.random.Generator) -> Body | None:
    """Makes a body and finds it a free place; None where there seems to be none."""
    solid = SOLIDS[kind.shape]
    scale = SIZES[kind.size] * rng.uniform(1 - SIZE_JITTER, 1 + SIZE_JITTER)
    paint = Paint.sample(kind.colour, kind.texture, rng)
    floating = bool(rng.uniform() < FLOATING)
    for _ in range(TRIES):
        height = scale * solid.radius + rng.uniform(0.1, 0.5) if floating else scale * solid.half_height
        position = (*stage.spot(rng), height)
        if not all(_is_apart(position, _clearance(solid, scale, floating), other) for other in others):
            continue
        # A torus must show its hole: it never turns its side to the camera.
        yaw = rng.uniform(-math.pi, math.pi) if kind.shape != "torus" else rng.uniform(-0.8, 0.8) - stage.azimuth
        tilts = rng.uniform(-0.3, 0.3, 2) if floating else (0.0, 0.0)
        rotation = _turn(yaw, *tilts)
        spot = np.array(position, np.float32)
        body = Body(kind, scale, spot, rotation, floating, paint)
        if stage.shows(body):
            return body
    return None


def _turn(yaw: float, roll: float, tilt: float) -> NDArray[np.float32]:
    """Turns about z by `yaw`, after tilting about x by `roll` and about y by `tilt` (radians)."""
    about_z = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, math.cos(roll), -math.sin(roll)], [0, math.sin(roll), math.cos(roll)]])
    about_y = np.array([[math.cos(tilt), 0, math.sin(tilt)], [0, 1, 0], [-math.sin(tilt), 0, math.cos(tilt)]])
    return (about_z @ about_x @ about_y).astype(np.float32)


def _clearance(solid: Solid, scale: float, floating: bool) -> tuple[float, float]:
    """Radius and half height, in metres, of an upright cylinder that holds a body."""
    if floating:  # and so perhaps tilted
        return scale * solid.radius, scale * solid.radius
    return scale * solid.footprint, scale * solid.half_height


def _is_apart(position: tuple[float, float, float], clearance: tuple[float, float], other: Body) -> bool:
    girth, height = _clearance(other.solid, other.scale, other.floating)
    x, y, z = (mine - float(its) for mine, its in zip(position, other.position, strict=True))
    return math.hypot(x, y) > clearance[0] + girth or abs(z) > clearance[1] + height
