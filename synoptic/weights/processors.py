"""What an image processor of transformers does to pictures, by its JSON values, as our preprocessing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from synoptic.models.bounds import LARGEST
from synoptic.models.vit import IMAGENET_MEAN, IMAGENET_STD
from synoptic.types import Preprocess

_USUAL = 224  # pixels, where neither the model nor its preprocessing says a size


def preprocessing(processor: Mapping[str, Any], image_size: int | None) -> Preprocess:
    """How an image processor cuts and resizes pictures, as ours.

    Pictures are cut before they are resized, where transformers resizes them first: the same but for rounding, and for
    what its filter sees beyond the cut. Filters other than the bilinear one become the bicubic one. Pictures that keep
    their shape there are cut to their largest square.

    Args:
        processor: its values; none stands for ImageNet's.
        image_size: that of the model's configuration, where it says one.
    Raises:
        ValueError: a value is of no known form.
    """
    resized, keeps_shape = _resized(processor, image_size or _USUAL)
    crop = _side(processor.get("crop_size"), None)
    cut = bool(processor.get("do_center_crop", crop is not None)) and crop is not None
    size = min(crop, resized) if cut and crop else resized
    share = size / resized
    if "crop_pct" in processor and keeps_shape:  # ConvNeXt's: small pictures are cut, large ones squashed
        keeps_shape = resized < 384
        share = _number(processor, "crop_pct", 1.0) if keeps_shape else 1.0
    return Preprocess(
        size,
        "crop" if keeps_shape else "squash",
        share=share,
        interpolation="bilinear" if processor.get("resample") == 2 else "bicubic",
    )


def fitting(processor: Mapping[str, Any], bands: int | None) -> Preprocess:
    """How the image processor of a detector brings pictures to a size, keeping their shape.

    Args:
        processor: its values; none stands for 800 pixels, and 1,333 of the longer side at most (DETR and all after it).
        bands: see Preprocess.
    Raises:
        ValueError: it does otherwise, or says what is no size.
    """
    size = processor.get("size") or {"shortest_edge": 800, "longest_edge": 1333}
    if not isinstance(size, Mapping) or not {"shortest_edge", "longest_edge"} <= size.keys():
        raise ValueError(
            f"its image processor says the size {size}, and detectors read a shortest and a longest edge here"
        )
    short, long = (_side(size[edge], None) for edge in ("shortest_edge", "longest_edge"))
    if not short or not long or long < short or not processor.get("do_resize", True):
        raise ValueError(f"its image processor says the size {size}, to which no picture can be brought")
    return Preprocess(short, "fit", bands, interpolation="bilinear", longest=long)


def _resized(processor: Mapping[str, Any], usual: int) -> tuple[int, bool]:
    """The side that pictures are resized to before they are cut, and whether it is their shorter one."""
    size = processor.get("size")
    if not processor.get("do_resize", True) or size is None:
        return _side(processor.get("crop_size"), usual) or usual, True
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return _side(size["shortest_edge"], None) or usual, True
    squared = str(processor.get("image_processor_type") or processor.get("feature_extractor_type"))
    shorter = isinstance(size, int) and not squared.startswith(("ViT", "DeiT", "Beit", "Siglip"))
    cut = bool(processor.get("do_center_crop")) or "crop_pct" in processor
    return _side(size, None) or usual, shorter and cut


def _side(size: Any, usual: int | None) -> int | None:
    """A side in pixels, in any of the forms in which it is told."""
    told = size
    if isinstance(size, Mapping):
        told = [size.get(key) for key in ("height", "width", "shortest_edge", "longest_edge")]
        told = [side for side in told if side is not None]
    if isinstance(told, list | tuple):
        if not told or any(side != told[0] for side in told):
            raise ValueError(f"its image processor says the size {size}, and only squares are read here")
        told = told[0]
    if told is None:
        return usual
    if isinstance(told, bool) or not isinstance(told, int) or not 0 < told <= LARGEST:
        raise ValueError(f"its image processor says {size!r}, which is no side of a square in pixels")
    return told


def statistics(processor: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pictures in [0, 1] that do what rescaling of bytes and normalising do.

    Raises:
        ValueError: a value is of no known form.
    """
    scale = 255 * _number(processor, "rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255.0
    offset = 1.0 if processor.get("rescale_offset") else 0.0  # EfficientNet's: bytes become numbers from -1 to 1
    mean, std = processor.get("image_mean", IMAGENET_MEAN), processor.get("image_std", IMAGENET_STD)
    if not _numbers(mean) or not _numbers(std) or len(mean) != len(std):
        raise ValueError(
            f"its image processor says image_mean={mean} and image_std={std}, which should be numbers, one a band"
        )
    if not processor.get("do_normalize", True):
        mean, std = [0.0] * len(mean), [1.0] * len(mean)
    return tuple((each + offset) / scale for each in mean), tuple(each / scale for each in std)


def _number(processor: Mapping[str, Any], key: str, usual: float) -> float:
    value = processor.get(key)
    if value is None:
        return usual
    if not _numbers([value]) or not 0 < value <= 255:
        raise ValueError(f"its image processor says {key}={value}, which should be a number above 0")
    return float(value)


def _numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(
        isinstance(value, int | float) and math.isfinite(value) for value in values
    )
