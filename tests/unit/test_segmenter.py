"""Points and boxes in a picture to masks at its size: what may be asked, in which forms, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from synoptic import segmenter
from synoptic.models.sam import Sam, SamConfig
from synoptic.models.sam_decoder import SamDecoderConfig
from synoptic.models.vit import ViT, ViTConfig
from synoptic.predict import VisionModel
from synoptic.segmenter import read_prompts
from synoptic.types import Preprocess, Segments

SIZE = (20, 32)  # of the picture
TINY: dict[str, Any] = {"patch_size": 4, "width": 12, "depth": 1, "heads": 2, "hidden": 20, "image_size": 24}
TINY |= {"window": 4, "global_blocks": (), "embedding": 16}
DECODER = SamDecoderConfig(heads=2, hidden=12, mask_channels=4, iou_hidden=6)


@pytest.fixture(scope="module")
def model() -> VisionModel:
    return sam(DECODER)


@torch.no_grad()
def sam(decoder: SamDecoderConfig | None) -> VisionModel:
    torch.manual_seed(3)
    network = Sam(SamConfig(**TINY, decoder=decoder))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return VisionModel(network, Preprocess(24, "pad", fill=network.config.mean), "tiny")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def same(one: Segments, other: Segments) -> bool:
    """But for rounding, which depends on how many are decoded together, and may move a mask by a pixel."""
    alike = one.masks.shape == other.masks.shape and (one.masks == other.masks).mean() > 0.999
    return bool(alike and np.allclose(one.scores, other.scores, atol=2e-5))


def joined(*parts: Segments) -> Segments:
    return Segments(np.concatenate([p.masks for p in parts]), np.concatenate([p.scores for p in parts]))


def test_one_mask_an_object_at_the_size_of_the_picture(model: VisionModel, picture: np.ndarray) -> None:
    for asked, count in (
        ({"points": [(3, 4)]}, 1),
        ({"points": [(3, 4), (5, 6)], "labels": [1, 0]}, 1),
        ({"boxes": [(1, 2, 9, 10), (0, 0, 32, 20)]}, 2),
        ({"points": [[(3, 4)], [(5, 6), (7, 8)]]}, 2),
    ):
        found, all_of_them = model.segment(picture, **asked), model.segment(picture, **asked, alternatives=True)
        assert found.masks.shape == (count, *SIZE) and found.masks.dtype == bool
        assert found.scores.shape == (count,) and found.scores.dtype == np.float32
        assert all_of_them.masks.shape == (3 * count, *SIZE)
        ordered = all_of_them.scores.reshape(count, 3)
        assert (np.diff(ordered, axis=1) <= 0).all()


def test_of_a_single_point_the_best_of_three_masks_is_taken(model: VisionModel, picture: np.ndarray) -> None:
    """It may mean a thing or a part of it; what else is asked has a mask of its own, which is none of the three."""
    best = model.segment(picture, points=[(3, 4)], alternatives=True)
    assert same(model.segment(picture, points=[(3, 4)]), Segments(best.masks[:1], best.scores[:1]))
    for asked in (
        {"points": [(3, 4), (5, 6)]},
        {"boxes": [(1, 2, 9, 10)]},
        {"points": [(3, 4)], "boxes": [(1, 2, 9, 9)]},
    ):
        one, three = model.segment(picture, **asked), model.segment(picture, **asked, alternatives=True)
        assert not np.isclose(three.scores, one.scores, atol=1e-6).any()


def test_a_picture_is_looked_at_once(model: VisionModel, picture: np.ndarray) -> None:
    looks: list[int] = []
    hook = model.model.encoder.register_forward_hook(lambda *parts: looks.append(1))
    asked = model.segmenter(picture)
    assert asked.size == SIZE
    with pytest.raises(ValueError, match="nothing says what to segment"):
        asked.segment()
    assert not looks
    answers = [asked.segment(points=[(3, 4)]), asked.segment(boxes=[(1, 2, 9, 10)])]
    hook.remove()
    assert len(looks) == 1
    assert same(answers[0], model.segment(picture, points=[(3, 4)]))
    assert same(answers[1], model.segment(picture, boxes=[(1, 2, 9, 10)]))


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_many_objects_are_answered_in_turns_and_in_order(
    model: VisionModel, picture: np.ndarray, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmenter, "AT_ONCE", at_once)
    asked = model.segmenter(picture)
    boxes = [(x, y, x + 7, y + 5) for x in (0, 8, 20) for y in (0, 3, 12)]
    assert same(asked.segment(boxes=boxes), joined(*(asked.segment(boxes=[box]) for box in boxes)))
    points = [[(3, 4)], [(1, 1), (9, 9)], [(5, 6)], [(30, 19), (0, 0), (31.5, 0)], [(8, 8)], [(2, 2)]]
    assert same(asked.segment(points), joined(*(asked.segment(each) for each in points)))
    inside = [[(x + 1, y + 1)] for x, y, _, _ in boxes]
    whole = asked.segment(inside, boxes, labels=[[0]] * 9, alternatives=True)
    singly = [
        asked.segment([(x, y)], [box], [0], alternatives=True) for ((x, y),), box in zip(inside, boxes, strict=True)
    ]
    assert same(whole, joined(*singly))


def test_numbers_come_in_many_forms(model: VisionModel, picture: np.ndarray) -> None:
    asked = model.segmenter(picture)
    point, box = asked.segment([(3, 4)]), asked.segment(boxes=[(1, 2, 9, 10)])
    for form in ([[3, 4]], (3, 4), np.array([[3.0, 4.0]]), torch.tensor([[3, 4]]), np.array([[[3, 4]]])):
        assert same(asked.segment(form), point)
    for form in ((1, 2, 9, 10), np.array([1, 2, 9, 10]), torch.tensor([[1.0, 2, 9, 10]]), [[1, 2, 9, 10]]):
        assert same(asked.segment(boxes=form), box)
    pair = asked.segment([(3, 4), (5, 6)], labels=[1, 0])
    for form in ((1, 0), np.array([1, 0]), torch.tensor([1, 0]), [True, False]):
        assert same(asked.segment([(3, 4), (5, 6)], labels=form), pair)


def test_a_picture_comes_in_many_forms(model: VisionModel, picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    expected = model.segment(picture, points=[(3, 4)])
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    for form in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(picture), tensor, tmp_path):
        assert same(model.segment(form, points=[(3, 4)]), expected)
    with pytest.raises(ValueError, match="several pictures were given, and masks are asked of one"):
        model.segment([picture, picture], points=[(3, 4)])
    with pytest.raises(ValueError, match=r"nothing\.png"):
        model.segment(tmp_path / "nothing.png", points=[(3, 4)])


@settings(max_examples=25)
@given(height=st.integers(1, 80), width=st.integers(1, 80), x=st.floats(0, 0.999), y=st.floats(0, 0.999))
def test_pictures_of_any_shape(model: VisionModel, height: int, width: int, x: float, y: float) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    found = model.segment(picture, [(x * width, y * height)], [(0, 0, width, height)])
    assert found.masks.shape == (1, height, width) and np.isfinite(found.scores).all()


def test_where_a_point_lies_decides(model: VisionModel) -> None:
    """x is across and y is down, in pixels of the picture, however large: doubled pictures have doubled places."""
    small = np.random.default_rng(0).integers(0, 256, (12, 24, 3), dtype=np.uint8)
    large = small.repeat(2, 0).repeat(2, 1)
    one, other = model.segmenter(small), model.segmenter(large)
    other.__dict__["embedding"] = one.embedding  # resampling a picture is not what is tested
    points = read_prompts([(5, 9)], None, None, (12, 24))[0].points
    assert np.array_equal(one._placed([points]), other._placed([2 * points]))
    expected = one.segment(boxes=[(2, 3, 20, 9)]).scores
    assert np.allclose(other.segment(boxes=[(4, 6, 40, 18)]).scores, expected, atol=1e-6)
    assert not np.allclose(one.segment(boxes=[(3, 2, 9, 12)]).scores, expected, atol=1e-6)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, r"nothing says what to segment: give points=\[\(x, y\)\], boxes="),
    "a point outside": (
        {"points": [(3, 4), (32, 4)]},
        "point 32,4 lies outside of the picture, 32 pixels wide and 20 high",
    ),
    "a point below": ({"points": [(3, 20)]}, "the point 3,20 lies outside"),
    "a negative point": ({"points": [(-0.5, 2)]}, "the point -0.5,2 lies outside"),
    "no number": ({"points": [(float("nan"), 2)]}, "the point nan,2 lies outside"),
    "no points": ({"points": []}, r"expected points as .* got \[\]"),
    "one number": ({"points": 7}, "expected points as .* got 7"),
    "three numbers": ({"points": [(1, 2, 3)]}, r"expected points as .* got \[\(1, 2, 3\)\]"),
    "words": ({"points": "3,4"}, "expected points as .* got '3,4'"),
    "ragged points": ({"points": [(1, 2), (3,)]}, "expected points as"),
    "an object without points": ({"points": [[(1, 2)], []]}, "expected points as"),
    "a box of points": ({"boxes": [(1, 2)]}, r"expected boxes as .* got \[\(1, 2\)\]"),
    "no boxes": ({"boxes": []}, "expected boxes as"),
    "a box outside": (
        {"boxes": [(0, 0, 33, 5)]},
        "the box 0,0,33,5 should be left, top, .* 32 pixels wide",
    ),
    "a box of nothing": ({"boxes": [(3, 3, 3, 9)]}, "the box 3,3,3,9 should be"),
    "a box the wrong way": ({"boxes": [(9, 3, 3, 9)]}, "left < right"),
    "a box of width": ({"boxes": [(20, 10, 5, 5)]}, "the box 20,10,5,5 should be"),
    "an infinite box": ({"boxes": [(0, 0, float("inf"), 5)]}, "the box 0,0,inf,5 should be"),
    "few labels": ({"points": [(1, 2), (3, 4)], "labels": [1]}, "labels of 1 points do not fit points, .* there are 2"),
    "many labels": ({"points": [[(1, 2)]], "labels": [[1, 0]]}, "labels of 2 points do not fit points"),
    "labels of nothing": ({"boxes": [(1, 2, 3, 4)], "labels": [1]}, "labels of 1 points .* of which there are none"),
    "other labels": ({"points": [(1, 2)], "labels": [2]}, "labels are 1 for a point on the object and 0"),
    "labels that are words": ({"points": [(1, 2)], "labels": ["in"]}, "expected labels in the form of the points"),
    "fewer boxes": ({"points": [[(1, 2)], [(1, 2)]], "boxes": [(1, 2, 3, 4)]}, "points are given of 2; give one list"),
    "more boxes": (
        {"points": [(1, 2)], "boxes": [(1, 2, 3, 4)] * 2},
        "2 boxes are 2 objects, .* points are given of 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_told_in_one_line(model: VisionModel, picture: np.ndarray, case: str) -> None:
    asked, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        model.segment(picture, **asked)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_only_a_whole_sam_segments(picture: np.ndarray) -> None:
    vit = VisionModel(ViT(ViTConfig(patch_size=4, width=12, depth=1, heads=2, image_size=16)), Preprocess(16), "dino")
    with pytest.raises(ValueError, match="dino cannot segment: take a SAM"):
        vit.segment(picture, points=[(1, 2)])
    with pytest.raises(ValueError, match="tiny is the image encoder of a SAM alone, and cannot segment"):
        sam(None).segment(picture, points=[(1, 2)])


def test_a_sam_has_no_summary_and_says_so(model: VisionModel, picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match="tiny has no summary, only patches"):
        model.embed(picture)
    with pytest.raises(ValueError, match="tiny knows no words"):
        model.classify(picture, ["a", "b"])
    features = model.features([picture] * 3)
    assert features.summary is None and features.patches.shape == (3, 36, 16)


def test_pictures_of_other_bands_are_padded_and_segmented_too() -> None:
    mean = (0.1, 0.2, 0.3, 0.4)
    config = SamConfig(**TINY, channels=4, mean=mean, std=(0.2,) * 4, decoder=DECODER)
    model = VisionModel(Sam(config), Preprocess(24, "pad", bands=4, fill=mean), "bands")
    picture = np.random.default_rng(0).random((*SIZE, 4), np.float32)
    assert model.segment(picture, points=[(3, 4)]).masks.shape == (1, *SIZE)
    with pytest.raises(ValueError, match=r"fill=\(0.1, 0.2\) should be 4 values, one a band, or none"):
        Preprocess(24, "pad", bands=4, fill=(0.1, 0.2))


def test_half_precision_segments_too(picture: np.ndarray) -> None:
    model = sam(DECODER)
    expected = model.segment(picture, boxes=[(1, 2, 9, 10)])
    model.model.bfloat16()
    found = model.segment(picture, boxes=[(1, 2, 9, 10)])
    assert (found.masks == expected.masks).mean() > 0.8 and found.scores.dtype == np.float32
