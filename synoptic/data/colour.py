"""Changes of colour and sharpness for batches of pictures, one amount a picture.

All functions take images (B, C, H, W) float in [0, 1] and amounts (B,) on the CPU or the images' device, and give new
images of the same kind. Saturation, hue and grey are of red, green and blue (C = 3); brightness, contrast, solarizing
and blur are of any bands, and blur of any values too. Kornia's functions of these names were measured first: on a CPU
they take 1.5 times as long for saturation, 3 times for the blur, 14 times for the hue, and its `adjust_contrast` is no
contrast but a brightness.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiplies every picture by its factor, clipped; 0 is black, 1 changes nothing."""
    return (images * _per_picture(factor, images)).clamp_(0.0, 1.0)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends every picture with the mean of its grey version; 0 is flat grey, 1 changes nothing, more exaggerates.

    Pictures that are not of three bands have no grey version: each band is blended with its own mean.
    """
    means = images.mean((2, 3), keepdim=True)
    return _blend(luma(means) if images.shape[1] == 3 else means, images, factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blends every picture with its grey version; 0 is grey, 1 changes nothing, more exaggerates."""
    return _blend(luma(images), images, factor)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of every picture, in HSV, by its share of the whole circle, in [-0.5, 0.5].

    Hue is counted in sixths of the circle, from red, in [-3, 3]. With channels scaled to [0, 1] between the smallest
    and the largest of a pixel it is sign(g - b) * (1 + g + b - r), and a channel is clip(2 - distance from its hue).
    """
    red, green, blue = images.split(1, dim=1)
    low = images.amin(1, keepdim=True)
    chroma = images.amax(1, keepdim=True).sub_(low)
    hue = (green + blue).sub_(red).sub_(low).div_(chroma.clamp_min(1e-8)).add_(1.0).copysign_(green - blue)
    turns = 6.0 * shift[:, None] - torch.tensor([0.0, 2.0, 4.0]).to(shift, non_blocking=True)
    turns = torch.remainder(turns + 3.0, 6.0) - 3.0  # in [-3, 3], so that one fold finds the distance on the circle
    turns = turns.to(images, non_blocking=True)[:, :, None, None]
    share = (hue + turns).abs_().sub_(3.0).abs_().clamp_(1.0, 2.0)
    return share.mul_(chroma).add_(low.sub_(chroma))


def grayscale(images: Tensor) -> Tensor:
    """The grey version of every picture, in three equal channels."""
    return luma(images).repeat(1, 3, 1, 1)


def solarize(images: Tensor) -> Tensor:
    """Inverts what is brighter than the middle: for 8-bit values exactly Pillow's `solarize` at threshold 128."""
    return torch.minimum(images, 1.0 - images)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation of its own for every picture; edge pixels are repeated outwards.

    Every filter is cut at three standard deviations, where 0.3 % of it are left.

    Args:
        images: (B, C, H, W) float.
        sigma: (B,) standard deviation in pixels, above zero, on the CPU: the largest decides how many taps are summed.
    """
    reach = torch.ceil(3.0 * sigma)[:, None]
    radius = math.ceil(float(reach.max()))
    taps = torch.arange(radius + 1)
    # Cut at its own reach, so that a picture looks the same whichever others are blurred with it.
    weights = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2) * (taps <= reach)
    weights = weights / (2.0 * weights.sum(1, keepdim=True) - weights[:, :1])
    weights = weights.to(images, non_blocking=True)[:, :, None, None, None]  # (B, radius + 1, 1, 1, 1)
    down = _sum_taps(F.pad(images, (0, 0, radius, radius), mode="replicate"), weights, 2)
    return _sum_taps(F.pad(down, (radius, radius, 0, 0), mode="replicate"), weights, 3)


def _sum_taps(padded: Tensor, weights: Tensor, axis: int) -> Tensor:
    radius = weights.shape[1] - 1
    length = padded.shape[axis] - 2 * radius
    result = padded.narrow(axis, radius, length) * weights[:, 0]
    for tap in range(1, radius + 1):
        pair = padded.narrow(axis, radius - tap, length) + padded.narrow(axis, radius + tap, length)
        result.addcmul_(pair, weights[:, tap])
    return result


def luma(images: Tensor) -> Tensor:
    """(B, 1, H, W) grey values with the weights of ITU-R BT.601, as Pillow's mode L."""
    red, green, blue = images.split(1, dim=1)
    return (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    factor = _per_picture(factor, images)
    return (images * factor).add_(base * (1.0 - factor)).clamp_(0.0, 1.0)


def _per_picture(amount: Tensor, images: Tensor) -> Tensor:
    return amount.to(images, non_blocking=True).view(-1, 1, 1, 1)
