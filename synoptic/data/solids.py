"""The ten solids of the built-in scenes, each in its own frame, and where lines meet them.

A solid's own frame has its z axis up and its origin halfway between its lowest and its highest point. Sizes are
chosen so that all ten look about two units wide: what tells them apart is their form, not their size.

Vectors are (3, N) float arrays, one column a point or a line, so that a component is one contiguous row; (3, 1)
stands for one vector shared by all lines.
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.floating]  # (3, N)
Scalars = NDArray[np.floating]  # (N,)

TINY = 1e-20  # keeps a quotient finite where a line runs parallel to a face


def dot(a: Vectors, b: Vectors) -> Scalars:
    """(N,) products of (3, N) vectors, either of which may be (3, 1)."""
    return np.einsum("ij,ij->j", a, b)


def transform(matrix: NDArray[np.floating], vectors: Vectors) -> Vectors:
    """matrix @ vectors without BLAS.

    Its threads would fight over the cores with other processes that draw, and round differently by their number.
    """
    return np.einsum("ij,jn->in", matrix, vectors)


def unit(vectors: Vectors) -> Vectors:
    """Vectors scaled to length one."""
    return vectors / np.sqrt(dot(vectors, vectors))


class Solid(ABC):
    """A closed body around the origin of its own frame.

    Args:
        outline: (3, n) points on the surface, enough of them that their convex hull is nearly the body's.
    """

    def __init__(self, outline: Vectors) -> None:
        self.outline = outline.astype(np.float32)
        self.radius = float(np.linalg.norm(outline, axis=0).max())
        self.footprint = float(np.linalg.norm(outline[:2], axis=0).max())
        self.half_height = float(outline[2].max())

    @abstractmethod
    def first_crossing(self, origin: Vectors, direction: Vectors) -> Scalars:
        """Where lines enter the body first.

        Args:
            origin: (3, N) or (3, 1) a point of each line; float32 is exact to about 1e-6 of its distance.
            direction: (3, N) or (3, 1) of any length but zero.
        Returns:
            (N,) the smallest t of either sign for which origin + t * direction is on the surface; inf for a miss.
        """

    @abstractmethod
    def normal(self, points: Vectors) -> Vectors:
        """(3, N) outward unit normals at (3, N) points of the surface; on an edge, that of one of its faces."""


class Polyhedron(Solid):
    """The convex body of all p with normals @ p <= offsets.

    Args:
        normals: (faces, 3) unit vectors.
        offsets: (faces,) distances of the faces from the origin, positive.
        corners: (3, n).
    """

    def __init__(self, normals: Vectors, offsets: Scalars, corners: Vectors) -> None:
        super().__init__(corners)
        self.normals = np.asarray(normals, np.float32)
        self.offsets = np.asarray(offsets, np.float32)[:, None]

    def first_crossing(self, origin: Vectors, direction: Vectors) -> Scalars:
        slope = transform(self.normals, direction) + TINY  # (faces, N)
        t = (self.offsets - transform(self.normals, origin)) / slope
        enter = np.where(slope < 0, t, -np.inf).max(axis=0)
        leave = np.where(slope > 0, t, np.inf).min(axis=0)
        return np.where(enter < leave, enter, np.inf)

    def normal(self, points: Vectors) -> Vectors:
        face = np.argmax(transform(self.normals, points) - self.offsets, axis=0)
        return self.normals.T.take(face, axis=1)


class Ellipsoid(Solid):
    """A sphere stretched along the axes; `axes` are its three half lengths."""

    def __init__(self, axes: tuple[float, float, float]) -> None:
        self.axes = np.array(axes, np.float32)[:, None]
        super().__init__(self.axes * _ball(1.0))

    def first_crossing(self, origin: Vectors, direction: Vectors) -> Scalars:
        origin, direction = origin / self.axes, direction / self.axes
        near, _ = _roots(dot(direction, direction), dot(origin, direction), dot(origin, origin) - 1)
        return near

    def normal(self, points: Vectors) -> Vectors:
        return unit(points / self.axes**2)


class Cylinder(Solid):
    """An upright cylinder."""

    def __init__(self, radius: float, half_height: float) -> None:
        super().__init__(np.hstack([_ring(radius, -half_height), _ring(radius, half_height)]))
        self.girth = radius

    def first_crossing(self, origin: Vectors, direction: Vectors) -> Scalars:
        near, far = _wall_roots(origin, direction, self.girth)
        slope = np.where(direction[2] == 0, TINY, direction[2])
        bottom, top = (-self.half_height - origin[2]) / slope, (self.half_height - origin[2]) / slope
        enter = np.maximum(near, np.minimum(bottom, top))
        return np.where(enter < np.minimum(far, np.maximum(bottom, top)), enter, np.inf)

    def normal(self, points: Vectors) -> Vectors:
        x, y, z = points
        on_wall = np.sqrt(x * x + y * y) - self.girth > np.abs(z) - self.half_height
        return unit(np.where(on_wall, np.stack([x, y, np.zeros_like(z)]), np.stack([0 * x, 0 * y, z])))


class Capsule(Solid):
    """An upright cylinder of half height `half_length` with a half ball of the same radius on either end."""

    def __init__(self, radius: float, half_length: float) -> None:
        lift, ball = np.array([[0.0], [0.0], [half_length]]), _ball(radius)
        super().__init__(np.hstack([ball[:, ball[2] <= 0] - lift, ball[:, ball[2] >= 0] + lift]))
        self.girth, self.half_length = radius, half_length

    def first_crossing(self, origin: Vectors, direction: Vectors) -> Scalars:
        wall, _ = _wall_roots(origin, direction, self.girth)
        with np.errstate(invalid="ignore"):  # inf * 0 for a miss: a NaN compares as no hit
            height = np.abs(origin[2] + wall * direction[2])
        first = np.where(height <= self.half_length, wall, np.inf)
        # A union of bodies is entered where the first of them is.
        square, plane = dot(direction, direction), dot(origin[:2], direction[:2])
        for end in (-self.half_length, self.half_length):
            rise = origin[2] - end
            cap, _ = _roots(square, plane + rise * direction[2], dot(origin[:2], origin[:2]) + rise**2 - self.girth**2)
            first = np.minimum(first, cap)
        return first

    def normal(self, points: Vectors) -> Vectors:
        x, y, z = points
        return unit(np.stack([x, y, z - np.clip(z, -self.half_length, self.half_length)]))


class Cone(Solid):
    """A cone with its apex up."""

    def __init__(self, radius: float, half_height: float) -> None:
        super().__init__(np.hstack([_ring(radius, -half_height), [[0.0], [0.0], [half_height]]]))
        self.girth, self.slope = radius, radius / (2 * half_height)

    def first_crossing(self, origin: Vectors, direction: Vectors) -> Scalars:
        below, fall = self.half_height - origin[2], self.slope**2 * direction[2]  # below: down from the apex
        a = dot(direction[:2], direction[:2]) - fall * direction[2]
        b = dot(origin[:2], direction[:2]) + fall * below
        c = dot(origin[:2], origin[:2]) - (self.slope * below) ** 2
        discriminant = b * b - a * c
        # The textbook formula loses its digits, or divides by zero, where the line runs along the mantle (a near 0).
        q = -(b + np.copysign(np.sqrt(np.maximum(discriminant, 0)), b)) - TINY
        a = np.where(a == 0, TINY, a)
        first = (-self.half_height - origin[2]) / np.where(direction[2] == 0, TINY, direction[2])  # the base's plane
        reach = dot(origin[:2] + first * direction[:2], origin[:2] + first * direction[:2])
        first = np.where(reach <= self.girth**2, first, np.inf)
        for root in (q / a, c / q):
            height = origin[2] + root * direction[2]
            on_mantle = (discriminant >= 0) & (np.abs(height) <= self.half_height)  # not on the cone's mirror image
            first = np.where(on_mantle & (root < first), root, first)
        return first

    def normal(self, points: Vectors) -> Vectors:
        x, y, z = points
        girth = np.sqrt(x * x + y * y)
        on_base = -self.half_height - z > girth - self.slope * (self.half_height - z)
        return unit(np.where(on_base, np.array([[0.0], [0.0], [-1.0]]), np.stack([x, y, self.slope * girth])))


class Torus(Solid):
    """An upright ring with its hole along the y axis.

    Args:
        ring: radius of the tube's centre line.
        tube: radius of the tube.
    """

    ROUNDS = 10  # of Newton's method: even where it only halves the error, on a grazing line, 1e-3 is left

    def __init__(self, ring: float, tube: float) -> None:
        middle, flank = _ring(ring + tube, 0.0)[[0, 2, 1]], _ring(ring, tube)[[0, 2, 1]]
        super().__init__(np.hstack([middle, flank, flank * [[1], [-1], [1]]]))
        self.ring, self.tube = ring, tube

    def first_crossing(self, origin: Vectors, direction: Vectors) -> Scalars:
        # By arc length t from its point closest to the centre, a line meets (|p|^2 + R^2 - r^2)^2 = 4 R^2 (x^2 + z^2)
        # where f(t) = t^4 + a t^2 + b t + c = 0. Its coefficients nearly cancel, which takes double precision.
        length = np.sqrt(dot(direction, direction)).astype(np.float64)
        direction = direction / length
        middle = -dot(origin, direction)
        start, along = (origin + middle * direction)[::2], direction[::2]  # x and z
        level = dot(origin, origin) - middle**2 + self.ring**2 - self.tube**2
        around = 4 * self.ring**2
        a = 2 * level - around * dot(along, along)
        b = -2 * around * dot(start, along)
        c = level**2 - around * dot(start, start)
        # f is convex left and right of its two inflections, at -bend and bend. From the far left Newton's method falls
        # to a crossing left of both, which it cannot overshoot; from the right one, to a crossing that comes later.
        bend = np.sqrt(np.maximum(-a / 6, 0))
        first = np.full(len(a), np.inf)
        t, met = self._descend(np.full(len(a), -self.radius), a, b, c)
        met &= (t <= -bend + 1e-9) | (bend == 0)  # without inflections f is convex throughout
        first[met] = t[met]
        rest = np.flatnonzero(~met & (bend > 0))
        t, met = self._descend(bend[rest], a[rest], b[rest], c[rest])
        first[rest[met]] = t[met]
        return ((first + middle) / length).astype(origin.dtype)

    def _descend(self, t: Scalars, a: Scalars, b: Scalars, c: Scalars) -> tuple[Scalars, NDArray[np.bool_]]:
        """Where Newton's method leads from t, and whether f falls through zero there."""
        for _ in range(self.ROUNDS):
            square = t * t
            slope = (4 * square + 2 * a) * t + b
            t = t - ((square + a) * square + b * t + c) / np.where(slope == 0, TINY, slope)
        square = t * t
        return t, (np.abs((square + a) * square + b * t + c) < 1e-6) & ((4 * square + 2 * a) * t + b < 0)

    def normal(self, points: Vectors) -> Vectors:
        x, y, z = points
        stretch = 1 - self.ring / np.sqrt(x * x + z * z)
        return unit(np.stack([x * stretch, y, z * stretch]))


def _roots(a: Scalars, b: Scalars, c: Scalars) -> tuple[Scalars, Scalars]:
    """The two roots of a t^2 + 2 b t + c, a > 0, the smaller first; (inf, -inf) where there are none."""
    discriminant = b * b - a * c
    root = np.sqrt(np.maximum(discriminant, 0))
    real = discriminant > 0
    return np.where(real, (-b - root) / a, np.inf), np.where(real, (root - b) / a, -np.inf)


def _wall_roots(origin: Vectors, direction: Vectors, radius: float) -> tuple[Scalars, Scalars]:
    """Where lines enter and leave the endless upright cylinder."""
    o, d = origin[:2], direction[:2]
    return _roots(dot(d, d) + TINY, dot(o, d), dot(o, o) - radius**2)


def _ring(radius: float, z: float, count: int = 24) -> Vectors:
    angle = np.arange(count) * (2 * np.pi / count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(count, z)])


def _ball(radius: float) -> Vectors:
    poles = np.array([[0.0, 0.0], [0.0, 0.0], [-radius, radius]])
    rings = [_ring(radius * np.cos(a), radius * np.sin(a)) for a in np.deg2rad([-60, -30, 0, 30, 60])]
    return np.hstack([poles, *rings])


def _box(x: float, y: float, z: float) -> Polyhedron:
    half = np.array([x, y, z])
    corners = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)]).T * half[:, None]
    return Polyhedron(np.vstack([np.eye(3), -np.eye(3)]), np.tile(half, 2), corners)


def _prism(sides: int, circumradius: float, half_height: float) -> Polyhedron:
    angle = (np.arange(sides) + 0.5) * (2 * np.pi / sides)
    walls = np.stack([np.cos(angle), np.sin(angle), np.zeros(sides)], axis=1)
    offsets = np.append(np.full(sides, circumradius * np.cos(np.pi / sides)), [half_height] * 2)
    corners = np.hstack([_ring(circumradius, z, sides) for z in (-half_height, half_height)])
    return Polyhedron(np.vstack([walls, [[0, 0, 1], [0, 0, -1]]]), offsets, corners)


def _pyramid(half_side: float, half_height: float) -> Polyhedron:
    lean = np.array([2 * half_height, half_side]) / np.hypot(2 * half_height, half_side)  # a wall's normal: out, up
    walls = np.array([[x * lean[0], y * lean[0], lean[1]] for x, y in ((1, 0), (0, 1), (-1, 0), (0, -1))])
    corners = np.array([[x, y, -half_height] for x in (-half_side, half_side) for y in (-half_side, half_side)])
    apex = [0.0, 0.0, half_height]
    return Polyhedron(
        np.vstack([walls, [0, 0, -1]]), np.append(walls @ apex, half_height), np.vstack([corners, apex]).T
    )


SOLIDS: dict[str, Solid] = {
    "sphere": Ellipsoid((0.95, 0.95, 0.95)),
    "ellipsoid": Ellipsoid((0.66, 0.66, 1.14)),
    "cube": _box(0.74, 0.74, 0.74),
    "slab": _box(1.05, 0.8, 0.24),
    "cylinder": Cylinder(0.62, 0.92),
    "cone": Cone(0.85, 0.9),
    "pyramid": _pyramid(0.82, 0.8),
    "hexagonal prism": _prism(6, 0.95, 0.55),
    "capsule": Capsule(0.5, 0.62),
    "torus": Torus(0.76, 0.27),
}
