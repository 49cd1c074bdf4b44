"""Changes of colour and sharpness for batches of pictures, one factor a picture: (B, 3, H, W) float in [0, 1]."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode L


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiplies every picture by its factor (B,), clipped; 0 is black, 1 changes nothing."""
    return (images * _column(factor, images)).clamp_(0.0, 1.0)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends every picture with the mean of its grey version; 0 is flat grey, 1 changes nothing, more exaggerates."""
    mean = (images.mean((2, 3)) * torch.tensor(_LUMA, device=images.device)).sum(1)
    return _blend(mean.view(-1, 1, 1, 1), images, factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blends every picture with its grey version; 0 is grey, 1 changes nothing, more exaggerates."""
    return _blend(luma(images), images, factor)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of every picture, in HSV, by its share (B,) of the whole circle, in [-0.5, 0.5].

    Hue is counted in sixths of the circle, from red, in [-3, 3]. With channels scaled to [0, 1] between the smallest
    and the largest of a pixel it is sign(g - b) * (1 + g + b - r), and a channel is clip(2 - distance from its hue).
    """
    red, green, blue = images.split(1, dim=1)
    low = images.amin(1, keepdim=True)
    chroma = images.amax(1, keepdim=True).sub_(low)
    hue = (green + blue).sub_(red).sub_(low).div_(chroma.clamp_min(1e-8)).add_(1.0).copysign_(green - blue)
    turns = 6.0 * shift[:, None] - torch.tensor([0.0, 2.0, 4.0], device=shift.device)
    turns = torch.remainder(turns + 3.0, 6.0) - 3.0  # in [-3, 3], so that one fold finds the distance on the circle
    share = (hue + turns.to(images)[:, :, None, None]).abs_().sub_(3.0).abs_().clamp_(1.0, 2.0)
    return share.mul_(chroma).add_(low.sub_(chroma))


def grayscale(images: Tensor) -> Tensor:
    """The grey version of every picture, in three equal channels."""
    return luma(images).repeat(1, 3, 1, 1)


def solarize(images: Tensor) -> Tensor:
    """Inverts what is brighter than the middle: for 8-bit values exactly Pillow's `solarize` at threshold 128."""
    return torch.minimum(images, 1.0 - images)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation of its own for every picture; edge pixels are repeated outwards.

    The filter is cut at three standard deviations, where 0.3 % of it remain.

    Args:
        images: (B, C, H, W) float.
        sigma: (B,) standard deviation in pixels, above zero, on the CPU: the largest decides how many taps are summed.
    """
    radius = max(1, math.ceil(3.0 * float(sigma.max())))
    taps = torch.arange(radius + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    weights = weights / (weights[:, :1] + 2.0 * weights[:, 1:].sum(1, keepdim=True))
    weights = weights.to(images)[:, :, None, None, None]  # (B, radius + 1, 1, 1, 1)
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
    """(B, 1, H, W) grey values."""
    red, green, blue = images.split(1, dim=1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def _blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    factor = _column(factor, images)
    return (images * factor).add_(base * (1.0 - factor)).clamp_(0.0, 1.0)


def _column(factor: Tensor, images: Tensor) -> Tensor:
    return factor.to(images).view(-1, 1, 1, 1)
