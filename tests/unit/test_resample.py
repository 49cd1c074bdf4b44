"""Batched resampling gives Pillow's pixels, whatever the box, the size and the way it is computed."""

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from synoptic.data.resample import interleaved, resized_crop

LEVELS = 2.001 / 255  # two levels of 255, and the rounding of float32
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# Earlier versions of Pillow always resize width before height, which shows at edges where values are clipped.
pillow_13 = pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow's order of passes is of 13")


@st.composite
def pictures_and_boxes(draw):
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    levels = draw(st.sampled_from([2, 256]))  # black and white shows overshoot at its worst
    pixels = (generator.integers(0, levels, (height, width, 3)) * (255 // (levels - 1))).astype(np.uint8)
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    size = draw(st.integers(1, 100)), draw(st.integers(1, 100))
    return pixels, (left, top, right, bottom), size, draw(st.sampled_from(sorted(FILTERS)))


def tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()


def array(image):
    return torch.from_numpy(np.asarray(image) / 255.0).permute(2, 0, 1)[None].float()


@pillow_13
@given(pictures_and_boxes())
def test_bytes_are_resized_as_pillow_does(case):
    pixels, box, size, name = case
    truth = Image.fromarray(pixels).crop(box).resize(size[::-1], FILTERS[name])
    found = resized_crop(tensor(pixels), torch.tensor([box]), size, interpolation=name)
    assert found.shape == (1, 3, *size)
    assert found.dtype == torch.float32
    assert (found - array(truth)).abs().max() <= LEVELS


@pillow_13
@given(pictures_and_boxes())
def test_floats_are_resized_as_pillow_does(case):
    pixels, box, size, name = case
    truth = Image.fromarray(pixels).crop(box).resize(size[::-1], FILTERS[name])
    found = resized_crop(tensor(pixels) / 255, torch.tensor([box]), size, interpolation=name)
    assert (found - array(truth)).abs().max() <= LEVELS


@pillow_13
@given(pictures_and_boxes(), st.floats(0, 0.9), st.floats(0, 0.9))
def test_boxes_may_end_within_a_pixel(case, inset, outset):
    pixels, (left, top, right, bottom), size, name = case
    exact = (left + inset / 2, top + outset / 2, right - outset / 2, bottom - inset / 2)
    shifted = (exact[0] - left, exact[1] - top, exact[2] - left, exact[3] - top)
    truth = Image.fromarray(pixels).crop((left, top, right, bottom)).resize(size[::-1], FILTERS[name], box=shifted)
    found = resized_crop(tensor(pixels), torch.tensor([exact], dtype=torch.float64), size, interpolation=name)
    assert (found - array(truth)).abs().max() <= LEVELS


def test_a_batch_gives_what_its_pictures_give_alone():
    images = torch.randint(0, 256, (6, 3, 50, 40), dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, 40, 50], [3, 5, 9, 45], [30, 0, 40, 10], [0, 1, 2, 3], [8, 8, 30, 30], [1, 2, 39, 48]])
    for batch in (images, images / 255):
        together = resized_crop(batch, boxes, 24)
        alone = torch.cat([resized_crop(batch[i : i + 1], boxes[i : i + 1], 24) for i in range(6)])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_only_flipped_pictures_are_mirrored():
    images = torch.randint(0, 256, (3, 3, 20, 30), dtype=torch.uint8)
    boxes = torch.tensor([[2, 1, 27, 19]]).expand(3, 4)
    flip = torch.tensor([True, False, True])
    for batch in (images, images / 255):
        plain, mirrored = resized_crop(batch, boxes, (8, 12)), resized_crop(batch, boxes, (8, 12), flip)
        expected = torch.where(flip[:, None, None, None], plain.flip(3), plain)
        torch.testing.assert_close(mirrored, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("flipped", [False, True])
def test_a_box_that_keeps_its_size_keeps_every_bit(flipped):
    images = torch.randint(0, 65536, (2, 4, 40, 50)).float() / 65535  # of 16 bits
    boxes, flip = torch.tensor([[3, 5, 27, 29], [10, 0, 34, 24]]), torch.tensor([flipped] * 2)
    found = resized_crop(images, boxes, 24, flip)
    for image, (left, top, right, bottom), crop in zip(images, boxes.tolist(), found, strict=True):
        expected = image[:, top:bottom, left:right]
        assert torch.equal(crop, expected.flip(2) if flipped else expected)


@pytest.mark.parametrize("box", [(0, 0, 40, 30), (0.5, 0.5, 39.5, 29.5)])  # by the kernel, and as products
def test_floats_are_clipped_to_the_range_of_their_picture(box):
    """To [0, 1] where they lie in it, so that edges do not overshoot; to their own lowest and highest beyond."""
    edge = (torch.arange(40) % 10 < 5).float().expand(2, 1, 30, 40)
    images = edge * torch.tensor([0.9, 4000.0]).view(2, 1, 1, 1) - torch.tensor([0.0, 1000.0]).view(2, 1, 1, 1)
    crops = resized_crop(images, torch.tensor([box] * 2), (60, 91))
    assert crops[0].min() == 0.0 and 0.9 < crops[0].max() < 1.0
    assert crops[1].min() == -1000.0 and crops[1].max() == 3000.0
    alone = resized_crop(images[:1], torch.tensor([box]), (60, 91))
    torch.testing.assert_close(crops[:1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("shape", "size"), [((9, 1), (4, 1)), ((9, 1), (20, 3)), ((9, 5), (4, 1)), ((1, 9), (1, 4))])
def test_single_columns_and_rows(shape, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    truth = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)
    box = torch.tensor([[0, 0, shape[1], shape[0]]])
    assert (resized_crop(tensor(pixels) / 255, box, size) - array(truth)).abs().max() <= LEVELS


@pytest.mark.parametrize("box", [(4, 6, 20, 18), (4.5, 6.2, 19.5, 17.9)])
def test_what_lies_beside_the_box_is_not_read(box):
    images = torch.randint(0, 256, (1, 3, 30, 30), dtype=torch.uint8)
    other = 255 - images
    other[:, :, 6:18, 4:20] = images[:, :, 6:18, 4:20]
    for first, second in ((images, other), (images / 255, other / 255)):
        box_ = torch.tensor([box])
        torch.testing.assert_close(resized_crop(first, box_, 16), resized_crop(second, box_, 16), rtol=0, atol=0)


def test_even_colour_stays_even_at_any_scale():
    for images in (torch.full((1, 3, 200, 7), 77, dtype=torch.uint8), torch.full((1, 3, 200, 7), 77 / 255)):
        for size in (1, 5, 300):
            found = resized_crop(images, torch.tensor([[0, 0, 7, 200]]), size)
            assert (found - 77 / 255).abs().max() < 1e-5


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_any_number_of_channels(channels):
    images = torch.randint(0, 256, (2, channels, 40, 30), dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, 30, 40], [5, 5, 20, 20]])
    found = resized_crop(images, boxes, 16)
    for channel in range(channels):
        alone = resized_crop(images[:, channel : channel + 1], boxes, 16)
        assert (found[:, channel : channel + 1] - alone).abs().max() <= LEVELS


def test_the_layout_of_the_source_changes_nothing():
    images = torch.randint(0, 256, (2, 3, 40, 30), dtype=torch.uint8)
    side_by_side = interleaved(images)
    assert torch.equal(images, side_by_side)
    assert side_by_side.is_contiguous(memory_format=torch.channels_last)
    assert interleaved(side_by_side) is side_by_side
    boxes = torch.tensor([[0, 0, 30, 40], [5, 5, 20, 20]])
    for scale in (1, 255):
        assert torch.equal(
            resized_crop(images / scale if scale > 1 else images, boxes, 16),
            resized_crop(side_by_side / scale if scale > 1 else side_by_side, boxes, 16),
        )


def test_half_precision_around_it_costs_no_accuracy():
    images, boxes = torch.rand(2, 3, 40, 40), torch.tensor([[0, 0, 40, 40], [1, 1, 30, 22]])
    exact = resized_crop(images, boxes, 24)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(resized_crop(images, boxes, 24), exact)


@pytest.mark.parametrize(
    ("box", "size", "interpolation", "said"),
    [
        ((5, 0, 5, 9), 8, "bicubic", r"box 0 of the batch is \(5, 0, 5, 9\)"),
        ((-1, 0, 5, 9), 8, "bicubic", "inside a picture of 20 x 10 pixels"),
        ((0, 0, 20, 10.5), 8, "bicubic", "inside a picture of 20 x 10 pixels"),
        ((0, 0, float("nan"), 9), 8, "bicubic", "box 0"),
        ((0, 0, 20, 10), 0, "bicubic", "at least 1"),
        ((0, 0, 20, 10), 8, "lanczos", "bilinear, bicubic"),
    ],
)
def test_impossible_requests_are_named(box, size, interpolation, said):
    with pytest.raises(ValueError, match=said):
        resized_crop(torch.zeros(1, 3, 10, 20), torch.tensor([box]), size, interpolation=interpolation)
