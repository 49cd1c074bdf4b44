"""The built-in pictures: what their labels say is what the pictures, and the other labels, show."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from synoptic.data import scenes
from synoptic.data.scene_picture import Picture
from synoptic.data.scenes import HELDOUT_PAIRS, SEEN_PAIRS, SceneConfig, draw, parse_objects, write
from synoptic.files import sole_writer

CROWDED = SceneConfig(count=30, seed=3, objects=(2, 6), views=2)


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [draw(CROWDED, "train", index) for index in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("scenes") / "crowded", CROWDED, workers=1)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def every_file(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def unproject(depth: np.ndarray, camera: dict[str, Any]) -> np.ndarray:
    """(H, W, 3) world points of a depth map, by the textbook's formula."""
    y, x = np.mgrid[: depth.shape[0], : depth.shape[1]] + 0.5
    own = np.stack([(x - camera["cx"]) / camera["fx"], (y - camera["cy"]) / camera["fy"], np.ones_like(x)], -1)
    return (own * depth[..., None]) @ np.array(camera["rotation"]) + camera["position"]


def project(points: np.ndarray, camera: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    own = (points - camera["position"]) @ np.array(camera["rotation"]).T
    x = camera["fx"] * own[..., 0] / own[..., 2] + camera["cx"]
    y = camera["fy"] * own[..., 1] / own[..., 2] + camera["cy"]
    return np.stack([x, y], -1), own[..., 2]


# --- the design of the data set -------------------------------------------------------------------------------------


def test_sixteen_pairs_are_held_out_of_every_colour_and_every_shape_but_never_all_of_one() -> None:
    assert len(set(HELDOUT_PAIRS)) == 16
    assert len(SEEN_PAIRS) == 64
    assert not set(HELDOUT_PAIRS) & set(SEEN_PAIRS)
    assert Counter(colour for colour, _ in HELDOUT_PAIRS) == dict.fromkeys(scenes.COLOURS, 2)
    shapes = Counter(shape for _, shape in HELDOUT_PAIRS)
    assert set(shapes) == set(scenes.SHAPES)
    assert set(shapes.values()) <= {1, 2}


def test_training_never_shows_a_held_out_pair_and_testing_shows_all_pairs() -> None:
    config = SceneConfig(count=2, size=32, objects=(6, 6))
    shown = {
        split: {(i.kind.colour, i.kind.shape) for index in range(40) for i in draw(config, split, index).instances}
        for split in scenes.SPLITS
    }
    assert shown["train"] == set(SEEN_PAIRS)
    assert shown["test"] == set(SEEN_PAIRS) | set(HELDOUT_PAIRS)


def test_single_objects_are_balanced_over_shapes_and_their_colours() -> None:
    config = SceneConfig(count=2, size=32, objects=(1, 1))
    kinds = [draw(config, "test", index).instances[0].kind for index in range(160)]
    assert set(Counter(kind.shape for kind in kinds[:10]).values()) == {1}
    assert set(Counter((kind.colour, kind.shape) for kind in kinds[:80]).values()) == {1}
    assert set(Counter((kind.colour, kind.shape) for kind in kinds).values()) == {2}
    assert min(Counter(kind.size for kind in kinds).values()) > 30
    assert min(Counter(kind.texture for kind in kinds).values()) > 20


def test_a_single_object_is_prominent_by_its_size() -> None:
    config = SceneConfig(count=2, size=96, objects=(1, 1))
    extents: dict[str, list[float]] = {size: [] for size in scenes.SIZES}
    for index in range(90):
        (instance,) = draw(config, "train", index).instances
        extents[instance.kind.size].append(max(instance.box[2:]) / config.size)
    medians = [float(np.median(extents[size])) for size in scenes.SIZES]
    assert 0.3 < medians[0] < 0.45 < medians[1] < 0.62 < medians[2] < 0.85
    assert min(map(min, extents.values())) > 0.22


def test_pictures_show_as_many_objects_as_asked_for() -> None:
    counts = Counter(len(draw(SceneConfig(count=2, size=64), "train", index).instances) for index in range(60))
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    exactly = SceneConfig(count=2, size=64, objects=(3, 3))
    assert {len(draw(exactly, "train", index).instances) for index in range(20)} == {3}


# --- labels of a picture --------------------------------------------------------------------------------------------


def test_boxes_are_tight_around_masks_that_do_not_overlap(pictures: list[Picture]) -> None:
    for picture in pictures:
        assert picture.masks.sum(axis=0).max() <= 1
        for instance, mask in zip(picture.instances, picture.masks, strict=True):
            rows, columns = np.nonzero(mask)
            box = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
            assert instance.box == box
            assert instance.area == mask.sum() >= 24


def test_occlusion_is_measured_against_the_same_object_alone(pictures: list[Picture]) -> None:
    occlusions = np.array([instance.occlusion for picture in pictures for instance in picture.instances])
    assert occlusions.min() == 0
    assert 0.3 < occlusions.max() <= 0.75
    spheres = [(p, i) for p in pictures for i in p.instances if i.kind.shape == "sphere" and i.occlusion == 0]
    assert spheres
    for picture, sphere in spheres:  # its outline is nearly round, so the area follows from the box
        inside = min(sphere.box[:2]) > 0 and sphere.box[0] + sphere.box[2] < picture.camera.size
        if inside:
            assert sphere.area == pytest.approx(np.pi / 4 * sphere.box[2] * sphere.box[3], rel=0.12)


def test_objects_do_not_intersect(pictures: list[Picture]) -> None:
    for picture in pictures:
        points = np.stack([instance.position for instance in picture.instances])
        gaps = np.linalg.norm(points[:, None] - points, axis=-1)
        smallest = 2 * 0.24 * 0.33  # two small slabs, one above the other
        assert gaps[~np.eye(len(points), dtype=bool)].min() > smallest


def test_depth_and_camera_put_spheres_and_ground_where_they_are(folder: Path) -> None:
    checked = 0
    instances = COCO(str(folder / "train" / "instances.json"))
    for image in instances.loadImgs(instances.getImgIds()):
        name = image["file_name"].replace(".jpg", ".png")
        depth = np.asarray(Image.open(folder / "train" / "depth" / name))
        assert depth.dtype in (np.uint16, np.int32)
        points = unproject(depth / 1000, image["camera"])
        shapes = np.asarray(Image.open(folder / "train" / "masks" / name))
        assert np.abs(points[(shapes == 0) & (depth > 0)][:, 2]).max() < 2e-3  # the ground
        for annotation in instances.loadAnns(instances.getAnnIds(image["id"])):
            if annotation["category_id"] == 1 + scenes.SHAPES.index("sphere"):
                mask = instances.annToMask(annotation).astype(bool)
                radii = np.linalg.norm(points[mask] - annotation["attributes"]["position"], axis=-1)
                assert np.ptp(radii) < 4e-3
                checked += 1
    assert checked > 5


def test_normals_are_unit_vectors_that_face_the_camera_and_fit_the_depth(pictures: list[Picture]) -> None:
    cosines = []
    for picture in pictures:
        met = picture.depth > 0
        lengths = np.linalg.norm(picture.normals, axis=-1)
        np.testing.assert_allclose(lengths[met], 1, atol=1e-4)
        assert (lengths[~met] == 0).all()
        y, x = np.mgrid[: picture.camera.size, : picture.camera.size] + 0.5
        centre = picture.camera.size / 2
        own = np.stack([(x - centre) / picture.camera.focal, (y - centre) / picture.camera.focal, np.ones_like(x)], -1)
        assert ((own * picture.normals).sum(axis=-1)[met] < 1e-3).all()
        # Neighbouring points of one smooth surface span its tangent plane.
        points = own * picture.depth[..., None]
        across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
        tangent = np.cross(down, across)
        tangent /= np.linalg.norm(tangent, axis=-1, keepdims=True) + 1e-12
        near = np.abs(np.diff(picture.depth, n=2, axis=0))[:, 1:-1] + np.abs(np.diff(picture.depth, n=2, axis=1))[1:-1]
        smooth = met[1:-1, 1:-1] & (near < 2e-3)
        cosines.append((tangent * picture.normals[1:-1, 1:-1]).sum(axis=-1)[smooth])
    assert np.quantile(np.concatenate(cosines), 0.03) > 0.99


def test_stored_files_say_what_the_picture_in_memory_says(folder: Path) -> None:
    split = folder / "test"
    coco, captions = COCO(str(split / "instances.json")), read(split / "captions.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(scenes.SHAPES)
    assert [image["id"] for image in captions["images"]] == coco.getImgIds()
    for index, image in enumerate(coco.loadImgs(coco.getImgIds())):
        picture = draw(CROWDED, "test", index)
        name = image["file_name"]
        stored = np.asarray(Image.open(split / "images" / name)).astype(int)
        assert stored.shape == (image["height"], image["width"], 3) == picture.image.shape
        assert np.abs(stored - picture.image).mean() < 8  # JPEG
        png = name.replace(".jpg", ".png")
        depth = np.asarray(Image.open(split / "depth" / png))
        np.testing.assert_allclose(depth / 1000, picture.depth, atol=0.00051)
        normals = np.asarray(Image.open(split / "normals" / png)) / 127.5 - 1
        np.testing.assert_allclose(normals, picture.normals, atol=0.5 / 127.5 + 1e-6)
        shapes = np.asarray(Image.open(split / "masks" / png))
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert [a["category_id"] for a in annotations] == [
            1 + scenes.SHAPES.index(i.kind.shape) for i in picture.instances
        ]
        for annotation, instance, mask in zip(annotations, picture.instances, picture.masks, strict=True):
            assert isinstance(annotation["segmentation"]["counts"], str)
            np.testing.assert_array_equal(rle.decode(annotation["segmentation"]), mask)
            assert (shapes[mask] == annotation["category_id"]).all()
            assert tuple(annotation["bbox"]) == instance.box
            assert annotation["area"] == instance.area
            assert annotation["iscrowd"] == 0
            attributes = annotation["attributes"]
            words = instance.kind
            assert [attributes[w] for w in ("colour", "texture", "size")] == [words.colour, words.texture, words.size]
        assert (shapes[picture.index_map == 0] == 0).all()
        told = [c for c in captions["annotations"] if c["image_id"] == image["id"]]
        assert [c["caption"] for c in told] == [c.text for c in picture.captions]
        boxes = {annotation["id"]: annotation["bbox"] for annotation in annotations}
        for phrase in (phrase for caption in told for phrase in caption["phrases"]):
            assert phrase["boxes"] == [boxes[number] for number in phrase["annotations"]]


# --- second views ---------------------------------------------------------------------------------------------------


def test_correspondences_are_the_reprojected_depth(folder: Path) -> None:
    visible = []
    for image in read(folder / "train" / "instances.json")["images"]:
        stem = image["file_name"].removesuffix(".jpg")
        depth = np.asarray(Image.open(folder / "train" / "depth" / f"{stem}.png")) / 1000
        flow = np.load(folder / "train" / "correspondences" / f"{stem}.npy")
        assert flow.dtype == np.float32
        assert flow.shape == (96, 96, 2)
        pixels, ahead = project(unproject(depth, image["camera"]), image["second_camera"])
        shown = np.isfinite(flow).all(axis=-1)
        assert np.abs(pixels - flow)[shown].max() < 0.06  # half a millimetre of rounded depth
        inside = (pixels >= 0).all(axis=-1) & (pixels < 96).all(axis=-1) & (ahead > 0) & (depth > 0)
        assert not (shown & ~inside & (np.abs(pixels - 48).max(axis=-1) < 47.9)).any()
        visible.append(shown[inside].mean())
    assert 0.8 < np.mean(visible) < 0.999  # some of what is in both frames is hidden from the second camera


def test_what_corresponds_is_not_hidden_and_what_is_hidden_has_something_before_it(pictures: list[Picture]) -> None:
    covered = []  # fractions of the hidden points that the first view itself shows to be hidden
    for picture in pictures:
        assert picture.second is not None
        cameras = [
            {"fx": c.focal, "fy": c.focal, "cx": 48, "cy": 48, "rotation": c.rotation, "position": c.position}
            for c in (picture.camera, picture.second.camera)
        ]
        pixels, ahead = project(unproject(picture.depth, cameras[0]), cameras[1])
        met = picture.depth > 0
        inside = met & (pixels >= 0).all(axis=-1) & (pixels < 96).all(axis=-1)
        # What of the first view falls into each pixel of the second, nearest first: all the second could see of it.
        nearest = np.full((96, 96), np.inf)
        x, y = pixels[inside].astype(int).T
        np.minimum.at(nearest, (y, x), ahead[inside])
        shown = np.isfinite(picture.second.correspondences).all(axis=-1)
        x, y = np.where(inside, pixels[..., 0], 0).astype(int), np.where(inside, pixels[..., 1], 0).astype(int)
        behind = ahead - nearest[y, x]
        # Within one pixel a slanted ground spans some depth; an object before it is nearer by far more.
        assert (behind[shown] > 0.6).mean() < 0.01
        hidden = inside & ~shown
        if hidden.sum() > 30:
            covered.append((behind[hidden] > 0.05).mean())
    assert len(covered) > 5
    assert np.median(covered) > 0.4  # the rest hides behind sides that the first view does not show


def test_corresponding_pixels_look_alike(pictures: list[Picture]) -> None:
    same, other = [], []
    for picture in pictures:
        assert picture.second is not None
        shown = np.isfinite(picture.second.correspondences).all(axis=-1) & (picture.index_map > 0)
        x, y = picture.second.correspondences[shown].astype(int).T
        first = picture.image[shown].astype(int)
        same.append(np.abs(first - picture.second.image[y, x]).mean())
        other.append(np.abs(first - picture.second.image[y, (x + 20) % 96]).mean())
    assert np.mean(same) < 0.4 * np.mean(other)


# --- captions -------------------------------------------------------------------------------------------------------


def named(words: str, picture: Picture) -> list[int]:
    """The objects of which the words of a phrase, all but its article or number, are true."""
    words = re.sub(r"tori$", "torus", words)
    kinds = [(i.kind.size, i.kind.texture, i.kind.colour, i.kind.shape) for i in picture.instances]
    singular = [words, words.removesuffix("s")]
    return [
        index
        for index, kind in enumerate(kinds)
        if any(form.endswith(kind[3]) and set(form.removesuffix(kind[3]).split()) <= set(kind) for form in singular)
    ]


def test_five_captions_whose_phrases_name_exactly_what_they_are_true_of(pictures: list[Picture]) -> None:
    single = [draw(SceneConfig(count=2, objects=(1, 1)), "train", index) for index in range(20)]
    numbers = ["one", "two", "three", "four", "five", "six"]
    for picture in pictures + single:
        assert len(picture.captions) == 5
        assert len({caption.text for caption in picture.captions}) >= 3
        for caption in picture.captions:
            assert caption.phrases
            starts = [phrase.start for phrase in caption.phrases]
            assert starts == sorted(starts)
            for phrase in caption.phrases:
                determiner, words = caption.text[phrase.start : phrase.end].split(" ", 1)
                if words == "objects":
                    assert phrase.bodies == tuple(range(len(picture.instances)))
                else:
                    assert list(phrase.bodies) == named(words, picture), caption.text
                if determiner in numbers:
                    assert numbers.index(determiner) + 1 == len(phrase.bodies)
                else:
                    assert determiner == ("an" if words[0] in "aeiou" else "a")


def test_no_shape_word_stands_outside_a_phrase(pictures: list[Picture]) -> None:
    for caption in (caption for picture in pictures for caption in picture.captions):
        rest = caption.text
        for phrase in reversed(caption.phrases):
            rest = rest[: phrase.start] + rest[phrase.end :]
        assert not any(shape in rest for shape in scenes.SHAPES)


def test_relations_hold_between_the_boxes_and_depths(pictures: list[Picture]) -> None:
    told: Counter[str] = Counter()
    many = pictures + [draw(SceneConfig(count=2, size=64, objects=(3, 6)), "train", index) for index in range(60)]
    for picture in many:
        boxes = np.array([instance.box for instance in picture.instances], float)
        middle = boxes[:, :2] + boxes[:, 2:] / 2
        positions = np.stack([instance.position for instance in picture.instances])
        depths = (positions - picture.camera.position) @ picture.camera.rotation[2]
        for caption in picture.captions:
            found = re.search(r" (left of|right of|in front of|behind|above) an? ", caption.text)
            if not found:
                continue
            told[found[1]] += 1
            one, other = (list(phrase.bodies) for phrase in caption.phrases)
            holds = {
                "left of": lambda a, b, middle=middle: middle[a, 0] < middle[b, 0],
                "right of": lambda a, b, middle=middle: middle[a, 0] > middle[b, 0],
                "in front of": lambda a, b, depths=depths: depths[a] < depths[b],
                "behind": lambda a, b, depths=depths: depths[a] > depths[b],
                "above": lambda a, b, middle=middle: middle[a, 1] < middle[b, 1],
            }[found[1]]
            assert any(holds(a, b) for a in one for b in other), caption.text
    assert len(told) == 5


# --- writing --------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_however_many_processes_draw(folder: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "again", CROWDED, workers=2)
    assert every_file(again) == every_file(folder)


def test_another_seed_gives_other_pictures_and_size_changes_resolution(folder: Path) -> None:
    changed = SceneConfig(count=30, seed=4, objects=(2, 6), views=2)
    assert (draw(changed, "train", 0).image != draw(CROWDED, "train", 0).image).any()
    assert draw(SceneConfig(count=2, size=160), "test", 3).image.shape == (160, 160, 3)


def test_the_layout_with_class_folders(tmp_path: Path) -> None:
    config = SceneConfig(count=25, size=32, objects=(1, 1))
    done: list[tuple[int, int]] = []
    out = write(tmp_path / "one", config, workers=1, progress=lambda *counts: done.append(counts))
    assert done[-1] == (25, 25)
    settings = read(out / "scenes.json")
    assert settings["counts"] == {"train": 20, "test": 5}
    assert [tuple(pair) for pair in settings["heldout_pairs"]] == list(HELDOUT_PAIRS)
    assert settings["shapes"] == list(scenes.SHAPES)
    for split, count in config.counts.items():
        for kind, ending in (("images", "jpg"), ("masks", "png"), ("depth", "png"), ("normals", "png")):
            files = sorted((out / split / kind).rglob("*.*"))
            assert len(files) == count
            assert {path.suffix for path in files} == {f".{ending}"}
        coco = read(out / split / "instances.json")
        categories = {category["id"]: category["name"] for category in coco["categories"]}
        shape = {annotation["image_id"]: categories[annotation["category_id"]] for annotation in coco["annotations"]}
        for index, image in enumerate(coco["images"]):
            assert image["file_name"] == f"{shape[image['id']]}/{index:06d}.jpg"
            assert (out / split / "images" / image["file_name"]).is_file()


def test_writing_again_does_nothing_but_never_overwrites_anything_else(tmp_path: Path) -> None:
    config = SceneConfig(count=4, size=32)
    out = write(tmp_path / "scenes", config, workers=1)
    marker = out / "train" / "images" / "000000.jpg"
    marker.write_bytes(b"kept")
    write(out, config, workers=1)
    assert marker.read_bytes() == b"kept"
    with pytest.raises(ValueError, match="already holds other files; give another folder"):
        write(out, SceneConfig(count=5, size=32), workers=1)
    (tmp_path / "empty").mkdir()
    assert (write(tmp_path / "empty", config, workers=1) / "scenes.json").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="already holds other files"):
        write(tmp_path / "file", config, workers=1)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "scenes", SceneConfig(count=4, size=32), workers=1, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_of_two_who_write_the_same_the_slower_takes_what_the_quicker_made(tmp_path: Path) -> None:
    config, out = SceneConfig(count=4, size=32), tmp_path / "scenes"

    def overtaken(done: int, total: int) -> None:
        if done == total:
            write(out, config, workers=1)
            (out / "mark").touch()

    assert write(out, config, workers=1, progress=overtaken) == out
    assert (out / "mark").exists() and list(tmp_path.iterdir()) == [out]


def test_what_killed_runs_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    abandoned, alive, foreign = (tmp_path / f".sce[n]es.{name}.partial" for name in ("1", "2", "3"))
    for partial in (abandoned, alive):
        (partial / "train").mkdir(parents=True)
        (partial / ".lock").touch()
    foreign.mkdir()
    with sole_writer(alive):
        out = write(tmp_path / "sce[n]es", SceneConfig(count=4, size=32), workers=1)
        assert sorted(tmp_path.iterdir()) == [alive, foreign, out]
    assert not (out / ".lock").exists()


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert write("~/scenes", SceneConfig(count=4, size=32), workers=1) == tmp_path / "scenes"
    assert (tmp_path / "scenes" / "scenes.json").is_file()


def test_a_contact_sheet_is_a_picture_of_pictures(folder: Path, tmp_path: Path) -> None:
    sheet = Image.open(scenes.contact_sheet(folder, tmp_path / "sheet.png", split="test", columns=3, rows=2))
    assert sheet.width > 3 * 2 * 96
    assert sheet.height > 2 * 2 * 96
    assert np.asarray(sheet).std() > 20


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 1}, "count=1 is out of range; give 2 or more"),
        ({"size": 31}, "size=31 is out of range; give 32 to 1024"),
        ({"size": 1025}, "size=1025 is out of range"),
        ({"seed": -1}, "seed=-1 is out of range; give 0 or more"),
        ({"objects": (0, 3)}, r"objects=\(0, 3\) is out of range; give 1 to 6"),
        ({"objects": (4, 3)}, r"objects=\(4, 3\) is out of range"),
        ({"objects": (1, 7)}, r"objects=\(1, 7\) is out of range"),
        ({"views": 3}, "views=3 is out of range; give 1 or 2"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SceneConfig(**{"count": 10, **settings})


def test_objects_are_read_from_text() -> None:
    assert parse_objects("1..6") == (1, 6)
    assert parse_objects("3") == parse_objects(3) == parse_objects((3, 3)) == (3, 3)
    for text in ("", "a", "1..", "1-3", "1..b"):
        with pytest.raises(ValueError, match="is no number of objects; give one such as 3 or"):
            parse_objects(text)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="no split 'val'; give train or test"):
        draw(CROWDED, "val", 0)
