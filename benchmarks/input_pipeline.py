"""DINO's multi-crop augmentation on batches of tensors against the same operations written with Pillow.

    python benchmarks/input_pipeline.py [--pairs 15] [--quick]

Both sides do the same work on the same decoded pictures with the same random parameters, on one thread: two large and
several small crops of every picture, resized (bicubic), mirrored, colour-jittered, turned grey, blurred, solarized,
and delivered as float tensors. Ours also draws the parameters; Pillow is handed them. Decoding files is left out on
both sides. Times are processor time, so a busy machine does not favour either side. Where SYNOPTIC_DATA is not set,
gradients with noise stand in for photographs.

First every single operation is compared with Pillow's on 8-bit crops, blur and hue with their definitions in float64
(Pillow blurs with repeated box filters and keeps hue in 256 steps): the largest difference must be at most 2/255.
Resizing is measured from the interleaved layout that multi-crop brings a batch into once for all its crops; that step
is part of the whole.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy.ndimage import gaussian_filter
from torch import Tensor

from synoptic.data import colour
from synoptic.data.resample import interleaved, resized_crop
from synoptic.data.transforms import CropPlan, MultiCrop, MultiCropConfig, Step, plan_crops, recolour
from synoptic.types import Batch

Box = tuple[int, int, int, int]
Recipe = list[tuple[Callable[..., Image.Image], tuple[float, ...]]]

TOLERANCE = 2.001  # of 255 levels, and the rounding of float32
_CIRCLE = [*range(256), *range(256)]


# --- The same operations with Pillow ---


def pillow_hue(image: Image.Image, shift: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turn = round(shift * 255) % 256
    hue = hue.point(_CIRCLE[turn : turn + 256])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


PILLOW: dict[Callable[..., Tensor], Callable[..., Image.Image]] = {
    colour.adjust_brightness: lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    colour.adjust_contrast: lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    colour.adjust_saturation: lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    colour.adjust_hue: pillow_hue,
    colour.grayscale: lambda image: image.convert("L").convert("RGB"),
    colour.gaussian_blur: lambda image, sigma: image.filter(ImageFilter.GaussianBlur(sigma)),
    colour.solarize: ImageOps.solarize,
}


def pillow_resize(image: Image.Image, box: Box, size: int, flip: bool) -> Image.Image:
    small = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    return small.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else small


def whole_pixels(boxes: Tensor) -> list[Box]:
    return [(left, top, right, bottom) for left, top, right, bottom in boxes.int().tolist()]


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255.0)


def recipes(plan: CropPlan) -> list[tuple[Box, bool, Recipe]]:
    """For every crop of a plan: its box, whether it is mirrored, and Pillow's operations with their amounts."""
    todo: list[Recipe] = [[] for _ in plan.flips.flatten()]
    for step in plan.steps:
        for place in step.chosen.nonzero()[:, 0].tolist():
            amount = () if step.amount is None else (float(step.amount[place]),)
            todo[place].append((PILLOW[step.change], amount))
    return list(zip(whole_pixels(plan.boxes.flatten(0, 1)), plan.flips.flatten().tolist(), todo, strict=True))


def pillow_multicrop(images: list[Image.Image], work: list[tuple[int, list[Any]]]) -> list[Tensor]:
    crops = []
    for size, crop_recipes in work:
        for place, (box, flip, recipe) in enumerate(crop_recipes):
            image = pillow_resize(images[place % len(images)], box, size, flip)
            for operation, amount in recipe:
                image = operation(image, *amount)
            crops.append(to_tensor(image))
    return crops


# --- What is measured ---


def pictures(longest: int, count: int) -> tuple[list[Image.Image], str]:
    """Decoded pictures whose longer side is `longest`: real photographs where SYNOPTIC_DATA has them."""
    folder = os.environ.get("SYNOPTIC_DATA")
    if folder:
        kind = "coco_mini" if longest > 96 else "imagenette96"
        files = sorted(Path(folder, kind).rglob("*.jpg"))
        files = files[:: max(1, len(files) // count)][:count]
        found = [Image.open(file).convert("RGB") for file in files]
        scales = [longest / max(image.size) for image in found]
        sizes = [
            (round(image.width * scale), round(image.height * scale))
            for image, scale in zip(found, scales, strict=True)
        ]
        return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(found, sizes, strict=True)], kind
    generator = np.random.default_rng(0)
    made = []
    for _ in range(count):
        height, width = longest, int(generator.integers(longest // 2, longest + 1))
        slope = np.linspace(0, 1, width)[None, :, None] * generator.random(3) + np.linspace(0, 1, height)[:, None, None]
        noise = generator.normal(0.0, 0.1, (height, width, 3))
        made.append(Image.fromarray((255 * (0.5 * slope + noise).clip(0, 1)).astype(np.uint8)))
    return made, "gradients and noise"


def padded(images: list[Image.Image]) -> Batch:
    """The batch as the loader gives it."""
    sizes = torch.tensor([(image.height, image.width) for image in images])
    height, width = sizes.amax(0).tolist()
    batch = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    for place, image in enumerate(images):
        batch[place, :, : image.height, : image.width] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return Batch(images=batch, sizes=sizes, position=torch.arange(len(images)))


def operations(images: list[Image.Image], batch: Batch, plan: CropPlan, pairs: int) -> list[dict[str, Any]]:
    """Error and speed of every single operation on the plan's first crop of every picture."""
    assert batch.images is not None
    count = len(images)
    sources, boxes, flips = interleaved(batch.images), plan.boxes[0], plan.flips[0]
    whole = whole_pixels(boxes)
    resized = partial(_each, pillow_resize, images, list(zip(whole, [plan.size] * count, flips.tolist(), strict=True)))
    small = resized()
    floats = torch.stack([to_tensor(image) for image in small])
    rows = [_row("resize", lambda: resized_crop(sources, boxes, plan.size, flips), resized, floats.double(), pairs)]
    for change in PILLOW:
        amount = next(step.amount for step in plan.steps if step.change is change)
        amount = None if amount is None else amount[:count]
        each = [()] * count if amount is None else [(value,) for value in amount.tolist()]
        theirs = partial(_each, PILLOW[change], small, each)
        step = Step(change, torch.ones(count, dtype=torch.bool), amount)
        ours = partial(_changed, floats, torch.empty_like(floats), step)
        rows.append(_row(change.__name__, ours, theirs, reference(change, small, each, theirs), pairs))
    return [{"size": plan.size, **row} for row in rows]


def _row(
    name: str, ours: Callable[[], Tensor], theirs: Callable[[], list[Image.Image]], truth: Tensor, pairs: int
) -> dict[str, Any]:
    error = float((ours().double() - truth).abs().max()) * 255.0
    speed = common.compare(ours, theirs, pairs, time.process_time)
    return {
        "operation": name,
        "error_255": round(error, 3),
        "ratio": round(speed.ratio, 2),
        "ours_ms": round(speed.ours / len(truth) * 1e3, 4),
        "pillow_ms": round(speed.theirs / len(truth) * 1e3, 4),
    }


def _changed(images: Tensor, room: Tensor, step: Step) -> Tensor:
    recolour(room.copy_(images), [step])
    return room


def _each(
    operation: Callable[..., Image.Image], images: Iterable[Image.Image], amounts: list[Any]
) -> list[Image.Image]:
    return [operation(image, *amount) for image, amount in zip(images, amounts, strict=True)]


def reference(
    change: Callable[..., Tensor], small: list[Image.Image], amounts: list[Any], theirs: Callable[[], list[Image.Image]]
) -> Tensor:
    """What the operation should give, float64: its definition for blur and hue, Pillow's own pixels for the others."""
    arrays = [np.asarray(image, dtype=np.float64) / 255.0 for image in small]
    if change is colour.gaussian_blur:
        exact = [
            gaussian_filter(array, (sigma, sigma, 0), mode="nearest", truncate=8.0)
            for array, (sigma,) in zip(arrays, amounts, strict=True)
        ]
    elif change is colour.adjust_hue:
        exact = []
        for array, (shift,) in zip(arrays, amounts, strict=True):
            hsv = rgb_to_hsv(array)
            hsv[..., 0] = (hsv[..., 0] + shift) % 1.0
            exact.append(hsv_to_rgb(hsv))
    else:
        exact = [np.asarray(image, dtype=np.float64) / 255.0 for image in theirs()]
    return torch.from_numpy(np.stack(exact)).permute(0, 3, 1, 2)


def pipeline(images: list[Image.Image], batch: Batch, config: MultiCropConfig, pairs: int) -> dict[str, Any]:
    """The whole augmentation, both ways."""
    assert batch.sizes is not None
    assert batch.position is not None
    plans = plan_crops(config, batch.sizes, batch.position, seed=0)
    work = [(plan.size, recipes(plan)) for plan in plans]
    transform = MultiCrop(config)
    ours, theirs = partial(transform, batch, 0), partial(pillow_multicrop, images, work)
    mine = [crop for crops in ours().crops for crop in crops]
    difference = torch.cat([(a - b).abs().flatten() for a, b in zip(mine, theirs(), strict=True)])
    speed = common.compare(ours, theirs, pairs, time.process_time)
    count = len(images)
    return {
        "ratio": round(speed.ratio, 2),
        "ratio_middle_half": [round(bound, 2) for bound in speed.spread],
        "ours_pictures_per_second_per_core": round(count / speed.ours, 1),
        "pillow_pictures_per_second_per_core": round(count / speed.theirs, 1),
        "ours_ms_per_batch": round(speed.ours * 1e3, 1),
        "batch": count,
        "pairs": speed.pairs,
        "mean_difference_255": round(float(difference.mean()) * 255.0, 3),
        "crops": asdict(config),
    }


SETTINGS = {
    "DINO: 2 x 224 and 8 x 96 from 448 px": (448, 32, MultiCropConfig(global_size=224, local_size=96)),
    "small: 2 x 64 and 4 x 32 from 96 px": (96, 64, MultiCropConfig(global_size=64, local_size=32, local_count=4)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="measurements of each rival")
    parser.add_argument("--quick", action="store_true", help="a quarter of the pictures, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, (longest, count, config) in SETTINGS.items():
        images, source = pictures(longest, count // 4 if options.quick else count)
        batch = padded(images)
        assert batch.sizes is not None
        assert batch.position is not None
        results[name] = {
            "pictures": f"{len(images)} of {source}",
            **pipeline(images, batch, config, options.pairs),
            "operations": [
                row
                for plan in plan_crops(config, batch.sizes, batch.position, seed=0)
                for row in operations(images, batch, plan, options.pairs)
            ],
        }
        show(name, results[name])
    common.finish(
        "input_pipeline",
        {"results": results},
        "faster than Pillow, every operation within 2/255",
        failures(results),
        keep=not options.quick,
    )


def failures(results: dict[str, Any]) -> list[str]:
    """What speaks against the claim."""
    found = []
    for name, result in results.items():
        if not result["ratio"] > 1:
            found.append(f"{result['ratio']} times as fast ({name})")
        for row in result["operations"]:
            if not row["error_255"] <= TOLERANCE:
                found.append(f"{row['operation']} at {row['size']} px is {row['error_255']}/255 off")
    return found


def show(name: str, row: dict[str, Any]) -> None:
    print(f"{name} ({row['pictures']})")
    print(
        f"  {row['ratio']} times as fast as Pillow (middle half {row['ratio_middle_half'][0]} to "
        f"{row['ratio_middle_half'][1]}): {row['ours_pictures_per_second_per_core']} against "
        f"{row['pillow_pictures_per_second_per_core']} pictures/s per core; "
        f"{row['ours_ms_per_batch']} ms per batch of {row['batch']}"
    )
    print(f"  {'operation':18} {'size':>4} {'largest error':>14} {'ours ms':>9} {'Pillow ms':>10} {'ratio':>6}")
    for item in row["operations"]:
        print(
            f"  {item['operation']:18} {item['size']:4} {item['error_255']:10.2f}/255 {item['ours_ms']:9.4f} "
            f"{item['pillow_ms']:10.4f} {item['ratio']:6.2f}"
        )


if __name__ == "__main__":
    main()
