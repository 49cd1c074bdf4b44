"""What happens to a batch between the loader and the model: random crops for training, fixed ones for evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field as Bound
from pydantic import PositiveInt
from torch import Tensor

from synoptic.config import AreaSpan, PositiveSpan, Share
from synoptic.data import colour
from synoptic.data.draws import Draws
from synoptic.data.resample import Interpolation, interleaved, resized_crop
from synoptic.types import Batch, Mode, present

MOST_CROPS = 1000  # small ones a picture, a hundred times the paper's: more is a slip
_TRIES = 10
_CACHED_VALUES = 1 << 20  # on a CPU, only as many pictures are coloured together as stay in its cache,
_ENOUGH_VALUES = 1 << 16  # and larger ones singly: they keep a core busy without company, and need no gathering


def random_boxes(
    sizes: Tensor, scale: tuple[float, float], ratio: tuple[float, float], draws: Draws, name: str
) -> Tensor:
    """Boxes of random area, shape and place, distributed as torchvision's RandomResizedCrop draws them.

    Args:
        sizes: (B, 2) height and width of each picture.
        scale: smallest and largest share of the picture's area, in (0, 1].
        ratio: narrowest and widest shape, width over height, drawn evenly on a logarithmic scale.
        draws: the batch's random numbers.
        name: of these draws, unlike any other of the batch.

    Returns:
        (B, 4) float32, whole pixels: left, top, right, bottom. Where ten draws do not fit into the picture, the
        largest centred box of an allowed shape.
    """
    height, width = sizes.cpu().double().unsqueeze(2).unbind(1)  # (B, 1)
    area = height * width * draws.uniform(f"{name}.area", *scale, count=_TRIES)
    shape = draws.uniform(f"{name}.shape", math.log(ratio[0]), math.log(ratio[1]), count=_TRIES).double().exp()
    wide, high = (area * shape).sqrt().round(), (area / shape).sqrt().round()
    fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
    first = fits.int().argmax(1, keepdim=True)
    fitting = fits.any(1, keepdim=True)
    wide = torch.where(fitting, wide.gather(1, first), (height * ratio[1]).round().minimum(width).clamp_min(1))
    high = torch.where(fitting, high.gather(1, first), (width / ratio[0]).round().minimum(height).clamp_min(1))
    slack_x, slack_y = width - wide, height - high
    place = draws.uniform(f"{name}.place", count=2).double()
    left = torch.where(fitting, (place[:, :1] * (slack_x + 1)).floor(), (slack_x / 2).floor())
    top = torch.where(fitting, (place[:, 1:] * (slack_y + 1)).floor(), (slack_y / 2).floor())
    return torch.cat((left, top, left + wide, top + high), dim=1).float()


def fit(
    images: Tensor,
    sizes: Tensor,
    size: int,
    mode: Mode = "crop",
    share: float = 1.0,
    interpolation: Interpolation = "bicubic",
    fill: Sequence[float] = (),
) -> Tensor:
    """Brings pictures to one size for evaluation, without chance.

    Args:
        images: (B, C, H, W) uint8 or float, zero-padded on the right and below.
        sizes: (B, 2) height and width of each picture inside the padding.
        size: side of the result in pixels.
        mode: "crop" takes the largest centred square, "squash" the whole picture whatever its shape; "pad" brings the
            longer side to `size` and fills up on the right and below (SAM).
        share: of "crop" and "squash", how much of its height and width is taken about its centre, to the nearest pixel.
        interpolation: the filter.
        fill: what "pad" fills each band with; nothing is 0.

    Returns:
        (B, C, size, size) float32; bytes become shares of 255, floats stay as they are.
    """
    if mode not in ("crop", "squash", "pad"):
        raise ValueError(f"mode {mode!r} of fit is unknown: choose crop, squash or pad")
    if mode == "pad":
        return _padded(images, sizes, size, interpolation, fill)
    height, width = sizes.cpu().unbind(1)
    side = torch.minimum(height, width)
    high, wide = (height, width) if mode == "squash" else (side, side)
    high, wide = ((share * length).round().clamp_min(1).long() for length in (high, wide))
    left, top = (width - wide) // 2, (height - high) // 2
    boxes = torch.stack((left, top, left + wide, top + high), dim=1)
    return resized_crop(images, boxes, size, interpolation=interpolation)


def inside(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width of a picture whose longer side is brought to `side` pixels, rounded as SAM's code does;
    at least 1."""
    scale = side / max(size)
    return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)


def fitted_sides(size: tuple[int, int], short: int, long: int) -> tuple[int, int]:
    """Height and width of a picture whose shorter side is brought to `short` pixels, or its longer one to `long` where
    it would be longer, rounded as DETR's code does; from 1 to `long`."""
    low, high = sorted(size)
    side = max(round(long * low / high), 1) if high / low * short > long else short
    sides = [side if each == low else max(min(int(side * each / low), long), 1) for each in size]
    return sides[0], sides[1]


def fitted(image: Tensor, short: int, long: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """A picture brought to a size in its own shape.

    Args:
        image: (C, H, W) uint8 or float.
        short, long: see `fitted_sides`.
        interpolation: the filter.
    Returns:
        (C, height, width) float32; bytes become shares of 255, and are resized to the very bytes that Pillow makes.
    """
    sides = fitted_sides((image.shape[1], image.shape[2]), short, long)
    if image.dtype == torch.uint8:
        return _by_pillow(image, sides, interpolation)
    box = torch.tensor([[0, 0, image.shape[2], image.shape[1]]])
    return resized_crop(image[None], box, sides, interpolation=interpolation)[0]


def _padded(images: Tensor, sizes: Tensor, size: int, interpolation: Interpolation, fill: Sequence[float]) -> Tensor:
    values = torch.tensor(fill or (0.0,), device=images.device).view(1, -1, 1, 1)
    result = values.expand(*images.shape[:2], size, size).clone()
    for image, place, (height, width) in zip(images, result, sizes.tolist(), strict=True):
        high, wide = inside((height, width), size)
        if image.dtype == torch.uint8:
            place[:, :high, :wide] = _by_pillow(image[:, :height, :width], (high, wide), interpolation)
        else:
            box = torch.tensor([[0, 0, width, height]])
            place[:, :high, :wide] = resized_crop(image[None], box, (high, wide), interpolation=interpolation)[0]
    return result


def _by_pillow(picture: Tensor, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """(C, H, W) uint8 resized to the very bytes that Pillow makes, which PyTorch's kernel misses by up to two levels of
    255; (C, height, width) float32 in [0, 1]. SAM's makers resize with Pillow."""
    kernel = Image.Resampling[interpolation.upper()]
    bands = [np.asarray(Image.fromarray(band).resize(size[::-1], kernel)) for band in picture.cpu().numpy()]
    return torch.from_numpy(np.stack(bands)) / 255


@dataclass(frozen=True)
class RandomCrop:
    """One random crop of every picture, resized: the augmentation of CLIP, and of students that copy their teachers.

    Attributes:
        sizes: sides in pixels; the same crop comes in each of them.
        scale: share of the picture's area, smallest and largest.
        ratio: width over height, smallest and largest.
        flip: share of the crops that are mirrored.
    """

    sizes: tuple[int, ...]
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0

    def __post_init__(self) -> None:
        for size in self.sizes:
            _check_at_least("size", size, 1)
        _check_span("scale", self.scale, 1.0)
        _check_span("ratio", self.ratio, math.inf)
        _check_share("flip", self.flip)

    def __call__(self, batch: Batch, seed: int) -> Batch:
        """The batch with crops (B, C, size, size) float32, one tensor a size, in place of its images."""
        images, sizes, position = _opened(batch)
        draws = Draws(seed, position)
        boxes = random_boxes(sizes, self.scale, self.ratio, draws, "crop.box")
        flips = draws.flags("crop.flip", self.flip)
        crops = tuple(resized_crop(images, boxes, size, flips) for size in self.sizes)
        return replace(batch, images=None, sizes=None, crops=crops)


@dataclass(frozen=True, kw_only=True)
class MultiCropConfig:
    """Two large and several small crops of every picture, each with colours of its own (DINO, arXiv 2104.14294).

    Crops, flips and blur are for pictures of any bands and any values. Brightness and contrast are jittered alike in
    all bands; saturation, hue, gray and solarizing are for photographs, and left out where there are not three bands.
    A picture with values below 0 or above 1 measures something in a unit of its own (Hounsfield units, degrees,
    decibels): its crops keep their values, and only the blur is left of the changes.

    Attributes:
        global_size: side of the two large crops in pixels; None follows the run's `size`.
        global_scale: their share of the picture's area, smallest and largest.
        local_count: small crops a picture.
        local_size: side of the small crops in pixels; None keeps their proportion of 96 to 224.
        local_scale: their share of the picture's area.
        ratio: width over height of all crops.
        flip: share of the crops that are mirrored.
        jitter: share of the crops whose colours are jittered.
        brightness, contrast, saturation: a factor is drawn within this distance of 1.
        hue: the hue is turned by up to this share of the circle, either way.
        gray: share of the crops that lose their colour.
        sigma: standard deviation of the Gaussian blur in pixels, smallest and largest.
        augmentation: how often first, second and small crops are blurred: "paper" as DINO's paper and code say
            (1, 0.1, 0.5), "released" as the released DINOv2 models were trained, whose code took the probabilities
            for their opposites (0, 0.9, 0.5; facebookresearch/dinov2 issue 411). A fifth of the second crops is
            solarized in both.
    """

    global_size: PositiveInt | None = None
    global_scale: AreaSpan = (0.4, 1.0)
    local_count: Annotated[int, Bound(ge=0, le=MOST_CROPS)] = 8
    local_size: PositiveInt | None = None
    local_scale: AreaSpan = (0.05, 0.4)
    ratio: PositiveSpan = (3 / 4, 4 / 3)
    flip: Share = 0.5
    jitter: Share = 0.8
    brightness: Share = 0.4
    contrast: Share = 0.4
    saturation: Share = 0.2
    hue: Annotated[float, Bound(ge=0, le=0.5)] = 0.1
    gray: Share = 0.2
    sigma: PositiveSpan = (0.1, 2.0)
    augmentation: Literal["paper", "released"] = "paper"


_BLUR = {"paper": (1.0, 0.1, 0.5), "released": (0.0, 0.9, 0.5)}  # first, second, small crops
_SOLARIZE = (0.0, 0.2, 0.0)


class MultiCrop:
    """DINO's augmentation: every picture becomes two large and several small crops.

    What a sample becomes depends on the seed and its position in the run alone, never on the batch around it.
    """

    def __init__(self, config: MultiCropConfig):
        assert config.global_size and config.local_size, "sizes are resolved when a run is built"
        self.config = config

    def __call__(self, batch: Batch, seed: int) -> Batch:
        """The batch with its crops, large ones first, in place of its images."""
        images, sizes, position = _opened(batch)
        images = interleaved(images)
        plans = plan_crops(self.config, sizes, position, seed, images.shape[1], batch.bounded)
        crops = [crop for plan in plans for crop in make_crops(images, plan)]
        return replace(batch, images=None, sizes=None, crops=tuple(crops))


@dataclass(frozen=True)
class Step:
    """One change of some pictures of a batch.

    Attributes:
        change: a function of `synoptic.data.colour`.
        chosen: (B,) bool, which pictures it changes.
        amount: (B,) how much, for changes that take an amount.
    """

    change: Callable[..., Tensor]
    chosen: Tensor
    amount: Tensor | None = None


@dataclass(frozen=True)
class CropPlan:
    """Everything random about n crops of one size of each of B pictures.

    Attributes:
        size: side of the crops in pixels.
        boxes: (n, B, 4) left, top, right, bottom in pixels.
        flips: (n, B) bool, which crops are mirrored.
        steps: what is done to the colours of the n * B crops, in order.
    """

    size: int
    boxes: Tensor
    flips: Tensor
    steps: tuple[Step, ...]


def plan_crops(
    config: MultiCropConfig,
    sizes: Tensor,
    position: Tensor,
    seed: int,
    channels: int = 3,
    bounded: Tensor | None = None,
) -> tuple[CropPlan, CropPlan]:
    """Draws the large and the small crops of pictures.

    Args:
        config: what is drawn.
        sizes: (B, 2) height and width of the pictures.
        position: (B,) their places in the run.
        seed: of the run.
        channels: their bands.
        bounded: (B,) bool, which of them lie in [0, 1], so that their colours may be changed; None where all do.
    """
    numbers = torch.arange(2 + config.local_count)

    def plan(numbers: Tensor, size: int, scale: tuple[float, float]) -> CropPlan:
        # Every crop draws as a sample of its own.
        crop = numbers.repeat_interleave(len(position))
        draws = Draws(seed, position.cpu().repeat(len(numbers)) * (2 + config.local_count) + crop)
        boxes = random_boxes(sizes.repeat(len(numbers), 1), scale, config.ratio, draws, "multicrop")
        flips = draws.flags("multicrop.flip", config.flip)
        steps = plan_colours(config, crop.clamp_max(2), draws, channels)
        if bounded is not None:
            steps = tuple(_among(step, bounded.repeat(len(numbers))) for step in steps)
        shape = (len(numbers), len(position))
        return CropPlan(size, boxes.view(*shape, 4), flips.view(shape), steps)

    return (
        plan(numbers[:2], present(config.global_size), config.global_scale),
        plan(numbers[2:], present(config.local_size), config.local_scale),
    )


def make_crops(images: Tensor, plan: CropPlan) -> tuple[Tensor, ...]:
    """The n crops of a plan, each (B, C, size, size) float32, of images (B, C, H, W) uint8 or float."""
    crops = torch.empty((*plan.flips.shape, images.shape[1], plan.size, plan.size), device=images.device)
    for crop, boxes, flips in zip(crops, plan.boxes, plan.flips, strict=True):
        crop.copy_(resized_crop(images, boxes, plan.size, flips))
    recolour(crops.flatten(0, 1), plan.steps)
    return crops.unbind()


def plan_colours(config: MultiCropConfig, kinds: Tensor, draws: Draws, channels: int = 3) -> tuple[Step, ...]:
    """What is done to the colours of crops, in order: jitter, gray, blur, solarize.

    Args:
        config: strengths and probabilities.
        kinds: (B,) int64, 0 for first, 1 for second and 2 for small crops.
        draws: the crops' random numbers.
        channels: bands of the pictures; what suits photographs alone is left out where they are not 3.
    """
    coloured = channels == 3
    jitter = (
        (colour.adjust_brightness, 1.0, config.brightness),
        (colour.adjust_contrast, 1.0, config.contrast),
        (colour.adjust_saturation, 1.0, config.saturation),
        (colour.adjust_hue, 0.0, config.hue),
    )[: 4 if coloured else 2]
    amounts = draws.uniform("colour.amounts", -1.0, 1.0, count=len(jitter))
    order = draws.uniform("colour.order", count=len(jitter)).argsort(1)
    jittered = draws.flags("colour.jitter", config.jitter)
    steps = [
        Step(change, jittered & (order[:, slot] == which), centre + spread * amounts[:, which])
        for slot in range(len(jitter))
        for which, (change, centre, spread) in enumerate(jitter)
    ]
    blur = torch.tensor(_BLUR[config.augmentation])[kinds]
    blurred = Step(
        colour.gaussian_blur, draws.uniform("colour.blur") < blur, draws.uniform("colour.sigma", *config.sigma)
    )
    if not coloured:
        return (*steps, blurred)
    gray = Step(colour.grayscale, draws.flags("colour.gray", config.gray))
    solarize = torch.tensor(_SOLARIZE)[kinds]
    return (*steps, gray, blurred, Step(colour.solarize, draws.uniform("colour.solarize") < solarize))


def _among(step: Step, bounded: Tensor) -> Step:
    """A step that leaves the other pictures as they are, but for the blur, which suits any values."""
    return step if step.change is colour.gaussian_blur else replace(step, chosen=step.chosen & bounded)


@torch.no_grad()
def recolour(images: Tensor, steps: Sequence[Step]) -> None:
    """Changes pictures (B, C, H, W) float in place; only the chosen ones of each step are computed."""
    at_once = _pictures_at_once(images)
    chosen = [step.chosen.numpy() for step in steps]
    for start in range(0, len(images), at_once):
        place = slice(start, start + at_once)
        part = before = images[place]
        for step, flags in zip(steps, chosen, strict=True):
            places = flags[place].nonzero()[0]
            if len(places) == 0:
                continue
            amount = () if step.amount is None else (step.amount[start + places],)
            if len(places) == len(before):
                part = step.change(part, *amount)
            else:
                index = torch.from_numpy(places).to(images.device, non_blocking=True)
                part.index_copy_(0, index, step.change(part.index_select(0, index), *amount))
        if part is not before:
            before.copy_(part)


def _pictures_at_once(images: Tensor) -> int:
    if images.device.type != "cpu":
        return max(1, len(images))
    values = images.shape[1:].numel()
    return 1 if values > _ENOUGH_VALUES else _CACHED_VALUES // values


def _opened(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    assert batch.images is not None, "the loader gives images"
    assert batch.position is not None, "the loader gives positions"
    sizes = batch.sizes
    if sizes is None:
        sizes = torch.tensor([batch.images.shape[-2:]]).expand(len(batch.images), 2)
    return batch.images, sizes, batch.position


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}: give at least {least}")


def _check_share(name: str, value: float, largest: float = 1.0) -> None:
    if not 0.0 <= value <= largest:
        raise ValueError(f"{name} is {value}: give a number from 0 to {largest:g}")


def _check_span(name: str, span: tuple[float, float], largest: float) -> None:
    if not 0.0 < span[0] <= span[1] <= largest:
        upper = "" if largest == math.inf else f" <= {largest:g}"
        raise ValueError(f"{name} {tuple(span)} is not a span: give two numbers with 0 < low <= high{upper}")
