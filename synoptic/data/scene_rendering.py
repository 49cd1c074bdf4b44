"""Draws a built-in scene: what each ray meets, how bright it is there, and the finished picture.

Rays are (3, N) arrays. Directions have length one along the camera's optical axis, so a ray's parameter t is depth.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from synoptic.data.scene_description import Body, Camera, Scene
from synoptic.data.solids import Scalars, Vectors, dot, transform, unit

GROUND, NOTHING = -1, -2  # owners of a hit that are no bodies

AMBIENT, SKYLIGHT, DIFFUSE, SPECULAR = 0.52, 0.06, 0.58, 0.45
SHININESS = 5  # a highlight's exponent is 2 to this power

# Pixels whose colour differs from a neighbour's by more than this are drawn anew from four rays in a rotated grid.
EDGE_CONTRAST = 0.12
SUBPIXELS = np.array([[-0.125, -0.375], [0.375, -0.125], [0.125, 0.375], [-0.375, 0.125]], np.float32)


@dataclass
class Hits:
    """What N rays meet first.

    Attributes:
        t: (N,) ray parameter, inf where a ray meets nothing.
        owner: (N,) index of the body, GROUND or NOTHING.
        reached: per body, how many rays meet it when it stands alone.
    """

    t: NDArray[np.float32]
    owner: NDArray[np.int8]
    reached: list[int]


@dataclass
class Rendering:
    """A picture and what is true of its pixels' centres.

    Attributes:
        image: (H, W, 3) uint8.
        owner: (H, W) int8 index of the body seen, GROUND or NOTHING.
        depth: (H, W) float32 metres along the optical axis, 0 for the backdrop.
        normals: (H, W, 3) float32 unit vectors in the camera's frame, 0 for the backdrop.
    """

    image: NDArray[np.uint8]
    owner: NDArray[np.int8]
    depth: NDArray[np.float32]
    normals: NDArray[np.float32]


@cache
def pixel_centres(size: int) -> Vectors:
    """(2, size * size) coordinates x, y of a picture's pixel centres, row by row."""
    y, x = np.mgrid[:size, :size].reshape(2, -1).astype(np.float32) + 0.5
    centres = np.stack([x, y])
    centres.flags.writeable = False  # shared by all pictures
    return centres


def trace(scene: Scene, origin: Vectors, directions: Vectors) -> Hits:
    """Follows rays to what they meet first.

    Args:
        origin: (3, 1) common to all rays, above the ground and outside every body.
        directions: (3, N).
    """
    t, owner = _meet_ground(scene, origin, directions)
    square = dot(directions, directions)
    reached = []
    for index, body in enumerate(scene.bodies):
        rays, distance = _meet(body, origin, directions, square)
        reached.append(len(rays))
        nearer = distance < t.take(rays)
        rays = rays[nearer]
        t[rays] = distance[nearer]
        owner[rays] = index
    return Hits(t, owner, reached)


def _meet_ground(scene: Scene, origin: Vectors, directions: Vectors) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Parameters and owners of rays in a scene without bodies."""
    fall = np.minimum(directions[2], -1e-6)  # level and rising rays meet the ground too far away to matter
    t = -origin[2] / fall
    edge = scene.edge[:2, None]
    within = dot(edge, origin[:2]) + t * dot(edge, directions[:2]) < scene.edge[2]
    return np.where(within, t, np.inf), np.where(within, GROUND, NOTHING).astype(np.int8)


def _meet(
    body: Body,
    origin: Vectors,
    directions: Vectors,
    square: NDArray[np.float32],
    candidates: NDArray[np.bool_] | bool = True,
) -> tuple[NDArray[np.intp], Scalars]:
    """The rays that meet a body, and their parameters there.

    Args:
        origin: (3, N), or (3, 1) for all rays.
        directions: likewise; one of the two is (3, N).
        square: squared length of the directions, 1 or more.
        candidates: (N,) the rays to consider.
    """
    offset = origin - body.position[:, None]
    middle = -dot(offset, directions) / square  # where the ray is closest to the body's centre
    gap = dot(offset, offset) - square * middle**2
    reach = body.scale * body.solid.radius * 1.001
    rays = np.flatnonzero((gap < reach**2) & (middle > -reach) & candidates)
    middle, offset, directions = middle.take(rays), _columns(offset, rays), _columns(directions, rays)
    # From the point closest to the centre, rather than from the camera, float32 has digits to spare.
    start, along = transform(body.inward, offset + middle * directions), transform(body.inward, directions)
    distance = middle + body.solid.first_crossing(start, along)
    met = np.isfinite(distance) & (distance > 0)
    return rays[met], distance[met]


def _columns(vectors: Vectors, rays: NDArray[np.intp]) -> Vectors:
    """The vectors of some rays; one for all stays one for all."""
    return vectors if vectors.shape[1] == 1 else vectors.take(rays, axis=1)


def shade(
    scene: Scene, camera: Camera, directions: Vectors, hits: Hits
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Colours (3, N), which highlights may drive over 1, and world normals (3, N) of what a camera's rays met."""
    # Sorted by owner, what a surface owns is a slice: the backdrop's rays first, then the ground's, then each body's.
    order = np.argsort(hits.owner, kind="stable")
    directions, owner, t = directions.take(order, axis=1), hits.owner.take(order), hits.t.take(order)
    ground, *starts = (int(i) for i in np.searchsorted(owner, range(GROUND, len(scene.bodies) + 1)))
    colours, normals = np.empty((2, *directions.shape), np.float32)

    # The backdrop is infinitely far, so it is a pattern over directions: azimuth and rise, in radians.
    x, y, z = directions[:, :ground]
    colours[:, :ground] = scene.backdrop.colour_at(np.stack([np.arctan2(x, y), z / np.sqrt(x * x + y * y)]))
    normals[:, :ground] = 0

    points = camera.position[:, None] + t[ground:] * directions[:, ground:]
    floor = slice(0, starts[0] - ground)  # of the points, which leave out the backdrop
    colours[:, ground : starts[0]] = scene.ground.colour_at(points[:2, floor])
    normals[:, ground : starts[0]] = np.array([[0], [0], [1]])
    for body, (start, end) in zip(scene.bodies, pairwise(starts), strict=True):
        own_points = transform(body.inward, points[:, start - ground : end - ground] - body.position[:, None])
        own_normals = body.solid.normal(own_points)
        colours[:, start:end] = body.paint.colour_at(own_points, own_normals)
        normals[:, start:end] = transform(body.rotation, own_normals)

    facing = _illumination(scene, points, normals[:, ground:], owner[ground:])
    colours[:, ground:] *= AMBIENT + SKYLIGHT * normals[2, ground:] + DIFFUSE * facing
    bodies = slice(starts[0], None)
    colours[:, bodies] += facing[floor.stop :] * _gloss(scene, directions[:, bodies], normals[:, bodies])
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return colours.take(place, axis=1), normals.take(place, axis=1)


def _illumination(scene: Scene, points: Vectors, normals: Vectors, owner: NDArray[np.int8]) -> NDArray[np.float32]:
    """(N,) cosine of the light's angle, 0 where a point faces away from the light or another body hides the light.

    A body's shadow on itself is left to its facing away, which is exact for all solids but the torus.
    """
    light = scene.light.direction[:, None]
    facing = np.maximum(dot(light, normals), 0)
    if scene.light.shadows:
        one = np.ones(1, np.float32)
        for index, body in enumerate(scene.bodies):
            rays, _ = _meet(body, points, light, one, candidates=(facing > 0) & (owner != index))
            facing[rays] = 0
    return facing


def _gloss(scene: Scene, directions: Vectors, normals: Vectors) -> Scalars:
    """(N,) Blinn-Phong highlights."""
    halfway = scene.light.direction[:, None] - unit(directions)
    gloss = np.maximum(dot(halfway, normals), 0) / np.sqrt(dot(halfway, halfway))
    for _ in range(SHININESS):
        gloss *= gloss
    return SPECULAR * gloss


def render(scene: Scene, camera: Camera, hits: Hits, rng: np.random.Generator) -> Rendering:
    """Finishes the picture of which `hits` are what the rays through its pixels' centres met.

    Args:
        rng: draws the sensor's noise.
    """
    size = camera.size
    centres = pixel_centres(size)
    directions = camera.directions(centres)
    colours, normals = shade(scene, camera, directions, hits)
    _smooth_edges(scene, camera, colours, centres)
    colours += scene.noise * rng.standard_normal(colours.shape, np.float32)
    image = np.clip(255 * colours + 0.5, 0, 255).astype(np.uint8)
    return Rendering(
        image=np.ascontiguousarray(image.T).reshape(size, size, 3),
        owner=hits.owner.reshape(size, size),
        depth=np.where(hits.owner == NOTHING, 0, hits.t).reshape(size, size),
        normals=transform(camera.rotation, normals).T.reshape(size, size, 3),
    )


def _smooth_edges(scene: Scene, camera: Camera, colours: Vectors, centres: Vectors) -> None:
    """Replaces, in place, the colours of pixels that differ from a neighbour by the mean over several rays."""
    image = np.minimum(colours, 1).reshape(3, camera.size, camera.size)
    edge = np.zeros((camera.size, camera.size), bool)
    across = (np.abs(image[:, :, 1:] - image[:, :, :-1]) > EDGE_CONTRAST).any(axis=0)
    down = (np.abs(image[:, 1:] - image[:, :-1]) > EDGE_CONTRAST).any(axis=0)
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    pixels = np.flatnonzero(edge)
    finer = centres.take(pixels, axis=1)[:, None] + SUBPIXELS.T[:, :, None]
    directions = camera.directions(finer.reshape(2, -1))
    fine, _ = shade(scene, camera, directions, trace(scene, camera.position[:, None], directions))
    colours[:, pixels] = np.minimum(fine, 1).reshape(3, len(SUBPIXELS), -1).mean(axis=1)
