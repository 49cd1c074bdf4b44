"""What a built-in scene is: its solids, its cameras and its light.

The world is measured in metres, its z axis points up, and z = 0 is the ground. A camera's own frame is the usual one:
x right, y down, z ahead. Pixel coordinates (x, y) are continuous: column i covers [i, i + 1), its centre is i + 0.5.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from synoptic.data.scene_surfaces import Backing, Paint
from synoptic.data.solids import SOLIDS, Solid, Vectors, transform

# Half the nominal width of a solid, in metres.
SIZES: dict[str, float] = {"small": 0.36, "medium": 0.50, "large": 0.67}


@dataclass(frozen=True)
class Camera:
    """A pinhole camera whose optical axis meets the picture's centre.

    Attributes:
        focal: focal length in pixels, the same along x and y.
        size: side of the square picture in pixels.
        rotation: (3, 3) from the world's axes to the camera's.
        position: (3,) in metres.
    """

    focal: float
    size: int
    rotation: NDArray[np.float32]
    position: NDArray[np.float32]

    @classmethod
    def looking_at(
        cls, target: NDArray[np.floating], azimuth: float, pitch: float, distance: float, focal: float, size: int
    ) -> "Camera":
        """A camera without roll.

        Args:
            target: (3,) what it looks at, from `distance` metres.
            azimuth: of its axis, in radians from the world's y axis towards x.
            pitch: how far it looks down, radians.
        """
        ahead = np.array([math.sin(azimuth) * math.cos(pitch), math.cos(azimuth) * math.cos(pitch), -math.sin(pitch)])
        right = np.array([math.cos(azimuth), -math.sin(azimuth), 0.0])
        rotation = np.stack([right, np.cross(ahead, right), ahead])
        return cls(focal, size, rotation.astype(np.float32), (target - distance * ahead).astype(np.float32))

    def directions(self, pixels: NDArray[np.floating]) -> Vectors:
        """(3, N) world directions through (2, N) pixel coordinates, of length one along the optical axis.

        So the parameter t of a ray position + t * direction is the depth in metres.
        """
        plane = (pixels - np.float32(self.size / 2)) / np.float32(self.focal)
        return transform(self.rotation[:2].T, plane) + self.rotation[2][:, None]

    def project(self, points: Vectors) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Pixel coordinates (2, N) and depths (N,) of (3, N) points of the world."""
        points = transform(self.rotation, points - self.position[:, None])
        return self.focal * points[:2] / points[2] + self.size / 2, points[2]


@dataclass(frozen=True)
class Light:
    """A distant light: (3,) unit vector towards it, and whether solids cast shadows."""

    direction: NDArray[np.float32]
    shadows: bool


@dataclass(frozen=True)
class Kind:
    """What a body is, in the words that captions use."""

    shape: str
    colour: str
    texture: str
    size: str


@dataclass(frozen=True)
class Body:
    """A solid placed in the world.

    Attributes:
        scale: metres per unit of the solid's own frame.
        position: (3,) of the solid's origin, metres.
        rotation: (3, 3) from the solid's axes to the world's.
        floating: whether it hovers over the ground; one that stands on it is upright.
    """

    kind: Kind
    scale: float
    position: NDArray[np.float32]
    rotation: NDArray[np.float32]
    floating: bool
    paint: Paint

    @property
    def solid(self) -> Solid:
        return SOLIDS[self.kind.shape]

    @property
    def inward(self) -> NDArray[np.float32]:
        """(3, 3) from offsets in the world to the solid's own frame."""
        return self.rotation.T / np.float32(self.scale)

    def outline(self) -> Vectors:
        """(3, n) points of the world whose convex hull is nearly the body's."""
        return transform(np.float32(self.scale) * self.rotation, self.solid.outline) + self.position[:, None]


@dataclass(frozen=True)
class Scene:
    """All there is to a picture.

    Attributes:
        bodies: in no particular order; none touches another.
        cameras: one or two, of which the first is the picture's.
        edge: (3,) the ground ends where edge[0] * x + edge[1] * y = edge[2]; behind is the infinitely far backdrop.
        noise: standard deviation of the pixels' noise, in [0, 1] units of colour.
    """

    bodies: tuple[Body, ...]
    cameras: tuple[Camera, ...]
    light: Light
    ground: Backing
    backdrop: Backing
    edge: NDArray[np.float32]
    noise: float

    def without(self, bodies: list[Body]) -> "Scene":
        """The same scene without some of its bodies."""
        return replace(self, bodies=tuple(body for body in self.bodies if not any(body is other for other in bodies)))
