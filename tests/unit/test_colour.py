"""The colour operations are Pillow's; blur and hue, which Pillow approximates, are what their definitions say."""

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter

from synoptic.data import colour

LEVELS = 2.001 / 255
CHANGES = {
    colour.adjust_brightness: ((0.0, 2.0), lambda image, factor: ImageEnhance.Brightness(image).enhance(factor)),
    colour.adjust_contrast: ((0.0, 2.0), lambda image, factor: ImageEnhance.Contrast(image).enhance(factor)),
    colour.adjust_saturation: ((0.0, 2.0), lambda image, factor: ImageEnhance.Color(image).enhance(factor)),
}
AMOUNTS = {**{change: span for change, (span, _) in CHANGES.items()}, colour.adjust_hue: (-0.5, 0.5)}


def picture(seed, height=24, width=31):
    """Smooth colours with noise and a few flat, grey, black and white places, as uint8 (H, W, 3)."""
    generator = np.random.default_rng(seed)
    slope = np.linspace(0, 255, width)[None, :, None] * generator.random(3)
    pixels = (slope + generator.normal(60, 40, (height, width, 3))).clip(0, 255).astype(np.uint8)
    pixels[:3], pixels[3:6], pixels[6:8] = 0, 255, pixels[6:8, :, :1]
    return pixels


def tensor(pixels):
    return torch.from_numpy(np.asarray(pixels) / 255.0).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
def test_jitter_is_pillows(change, seed, share):
    (low, high), theirs = CHANGES[change]
    amount = low + share * (high - low)
    image = Image.fromarray(picture(seed))
    found = change(tensor(image), torch.tensor([amount]))
    assert (found - tensor(theirs(image, amount))).abs().max() <= LEVELS


@given(seed=st.integers(0, 1000), shift=st.floats(-0.5, 0.5))
def test_hue_is_turned_in_hsv(seed, shift):
    pixels = picture(seed, 9, 12) / 255.0

    def turned(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value)

    truth = torch.from_numpy(np.apply_along_axis(turned, 2, pixels)).permute(2, 0, 1)
    found = colour.adjust_hue(torch.from_numpy(pixels).permute(2, 0, 1)[None], torch.tensor([shift]))
    assert (found[0] - truth).abs().max() < 1e-5


@given(seed=st.integers(0, 1000), sigma=st.floats(0.1, 2.0))
def test_blur_is_gaussian_with_repeated_edges(seed, sigma):
    pixels = picture(seed) / 255.0
    truth = gaussian_filter(pixels, (sigma, sigma, 0), mode="nearest", truncate=8.0)
    found = colour.gaussian_blur(torch.from_numpy(pixels).permute(2, 0, 1)[None], torch.tensor([sigma]))
    assert (found[0].permute(1, 2, 0) - torch.from_numpy(truth)).abs().max() <= LEVELS


def test_blur_wider_than_the_picture():
    pixels = np.random.default_rng(0).random((5, 4, 3))
    truth = gaussian_filter(pixels, (6.0, 6.0, 0), mode="nearest", truncate=8.0)
    found = colour.gaussian_blur(torch.from_numpy(pixels).permute(2, 0, 1)[None], torch.tensor([6.0]))
    assert (found[0].permute(1, 2, 0) - torch.from_numpy(truth)).abs().max() <= LEVELS


def test_blur_of_one_picture_does_not_depend_on_the_others():
    images = torch.rand(2, 3, 20, 20)
    together = colour.gaussian_blur(images, torch.tensor([0.3, 2.0]))
    assert torch.equal(together[:1], colour.gaussian_blur(images[:1], torch.tensor([0.3])))


def test_solarize_is_pillows_for_every_level():
    levels = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2))
    torch.testing.assert_close(colour.solarize(tensor(levels)), tensor(ImageOps.solarize(levels)))


def test_grayscale_is_pillows():
    image = Image.fromarray(picture(0))
    found = colour.grayscale(tensor(image))
    assert (found - tensor(image.convert("L").convert("RGB"))).abs().max() <= LEVELS
    assert torch.equal(found[:, 0], found[:, 2])


@pytest.mark.parametrize("change", AMOUNTS, ids=lambda change: change.__name__)
def test_every_picture_has_its_own_amount(change):
    images = torch.cat([tensor(picture(seed)) for seed in range(4)])
    before = images.clone()
    amounts = torch.linspace(*AMOUNTS[change], 4)
    alone = torch.cat([change(images[i : i + 1], amounts[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(change(images, amounts), alone, rtol=0, atol=1e-6)
    assert torch.equal(images, before)
    assert alone.min() >= 0
    assert alone.max() <= 1


@pytest.mark.parametrize(
    ("change", "nothing"),
    [
        (colour.adjust_brightness, 1.0),
        (colour.adjust_contrast, 1.0),
        (colour.adjust_saturation, 1.0),
        (colour.adjust_hue, 0.0),
        (colour.gaussian_blur, 0.05),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_neutral_amount_changes_nothing(change, nothing):
    image = tensor(picture(1))
    torch.testing.assert_close(change(image, torch.tensor([nothing])), image, rtol=0, atol=1e-5)


def test_brightness_and_contrast_of_other_bands():
    """Each band keeps its own mean, so that contrast does not move bands towards each other."""
    level = torch.tensor([0.1, 0.3, 0.4, 0.6, 0.7]).view(1, 5, 1, 1)
    images = level + 0.1 * torch.rand(2, 5, 12, 10)
    factor = torch.tensor([0.5, 1.2])
    means = images.mean((2, 3), keepdim=True)
    expected = means + (images - means) * factor.view(2, 1, 1, 1)
    torch.testing.assert_close(colour.adjust_contrast(images, factor), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        colour.adjust_brightness(images, factor), images * factor.view(2, 1, 1, 1), rtol=0, atol=1e-6
    )


def test_a_full_turn_of_the_hue_comes_back():
    image = tensor(picture(2))
    half = torch.tensor([0.5])
    torch.testing.assert_close(colour.adjust_hue(colour.adjust_hue(image, half), half), image, rtol=0, atol=1e-5)
