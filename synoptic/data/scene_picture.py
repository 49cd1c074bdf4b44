"""A finished picture of a built-in scene with everything that is true of it."""

from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from synoptic.data.scene_captions import Caption, Seen, describe
from synoptic.data.scene_description import Body, Camera, Kind, Light, Scene
from synoptic.data.scene_layout import sample_kind, sample_scene
from synoptic.data.scene_rendering import NOTHING, Hits, pixel_centres, render, trace

ATTEMPTS = 6  # layouts tried before bodies that cannot be seen are left out
LEAST_VISIBLE = 24 / 96**2  # of the picture's pixels: fewer show no shape
MOST_HIDDEN = 0.75  # of a body's own pixels


@dataclass(frozen=True)
class Instance:
    """One visible body.

    Attributes:
        floating: whether it hovers over the ground.
        box: x, y, width, height of its visible pixels.
        area: how many they are.
        occlusion: fraction of its pixels that other bodies hide, in [0, MOST_HIDDEN].
        position: (3,) of its centre in the world, metres.
    """

    kind: Kind
    floating: bool
    box: tuple[int, int, int, int]
    area: int
    occlusion: float
    position: NDArray[np.float32]


@dataclass(frozen=True)
class SecondView:
    """The same scene from a second camera.

    Attributes:
        image: (H, W, 3) uint8.
        correspondences: (H, W, 2) float32: where the second view shows what the first view's pixel centre shows, in
            its pixel coordinates x, y; NaN where it does not, and for the backdrop.
    """

    image: NDArray[np.uint8]
    camera: Camera
    correspondences: NDArray[np.float32]


@dataclass(frozen=True)
class Picture:
    """One labelled picture. H = W = the configured size.

    Attributes:
        image: (H, W, 3) uint8, sRGB.
        index_map: (H, W) uint8, 0 where no body is seen, else 1 + its index in `instances`.
        depth: (H, W) float32 metres along the camera's axis, 0 for the backdrop.
        normals: (H, W, 3) float32 unit vectors in the camera's frame (x right, y down, z ahead), 0 for the backdrop.
        captions: five; their phrases point into `instances`.
    """

    image: NDArray[np.uint8]
    instances: tuple[Instance, ...]
    index_map: NDArray[np.uint8]
    depth: NDArray[np.float32]
    normals: NDArray[np.float32]
    camera: Camera
    light: Light
    captions: tuple[Caption, ...]
    second: SecondView | None = None

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(n, H, W) the visible pixels of each instance."""
        return self.index_map == np.arange(1, len(self.instances) + 1)[:, None, None]


def draw_picture(pairs: list[tuple[str, str]], size: int, views: int, rng: np.random.Generator) -> Picture:
    """Draws a picture with one body for each (colour, shape) pair, rarely without some for which there is no room."""
    kinds = [sample_kind(colour, shape, rng) for colour, shape in pairs]
    scene, hits = _visible_scene(kinds, size, views, rng)
    rendering = render(scene, scene.cameras[0], hits, rng)
    index_map = (np.maximum(rendering.owner, -1) + 1).astype(np.uint8)
    instances = tuple(_instance(body, index_map == i + 1, hits.reached[i]) for i, body in enumerate(scene.bodies))
    _, depths = scene.cameras[0].project(np.stack([body.position for body in scene.bodies], axis=1))
    seen = [
        Seen(instance.kind, instance.box, float(depth), instance.floating)
        for instance, depth in zip(instances, depths, strict=True)
    ]
    return Picture(
        image=rendering.image,
        instances=instances,
        index_map=index_map,
        depth=rendering.depth,
        normals=rendering.normals,
        camera=scene.cameras[0],
        light=scene.light,
        captions=describe(seen, size, rng),
        second=_second_view(scene, hits, rng) if views == 2 else None,
    )


def _visible_scene(kinds: list[Kind], size: int, views: int, rng: np.random.Generator) -> tuple[Scene, Hits]:
    """A scene of which every body is seen well enough, and what the rays through its pixels' centres meet."""
    for attempt in count(1):
        scene = sample_scene(kinds, size, views, rng)
        hits = _trace_pixels(scene, scene.cameras[0])
        if attempt > ATTEMPTS:
            scene, hits = _without_unseen(scene, hits)
        wanted = len(kinds) if attempt <= ATTEMPTS else 1
        if len(scene.bodies) >= wanted and all(_seen_well(scene, hits)):
            return scene, hits
    raise AssertionError("unreachable")


def _without_unseen(scene: Scene, hits: Hits) -> tuple[Scene, Hits]:
    """Leaves out bodies until all that are left are seen well."""
    while not all(well := _seen_well(scene, hits)):
        scene = scene.without([body for body, good in zip(scene.bodies, well, strict=True) if not good])
        hits = _trace_pixels(scene, scene.cameras[0])
    return scene, hits


def _trace_pixels(scene: Scene, camera: Camera) -> Hits:
    return trace(scene, camera.position[:, None], camera.directions(pixel_centres(camera.size)))


def _seen_well(scene: Scene, hits: Hits) -> list[bool]:
    visible = np.bincount(hits.owner[hits.owner >= 0], minlength=len(scene.bodies))
    least = LEAST_VISIBLE * hits.owner.size
    return [
        bool(shown >= least and shown >= (1 - MOST_HIDDEN) * reached)
        for shown, reached in zip(visible, hits.reached, strict=True)
    ]


def _instance(body: Body, mask: NDArray[np.bool_], reached: int) -> Instance:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    left, right, top, bottom = int(columns[0]), int(columns[-1]), int(rows[0]), int(rows[-1])
    area = int(mask.sum())
    return Instance(
        kind=body.kind,
        floating=body.floating,
        box=(left, top, right - left + 1, bottom - top + 1),
        area=area,
        occlusion=1 - area / reached,
        position=body.position,
    )


def _second_view(scene: Scene, hits: Hits, rng: np.random.Generator) -> SecondView:
    first, second = scene.cameras
    rendering = render(scene, second, _trace_pixels(scene, second), rng)

    met = np.flatnonzero(hits.owner != NOTHING)
    centres = pixel_centres(first.size).take(met, axis=1)
    points = first.position[:, None] + hits.t[met] * first.directions(centres)
    pixels, depth = second.project(points)
    # A ray from the second camera that reaches the point at t = 1 tells whether anything stands before it.
    blocked = trace(scene, second.position[:, None], points - second.position[:, None]).t < 1 - 1e-3
    shown = (depth > 0) & ~blocked & (pixels >= 0).all(axis=0) & (pixels < second.size).all(axis=0)
    correspondences = np.full((first.size**2, 2), np.nan, np.float32)
    correspondences[met[shown]] = pixels[:, shown].T
    return SecondView(rendering.image, second, correspondences.reshape(first.size, first.size, 2))
