"""Antialiased resampling of a batch, a box of its own for each picture: Pillow's filters, on tensors, on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}


@torch.no_grad()
def resized_crop(
    images: Tensor,
    boxes: Tensor,
    size: int | tuple[int, int],
    flip: Tensor | None = None,
    interpolation: Interpolation = "bicubic",
) -> Tensor:
    """Cuts one box out of every picture and resizes it, as Pillow does: `image.crop(box).resize(size)`.

    The filter is widened by the factor of reduction, so that nothing aliases. Pixels that the box does not touch are
    not read: what lies beside it, padding included, cannot bleed in. The result is within 2/255 of Pillow's. A box that
    keeps its size keeps its values, to the last bit.

    The cubic filter overshoots at edges. Results are held within [0, 1], or where a picture of floats goes beyond
    within its own lowest and highest value.

    Args:
        images: (B, C, H, W) uint8, or float, mostly in [0, 1].
        boxes: (B, 4) left, top, right, bottom in pixels, on the CPU; fractions are allowed.
        size: side of the result in pixels, or (height, width).
        flip: (B,) bool on the CPU, which results are mirrored left to right.
        interpolation: bicubic (a = -0.5, as Pillow's) or bilinear.

    Returns:
        (B, C, height, width) float32, on the device of `images`; bytes lie in [0, 1].

    Raises:
        ValueError: a box is empty or leaves the image, or size or interpolation are impossible.
    """
    height, width = (size, size) if isinstance(size, int) else size
    boxes = boxes.cpu().double()
    _check(boxes, images, height, width, interpolation)
    flip = torch.zeros(len(images), dtype=torch.bool) if flip is None else flip.cpu()
    resize: Callable[..., Tensor] = _resize_at_once
    if images.device.type == "cpu" and bool((boxes == boxes.round()).all()):
        resize = _resize_bytes if images.dtype == torch.uint8 else _resize_floats
    return resize(images, boxes, (height, width), flip, interpolation)


def interleaved(images: Tensor) -> Tensor:
    """The same pictures in the layout from which several crops are cut fastest: for bytes on a CPU, the colours of a
    pixel side by side."""
    bytes_on_cpu = images.device.type == "cpu" and images.dtype == torch.uint8
    if not bytes_on_cpu or images.is_contiguous(memory_format=torch.channels_last):
        return images
    return torch.stack(images.unbind(1), dim=3).permute(0, 3, 1, 2)  # twice as fast as `contiguous`


def _check(boxes: Tensor, images: Tensor, height: int, width: int, interpolation: str) -> None:
    if interpolation not in _SUPPORT:
        raise ValueError(f"interpolation {interpolation!r} is unknown: choose one of {', '.join(_SUPPORT)}")
    if height < 1 or width < 1:
        raise ValueError(f"crops of {width} x {height} pixels cannot be made: give a size of at least 1")
    left, top, right, bottom = boxes.unbind(1)
    full_height, full_width = images.shape[-2:]
    inside = (left >= 0) & (top >= 0) & (right <= full_width) & (bottom <= full_height)
    good = inside & (left < right) & (top < bottom)
    if not bool(good.all()):
        place = int((~good).nonzero()[0])
        box = ", ".join(f"{side:g}" for side in boxes[place].tolist())
        raise ValueError(
            f"box {place} of the batch is ({box}), but boxes are (left, top, right, bottom) with left < right and "
            f"top < bottom inside a picture of {full_width} x {full_height} pixels"
        )


def _height_first(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(B,) bool: which boxes are resized in height before width. The order shows at edges, since values are clipped to
    their range in between. The rule is Pillow's, from version 13 on; before, width was always first."""
    wide, high = (boxes[:, 2:].ceil() - boxes[:, :2].floor()).unbind(1)
    return (high > size[0]) & (high - size[0] > 2.0 * (wide - size[1]))


def _resize_bytes(images: Tensor, boxes: Tensor, size: tuple[int, int], flip: Tensor, interpolation: str) -> Tensor:
    """Picture by picture with PyTorch's 8-bit kernel, whose arithmetic is Pillow's and many times faster on a CPU."""
    result = torch.empty((*images.shape[:2], *size))
    mirrored, height_first = flip.tolist(), _height_first(boxes, size).tolist()
    for place, (left, top, right, bottom) in enumerate(boxes.int().tolist()):
        small = images[place : place + 1, :, top:bottom, left:right]
        if height_first[place]:
            small = F.interpolate(small, (size[0], right - left), mode=interpolation, antialias=True)
        small = F.interpolate(small, size, mode=interpolation, antialias=True)[0].contiguous()
        result[place].copy_(small.flip(2) if mirrored[place] else small).div_(255.0)
    return result


def _resize_floats(images: Tensor, boxes: Tensor, size: tuple[int, int], flip: Tensor, interpolation: str) -> Tensor:
    """Picture by picture with PyTorch's kernel for floats, clipped between its two passes as Pillow's bytes are."""
    result = torch.empty((*images.shape[:2], *size))
    mirrored, height_first = flip.tolist(), _height_first(boxes, size).tolist()
    limits = [limit.flatten().tolist() for limit in _limits(images)]
    for place, (low, high, box) in enumerate(zip(*limits, boxes.int().tolist(), strict=True)):
        left, top, right, bottom = box
        small = images[place : place + 1, :, top:bottom, left:right].float()
        between = (size[0], right - left) if height_first[place] else (bottom - top, size[1])
        for target in (between, size):
            small = _pass(small, target, interpolation).clamp_(low, high)
        result[place].copy_(small[0].flip(2) if mirrored[place] else small[0])
    return result


def _pass(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """`image` (1, C, H, W) float resized along one axis."""
    if image.shape[3] == size[1] == 1:  # in a single column PyTorch 2.13 gives all rows the value of the first
        return _pass(image.expand(-1, -1, -1, 2), (size[0], 2), interpolation)[..., :1]
    return F.interpolate(image, size, mode=interpolation, antialias=True)


def _limits(images: Tensor) -> tuple[Any, Any]:
    """The lowest and the highest value that results may have: of bytes 0 and 255, of floats (B, 1, 1, 1) float32."""
    if images.dtype == torch.uint8:
        return 0.0, 255.0
    low, high = images.flatten(1).float().aminmax(dim=1)
    return low.clamp_max(0.0).view(-1, 1, 1, 1), high.clamp_min(1.0).view(-1, 1, 1, 1)


def _resize_at_once(images: Tensor, boxes: Tensor, size: tuple[int, int], flip: Tensor, interpolation: str) -> Tensor:
    """Many pictures at once, on any device, of any type, for boxes that may end within a pixel."""
    result = torch.empty((*images.shape[:2], *size), device=images.device)
    height_first = _height_first(boxes, size)
    for chosen, order in ((height_first, "height first"), (~height_first, "width first")):
        place = chosen.nonzero()[:, 0].to(images.device, non_blocking=True)
        if len(place):
            result[place] = _products(images[place], boxes[chosen], size, flip[chosen], interpolation, order)
    return result


def _products(
    images: Tensor, boxes: Tensor, size: tuple[int, int], flip: Tensor, interpolation: str, order: str
) -> Tensor:
    """Resizing as two matrix products; between them values are clipped, as Pillow's bytes are."""
    left, top = boxes[:, :2].floor().amin(0).int().tolist()
    right, bottom = boxes[:, 2:].ceil().amax(0).int().tolist()
    low, high = _limits(images)
    cut = images[:, :, top:bottom, left:right].to(torch.float32, memory_format=torch.contiguous_format)
    begin, end = torch.where(flip[:, None], boxes[:, [2, 0]], boxes[:, [0, 2]]).unbind(1)
    across = _weights(begin - left, end - left, right - left, size[1], interpolation, cut.device).mT[:, None]
    down = _weights(boxes[:, 1] - top, boxes[:, 3] - top, bottom - top, size[0], interpolation, cut.device)[:, None]
    with torch.autocast(cut.device.type, enabled=False):  # half precision would err by more than a level of 255
        if order == "height first":
            result = torch.matmul(torch.matmul(down, cut).clamp_(low, high), across)
        else:
            result = torch.matmul(down, torch.matmul(cut, across).clamp_(low, high))
    result.clamp_(low, high)
    return result.div_(255.0) if images.dtype == torch.uint8 else result


def _weights(begin: Tensor, end: Tensor, pixels: int, size: int, interpolation: str, device: torch.device) -> Tensor:
    """(B, size, pixels): what each pixel of a line gives to each output pixel; each row sums to one.

    Args:
        begin, end: (B,) the stretch of each line that becomes `size` output pixels; the other way round, mirrored.
    """
    begin, end = (ends.to(device, torch.float32, non_blocking=True)[:, None, None] for ends in (begin, end))
    step = (end - begin) / size
    centres = begin + (torch.arange(size, device=device)[:, None] + 0.5) * step
    place = torch.arange(pixels, device=device)
    weights = _filter((place + 0.5 - centres) / step.abs().clamp_min(1.0), interpolation)
    weights *= (place >= torch.minimum(begin, end).floor()) & (place < torch.maximum(begin, end).ceil())
    return weights / weights.sum(2, keepdim=True)


def _filter(offset: Tensor, interpolation: str) -> Tensor:
    """The triangle, or the cubic of Keys 1981 ("Cubic convolution interpolation") with a = -0.5."""
    distance = offset.abs().clamp_max(_SUPPORT[interpolation])
    if interpolation == "bilinear":
        return 1.0 - distance
    near = (1.5 * distance - 2.5) * distance * distance + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return torch.where(distance < 1.0, near, far)
