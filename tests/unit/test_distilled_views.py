"""What student and teachers are shown: stages, sizes at once, the same region for all, shifts, canvases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from synoptic.data.transforms import RandomCrop
from synoptic.methods.teachers import Teacher, TeacherConfig, View
from synoptic.methods.views import Asked, Shown, Stage, overlap, parse_stages, parts_of
from synoptic.models.vit import ViT, ViTConfig
from synoptic.types import Batch

TINY = ViTConfig(patch_size=8, width=24, depth=1, heads=3, image_size=32)


def teacher(size: int = 32, patch: int = 8, **config: Any) -> Teacher:
    torch.manual_seed(0)
    return Teacher(ViT(ViTConfig(**{**vars(TINY), "patch_size": patch})), size, TeacherConfig(**config))


def batch(count: int = 4, side: int = 64) -> Batch:
    images = torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return Batch(images=images, index=torch.arange(count), position=torch.arange(100, 100 + count))


def test_stages_are_read_as_typed() -> None:
    assert parse_stages("", 96) == (Stage(0.0, (96,)),)
    assert parse_stages("64", 96) == (Stage(0.0, (64,)),)
    assert parse_stages("64@0, 96@0.5,64+192@0.75", 96) == (
        Stage(0.0, (64,)),
        Stage(0.5, (96,)),
        Stage(0.75, (64, 192)),
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("64@x", "'64@x' is not of the form SIZE@SHARE"),
        ("64@0,big@0.5", "'big@0.5' is not of the form"),
        ("0@0", "'0@0' is not of the form"),
        ("64@1", "'64@1' begins when the run is over; shares are from 0 to below 1"),
        ("64@0.5", "the first begins at 0"),
        ("64@0,96@0.5,128@0.5", "each later one at a larger share"),
        ("64+64@0", "names a size twice"),
    ],
)
def test_stages_that_make_no_sense_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_stages(spec, 96)


def test_teachers_see_what_their_configuration_says() -> None:
    assert teacher(32).view(12) == View(32)
    assert teacher(32, resize="grid").view(12) == View(96)
    assert teacher(32, patch=16, resize="grid").view(12) == View(192)


@pytest.mark.parametrize(
    ("grid", "view"),
    [
        (2, View(32, 8)),
        (3, View(64, 4)),
        (4, View(64, 4)),
        (7, View(128, 2)),
        (8, View(128, 2)),
        (9, View(256, 1)),
        (40, View(256, 1)),
    ],
)
def test_a_canvas_holds_as_many_pictures_as_keep_the_students_patches(grid: int, view: View) -> None:
    """256 pixels of patches of 16: 16 of them across a canvas."""
    assert teacher(256, patch=16, resize="mosaic").view(grid) == view


def test_a_canvas_is_cut_into_the_answers_of_each_picture() -> None:
    asked = teacher(32, resize="mosaic")
    asked.model = _Pixels()
    images = torch.rand(5, 3, 16, 16)
    answer = asked.seen(images, View(16, 2))
    assert answer.grid == (2, 2) and answer.summary is None
    assert torch.equal(answer.patches, _Pixels()(images).patches)


class _Pixels(torch.nn.Module):
    """Answers with the pixels of each patch of 8."""

    stride = 8

    def forward(self, images: Tensor, layers: Any = ()) -> Any:
        from synoptic.types import Features

        rows = torch.nn.functional.unfold(images, 8, stride=8).transpose(1, 2)
        return Features(rows, (images.shape[2] // 8, images.shape[3] // 8))


def test_without_shifts_all_see_the_crop_that_random_crop_makes() -> None:
    shown = Shown(32, 8, {"a": teacher(48), "b": teacher(32)}, (0.4, 1.0), 0.5)
    crops = shown.crops(batch(), step=3, seed=7)
    assert list(crops) == [Asked(32), Asked(48)]
    for size, expected in zip((32, 48), RandomCrop((32, 48), (0.4, 1.0), flip=0.5)(batch(), 7).crops, strict=True):
        assert torch.equal(crops[Asked(size)], expected)
    assert shown.largest == 48


def test_shifted_crops_show_the_same_where_they_overlap() -> None:
    """A whole picture without mirroring and one with it, cut into cells that keep their pixels."""
    for flip in (0.0, 1.0):
        shown = Shown(32, 8, {"a": teacher(32)}, (1.0, 1.0), flip, shift=2)
        steps = [step for step in range(20) if len(set(shown.asked(step, 0).values())) == 2]
        assert len(steps) > 5
        for step in steps[:5]:
            asked = shown.asked(step, 0)
            crops = shown.crops(batch(side=48), step, 0)
            first, second = overlap(asked[""].offset, asked["a"].offset, 4)
            assert 0 < len(first) < 16
            mine, theirs = (torch.nn.functional.unfold(crops[asked[name]], 8, stride=8) for name in ("", "a"))
            torch.testing.assert_close(mine[..., first], theirs[..., second])
            assert not torch.allclose(mine, theirs)


@pytest.mark.parametrize(("side", "shift"), [(432, 3), (224, 1), (48, 1)])
def test_shifted_crops_of_whole_pictures_stay_inside(side: int, shift: int) -> None:
    """Cells are no whole parts of most pictures, and what is rounded must not reach beyond them."""
    shown = Shown(side, 16, {"a": teacher(48)}, (1.0, 1.0), 0.5, shift=shift)
    for picture in range(33, 1024, 7):
        whole = torch.tensor([[0.0, 0.0, picture, picture]])
        for offset in ((0, 0), (shift, shift), (0, shift)):
            box = shown._inside(whole, torch.tensor([False]), offset)[0]
            assert box.min() >= 0 and box.max() <= picture
            assert box[2] - box[0] == pytest.approx(picture * shown.grid / (shown.grid + shift))


def test_all_of_a_batch_take_part_at_some_size() -> None:
    parts = list(parts_of(batch(7), 3))
    assert sorted(torch.cat([part.position for part, _ in parts]).tolist()) == list(range(100, 107))
    assert sum(share for _, share in parts) == pytest.approx(1.0)
    assert [len(part.images) for part, _ in parts] == [len(part.position) for part, _ in parts]
    ((whole, share),) = parts_of(batch(7), 1)
    assert len(whole.images) == 7 and share == 1.0
