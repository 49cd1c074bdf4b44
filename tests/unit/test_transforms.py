"""Crops lie inside their pictures, are drawn as the paper says, and depend on nothing but seed and position."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from synoptic.config import from_dict, to_dict
from synoptic.data import colour
from synoptic.data.draws import Draws
from synoptic.data.transforms import (
    MultiCrop,
    MultiCropConfig,
    RandomCrop,
    Step,
    fit,
    inside,
    plan_crops,
    random_boxes,
    recolour,
)
from synoptic.types import Batch

SMALL = MultiCropConfig(global_size=24, local_count=3, local_size=12)
PLAIN = replace(SMALL, flip=0.0, jitter=0.0, gray=0.0)


def batch_of(count, seed=0, start=0):
    """Pictures of different sizes, padded with zeros; inside, no pixel is zero."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(20, 60, (count, 2), generator=generator)
    images = torch.zeros(count, 3, 60, 60, dtype=torch.uint8)
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, :height, :width] = torch.randint(1, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return Batch(images=images, sizes=sizes, index=torch.arange(count), position=torch.arange(start, start + count))


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    low=st.floats(0.05, 1.0),
    share=st.floats(0, 1),
    ratio=st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0), (0.2, 0.3), (4.0, 5.0)]),
)
def test_boxes_are_whole_pixels_inside_the_picture(height, width, low, share, ratio):
    sizes = torch.tensor([[height, width]]).expand(40, 2)
    boxes = random_boxes(sizes, (low, low + share * (1 - low)), ratio, Draws(0, torch.arange(40)), "box")
    left, top, right, bottom = boxes.unbind(1)
    assert boxes.shape == (40, 4)
    assert torch.equal(boxes, boxes.round())
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= width).all()
    assert (bottom <= height).all()
    assert (right > left).all()
    assert (bottom > top).all()


def test_boxes_have_the_area_and_shape_that_were_asked_for():
    sizes = torch.tensor([[400, 400]]).expand(4000, 2)
    boxes = random_boxes(sizes, (0.1, 0.3), (3 / 4, 4 / 3), Draws(0, torch.arange(4000)), "box")
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, shape = wide * high / 160000, wide / high
    assert area.min() > 0.098
    assert area.max() < 0.302
    assert abs(area.mean() - 0.2) < 0.003
    assert shape.min() > 0.74
    assert shape.max() < 1.35
    assert abs(shape.log().mean()) < 0.01
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert (centre.mean(0) - 200).abs().max() < 4


def test_where_no_draw_fits_the_largest_centred_box_is_taken():
    sizes = torch.tensor([[10, 1000], [1000, 10]])
    boxes = random_boxes(sizes, (0.9, 1.0), (3 / 4, 4 / 3), Draws(0, torch.arange(2)), "box")
    assert boxes.tolist() == [[493, 0, 506, 10], [0, 493, 10, 506]]


def test_multicrop_makes_the_crops_of_the_configuration():
    batch = batch_of(5)
    crops = MultiCrop(SMALL)(batch, seed=0)
    assert [tuple(crop.shape) for crop in crops.crops] == [(5, 3, 24, 24)] * 2 + [(5, 3, 12, 12)] * 3
    assert crops.images is None
    assert crops.sizes is None
    assert torch.equal(crops.index, batch.index)
    for crop in crops.crops:
        assert crop.dtype == torch.float32
        assert crop.is_contiguous()
        assert crop.min() >= 0
        assert crop.max() <= 1
    assert not torch.equal(crops.crops[0], crops.crops[1])
    assert not torch.equal(crops.crops[2], crops.crops[3])


def test_crops_do_not_depend_on_the_batch_around_them():
    whole = MultiCrop(SMALL)(batch_of(9), seed=3).crops
    parts = [MultiCrop(SMALL)(part, seed=3).crops for part in batch_of(9).split(2)]
    for crop, first, second in zip(whole, *parts, strict=True):
        torch.testing.assert_close(crop, torch.cat((first, second)), rtol=0, atol=1e-6)


def test_crops_depend_on_seed_and_position():
    batch = batch_of(4)
    crops = MultiCrop(SMALL)(batch, seed=0).crops
    assert all(torch.equal(*pair) for pair in zip(crops, MultiCrop(SMALL)(batch, seed=0).crops, strict=True))
    for other in (MultiCrop(SMALL)(batch, 1), MultiCrop(SMALL)(replace(batch, position=batch.position + 4), 0)):
        assert not any(torch.equal(*pair) for pair in zip(crops, other.crops, strict=True))


def test_no_padding_gets_into_a_crop():
    batch = batch_of(40)
    white = replace(batch, images=torch.where(batch.images > 0, 255, 0).to(torch.uint8))
    for crop in MultiCrop(PLAIN)(white, seed=0).crops[2:]:
        assert crop.min() > 0.99
    assert RandomCrop((16,))(white, seed=0).crops[0].min() > 0.99


def test_no_local_crops_is_allowed():
    assert len(MultiCrop(replace(SMALL, local_count=0))(batch_of(2), seed=0).crops) == 2


def test_every_change_is_made_as_often_as_the_paper_says():
    sizes, count = torch.full((4000, 2), 64), 4000
    large, small = plan_crops(SMALL, sizes, torch.arange(count), seed=0)

    def share(steps, change, here):
        return float(torch.stack([step.chosen[here] for step in steps if step.change is change]).any(0).float().mean())

    first, second, third = slice(0, count), slice(count, 2 * count), slice(0, count)
    for plan, number, here, blur, solarize in (
        (large, 0, first, 1.0, 0.0),
        (large, 1, second, 0.1, 0.2),
        (small, 0, third, 0.5, 0.0),
    ):
        assert share(plan.steps, colour.gaussian_blur, here) == pytest.approx(blur, abs=0.03)
        assert share(plan.steps, colour.solarize, here) == pytest.approx(solarize, abs=0.03)
        assert share(plan.steps, colour.grayscale, here) == pytest.approx(0.2, abs=0.03)
        assert float(plan.flips[number].float().mean()) == pytest.approx(0.5, abs=0.03)
        for change in (
            colour.adjust_brightness,
            colour.adjust_contrast,
            colour.adjust_saturation,
            colour.adjust_hue,
        ):
            assert share(plan.steps, change, here) == pytest.approx(0.8, abs=0.03)
    released = plan_crops(replace(SMALL, augmentation="released"), sizes, torch.arange(count), seed=0)[0]
    assert share(released.steps, colour.gaussian_blur, first) == 0.0
    assert share(released.steps, colour.gaussian_blur, second) == pytest.approx(0.9, abs=0.03)


def bands_of(channels, count=6, side=40, seed=0):
    """Pictures of full depth, all in [0, 1]."""
    images = torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.1
    sizes = torch.full((count, 2), side)
    return Batch(images=images, sizes=sizes, position=torch.arange(count), bounded=torch.ones(count, dtype=torch.bool))


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_other_bands_than_three_are_jittered_alike_and_blurred(channels):
    plans = plan_crops(SMALL, torch.full((50, 2), 40), torch.arange(50), 0, channels)
    changes = {step.change for plan in plans for step in plan.steps}
    assert changes == {colour.adjust_brightness, colour.adjust_contrast, colour.gaussian_blur}
    crops = MultiCrop(SMALL)(bands_of(channels), seed=0).crops
    assert [tuple(crop.shape) for crop in crops] == [(6, channels, 24, 24)] * 2 + [(6, channels, 12, 12)] * 3
    bright = MultiCrop(replace(PLAIN, jitter=1.0, contrast=0.0, augmentation="released"))(bands_of(channels), 0).crops
    plain = MultiCrop(replace(PLAIN, augmentation="released"))(bands_of(channels), 0).crops
    factors = (bright[0] / plain[0]).flatten(1)  # first crops are not blurred
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors), rtol=1e-4, atol=0)
    assert 0.6 <= factors.min() < factors.max() <= 1.4


def test_photographs_of_full_depth_are_augmented_as_those_of_bytes_are():
    batch = batch_of(5)
    deep = replace(batch, images=batch.images / 255, bounded=torch.ones(5, dtype=torch.bool))
    for crop, other in zip(MultiCrop(SMALL)(batch, 0).crops, MultiCrop(SMALL)(deep, 0).crops, strict=True):
        assert ((crop - other).abs() > 8 / 255).float().mean() < 0.001  # solarizing halves differences at the middle
        assert (crop - other).abs().mean() < 1 / 255


@pytest.mark.parametrize("channels", [3, 4])
def test_values_beyond_0_and_1_are_cropped_and_blurred_but_keep_their_units(channels):
    """A picture that is measured in Hounsfield units or degrees is not clipped, whatever is beside it in the batch."""
    batch = bands_of(channels)
    images = batch.images.clone()
    images[1], images[4] = images[1] * 4000 - 1000, images[4] + 272
    mixed = replace(batch, images=images, bounded=torch.tensor([True, False, True, True, False, True]))
    blurred = replace(SMALL, jitter=0.0, gray=0.0)
    for whole, plain in zip(MultiCrop(SMALL)(mixed, 0).crops, MultiCrop(blurred)(mixed, 0).crops, strict=True):
        assert torch.equal(whole[[1, 4]], plain[[1, 4]])
        assert whole[1].max() > 400 and whole[4].min() > 272
        assert whole[[0, 2, 3, 5]].max() <= 1
    others = MultiCrop(SMALL)(batch, 0).crops
    for whole, other in zip(MultiCrop(SMALL)(mixed, 0).crops, others, strict=True):
        torch.testing.assert_close(whole[[0, 2, 3, 5]], other[[0, 2, 3, 5]], rtol=0, atol=1e-6)


def test_sixteen_bits_go_through_crops_of_the_whole_picture_unchanged():
    deep = bands_of(4, side=24)
    images = torch.randint(0, 65536, deep.images.shape).float() / 65535
    deep = replace(deep, images=images)
    still = replace(PLAIN, global_scale=(1.0, 1.0), ratio=(1.0, 1.0), augmentation="released")
    assert torch.equal(MultiCrop(still)(deep, 0).crops[0], images)
    assert torch.equal(RandomCrop((24,), (1.0, 1.0), (1.0, 1.0))(deep, 0).crops[0], images)
    assert torch.equal(fit(images, deep.sizes, 24), images)


def test_jitter_comes_in_every_order_and_within_its_strengths():
    plan = plan_crops(SMALL, torch.full((3000, 2), 64), torch.arange(3000), seed=0)[1]
    jitter = plan.steps[:16]
    order = torch.stack([step.chosen for step in jitter]).view(4, 4, -1).int()  # (slot, change, crop)
    jittered = order.sum((0, 1)) == 4
    assert ((order.sum(0) == 1).all(0) | ~jittered).all()  # each change once
    assert len({tuple(row) for row in order.argmax(1).T[jittered].tolist()}) == 24
    for step, (low, high) in zip(jitter[:4], [(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)], strict=True):
        assert low <= step.amount.min() < low + 0.01
        assert high - 0.01 < step.amount.max() <= high


@pytest.mark.parametrize("side", [8, 160, 260])  # many at once, few at once, one at a time
def test_changing_a_batch_is_changing_its_chosen_pictures_one_by_one(side):
    count = 30 if side < 200 else 3
    images = torch.rand(count, 3, side, side)
    draws = Draws(0, torch.arange(count))
    steps = [
        Step(change, draws.flags(change.__name__, 0.5), draws.uniform(f"{change.__name__}.amount", *span))
        for change, span in ((colour.adjust_hue, (-0.5, 0.5)), (colour.adjust_contrast, (0.5, 1.5)))
    ]
    steps.append(Step(colour.grayscale, draws.flags("gray", 0.3)))
    steps.append(Step(colour.gaussian_blur, draws.flags("blur", 0.5), draws.uniform("sigma", 0.1, 2.0)))
    expected = []
    for place, image in enumerate(images):
        alone = image[None]
        for step in steps:
            if step.chosen[place]:
                amount = () if step.amount is None else (step.amount[place : place + 1],)
                alone = step.change(alone, *amount)
        expected.append(alone)
    changed = images.clone()
    recolour(changed, steps)
    torch.testing.assert_close(changed, torch.cat(expected), rtol=0, atol=1e-6)
    untouched = ~torch.stack([step.chosen for step in steps]).any(0)
    assert torch.equal(changed[untouched], images[untouched])


def test_random_crop_keeps_colours_and_sizes():
    batch = batch_of(6)
    (images,) = RandomCrop((16,), scale=(1.0, 1.0), ratio=(0.01, 100.0))(replace(batch, sizes=None), seed=0).crops
    assert images.shape == (6, 3, 16, 16)
    (mirrored,) = RandomCrop((16,), scale=(0.5, 0.6), flip=1.0)(batch, seed=0).crops
    torch.testing.assert_close(mirrored.flip(3), RandomCrop((16,), scale=(0.5, 0.6))(batch, seed=0).crops[0])


@pytest.mark.parametrize(
    ("mode", "share", "box"),
    [
        ("crop", 1.0, (10, 0, 50, 40)),
        ("squash", 1.0, (0, 0, 60, 40)),
        ("crop", 0.5, (20, 10, 40, 30)),
        ("squash", 0.5, (15, 10, 45, 30)),
        ("crop", 0.01, (29, 19, 30, 20)),
    ],
)
@pytest.mark.parametrize("filter", ["BICUBIC", "BILINEAR"])
def test_fit_takes_a_share_of_the_centred_square_or_of_everything(mode, share, box, filter):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    padded = torch.zeros(1, 3, 70, 80, dtype=torch.uint8)
    padded[0, :, :40, :60] = torch.from_numpy(pixels).permute(2, 0, 1)
    found = fit(padded, torch.tensor([[40, 60]]), 24, mode, share, filter.lower())
    truth = np.asarray(Image.fromarray(pixels).crop(box).resize((24, 24), Image.Resampling[filter]))
    assert (found[0].permute(1, 2, 0) - torch.from_numpy(truth / 255)).abs().max() <= 2.001 / 255


@given(height=st.integers(1, 90), width=st.integers(1, 90), side=st.integers(1, 40), deep=st.booleans())
def test_fit_pads_what_keeps_its_shape(height, width, side, deep):
    """The picture as Pillow resizes it, its longer side as long as wanted, and beside it nothing but the fill."""
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    padded = torch.full((1, 3, height + 3, width + 5), 255, dtype=torch.uint8)
    padded[0, :, :height, :width] = torch.from_numpy(pixels).permute(2, 0, 1)
    images = padded / 255 if deep else padded
    found = fit(images, torch.tensor([[height, width]]), side, "pad", 1.0, "bilinear", (0.1, 0.2, 0.3))[0]
    high, wide = inside((height, width), side)
    assert max(high, wide) == side and found.shape == (3, side, side)
    truth = np.asarray(Image.fromarray(pixels).resize((wide, high), Image.Resampling.BILINEAR))
    assert (found[:, :high, :wide].permute(1, 2, 0) - torch.from_numpy(truth / 255)).abs().max() <= 2.001 / 255
    fill = torch.tensor([0.1, 0.2, 0.3])[:, None]
    assert torch.equal(found[:, high:].flatten(1), fill.expand(3, (side - high) * side))
    assert torch.equal(found[:, :, wide:].flatten(1), fill.expand(3, (side - wide) * side))


def test_fit_pads_pictures_of_several_shapes_and_without_a_fill_with_zeros():
    images, sizes = 0.4 + 0.2 * torch.rand(2, 4, 20, 30), torch.tensor([[20, 10], [8, 30]])
    found = fit(images, sizes, 16, "pad")
    assert found.shape == (2, 4, 16, 16)
    assert (found[0, :, :, 8:] == 0).all() and (found[0, :, :, :8] > 0).all()
    assert (found[1, :, 4:] == 0).all() and (found[1, :, :4] > 0).all()


@pytest.mark.parametrize(("size", "expected"), [((72, 96), (84, 112)), ((100, 70), (112, 78)), ((1, 5000), (1, 112))])
def test_what_is_inside_of_the_padding_is_rounded_as_sams_code_does(size, expected):
    assert inside(size, 112) == expected
    assert inside(size[::-1], 112) == expected[::-1]


def test_the_configuration_survives_json():
    config = replace(SMALL, augmentation="released", sigma=(0.2, 1.5))
    assert from_dict(MultiCropConfig, to_dict(config), "config.json") == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"global_scale": (0.5, 0.4)}, "global_scale=0.5,0.4: the lowest value comes first"),
        ({"global_scale": (0.5, 1.5)}, "global_scale=1.5 should be less than or equal to 1"),
        ({"local_scale": (0.0, 0.4)}, "local_scale=0.0 should be greater than 0"),
        ({"local_count": -1}, "local_count=-1 should be greater than or equal to 0"),
        ({"local_count": 100_000}, "local_count=100000 should be less than or equal to 1000"),
        ({"local_size": 0}, "local_size=0 should be greater than 0"),
        ({"hue": 0.6}, "hue=0.6 should be less than or equal to 0.5"),
        ({"flip": 1.5}, "flip=1.5 should be less than or equal to 1"),
        ({"ratio": (2.0, 1.0)}, "ratio=2.0,1.0: the lowest value comes first"),
        ({"sigma": (0.0, 1.0)}, "sigma=0.0 should be greater than 0"),
        ({"augmentation": "papr"}, "augmentation=papr should be 'paper' or 'released'"),
    ],
)
def test_impossible_configurations_are_named(values, said):
    """The key and its value, and no other."""
    with pytest.raises(ValueError) as error:
        from_dict(MultiCropConfig, values, "here")
    assert str(error.value) == f"here: {said}"


def test_other_impossible_requests_are_named():
    with pytest.raises(ValueError, match="choose crop, squash or pad"):
        fit(torch.zeros(1, 3, 8, 8), torch.tensor([[8, 8]]), 4, "stretch")
    with pytest.raises(ValueError, match="scale"):
        RandomCrop((8,), scale=(0.0, 1.0))
    with pytest.raises(ValueError, match="size is 0"):
        RandomCrop((0,))
