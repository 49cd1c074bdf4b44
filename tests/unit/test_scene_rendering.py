"""Light, shadow and smooth edges of a scene simple enough to know how it must look."""

from dataclasses import replace

import numpy as np

from synoptic.data.scene_description import Body, Camera, Kind, Light, Scene
from synoptic.data.scene_rendering import GROUND, Rendering, pixel_centres, render, shade, trace
from synoptic.data.scene_surfaces import Backing, Paint


def a_ball_over_plain_ground(shadows: bool) -> Scene:
    """A white ball of radius 0.475 m, one metre up, lit from the right, over a ground and before a backdrop of grey."""
    grey = Backing("smooth", np.full((2, 3), 0.5, np.float32), np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    paint = Paint("plain", np.full((2, 3), 0.9, np.float32), 1.0, np.zeros(3, np.float32), np.float32([1, 0, 0]))
    ball = Body(
        Kind("sphere", "white", "plain", "medium"), 0.5, np.float32([0, 0, 1]), np.eye(3, dtype=np.float32), True, paint
    )
    return Scene(
        bodies=(ball,),
        cameras=(Camera.looking_at(np.zeros(3), azimuth=0.0, pitch=0.5, distance=5.0, focal=130.0, size=128),),
        light=Light(np.float32([0.6, 0.0, 0.8]), shadows),
        ground=grey,
        backdrop=grey,
        edge=np.float32([0, 1, 4]),
        noise=0.0,
    )


def rendered(scene: Scene) -> Rendering:
    camera = scene.cameras[0]
    hits = trace(scene, camera.position[:, None], camera.directions(pixel_centres(camera.size)))
    return render(scene, camera, hits, np.random.default_rng(0))


def test_a_shadow_lies_where_the_ball_stands_between_ground_and_light() -> None:
    lit, shaded = (rendered(a_ball_over_plain_ground(shadows)) for shadows in (False, True))
    camera = a_ball_over_plain_ground(True).cameras[0]
    points = camera.position + lit.depth[..., None] * camera.directions(pixel_centres(128)).T.reshape(128, 128, 3)
    to_ball = np.array([0, 0, 1]) - points
    gap = np.linalg.norm(np.cross(to_ball, [0.6, 0, 0.8]), axis=-1)  # of the ball's centre from the ray to the light
    darker = (shaded.image.astype(int) - lit.image).mean(axis=-1) < -20
    ground = lit.owner == GROUND
    assert darker[ground & (gap < 0.44)].all()
    assert not darker[ground & (gap > 0.51)].any()
    assert not darker[~ground].any()
    assert (darker & ground).sum() > 100


def test_edges_are_smoother_than_one_ray_a_pixel_draws_them() -> None:
    scene = a_ball_over_plain_ground(False)
    camera = scene.cameras[0]
    fine = replace(scene, cameras=(replace(camera, focal=8 * camera.focal, size=8 * camera.size),))
    truth = rendered(fine).image.reshape(128, 8, 128, 8, 3).mean(axis=(1, 3))
    directions = camera.directions(pixel_centres(128))
    colours, _ = shade(scene, camera, directions, trace(scene, camera.position[:, None], directions))
    rough = np.clip(255 * colours.T, 0, 255).reshape(128, 128, 3)
    smooth = rendered(scene).image
    assert np.abs(smooth - truth).mean() < 0.5 * np.abs(rough - truth).mean()
    assert np.abs(smooth - truth).max() < 0.6 * np.abs(rough - truth).max()


def test_without_shadows_and_noise_the_light_still_shows_the_form() -> None:
    image = rendered(a_ball_over_plain_ground(False)).image.astype(int).mean(axis=-1)
    ball = rendered(a_ball_over_plain_ground(False)).owner == 0
    columns = np.flatnonzero(ball.any(axis=0))
    row = int(np.flatnonzero(ball.any(axis=1)).mean())
    assert image[row, columns[-1] - 4] > image[row, columns[0] + 4] + 30  # lit from the right
