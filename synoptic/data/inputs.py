"""The pictures that users give, of any kind and size, as batches for a model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from synoptic.data.bands import read_bands, to_bands
from synoptic.data.listing import list_images
from synoptic.data.pictures import PictureError, read_picture
from synoptic.data.transforms import fit
from synoptic.types import Preprocess

Picture = str | Path | Image.Image | np.ndarray | Tensor
Pictures = Picture | Sequence[Picture]

_READERS = 2  # threads; decoding runs beside the network, and more would only compete with it
_KINDS = "give a path, a Pillow picture, an array (H, W, C) or a tensor (C, H, W), or a list of these"


@dataclass(frozen=True)
class ReadBatch:
    """Some pictures, ready for a model.

    Attributes:
        inputs: the paths, or whatever the pictures were given as.
        images: (B, C, S, S) float32, in [0, 1] where they are not of full depth.
        sizes: height and width of each picture as it was, upright.
    """

    inputs: list[Picture]
    images: Tensor
    sizes: list[tuple[int, int]]


def read_batches(
    inputs: Pictures,
    preprocess: Preprocess,
    batch_size: int = 64,
    on_error: Callable[[str, str], None] | None = None,
) -> Iterator[ReadBatch]:
    """Reads pictures, two batches ahead of their use.

    Args:
        inputs: see `VisionModel.features`.
        preprocess: what they go through, and how many bands they must have.
        batch_size: pictures a batch; one with unreadable files is smaller.
        on_error: told (path, reason) of every unreadable file, which is then left out; without it, that is an error.
    Raises:
        ValueError: for something that is no picture, naming the file.
    """
    if preprocess.mode == "fit":
        raise ValueError("the model is a detector, and answers with boxes: take detect")
    chunks = iter(_chunks(listed(inputs), batch_size))
    with ThreadPoolExecutor(_READERS) as pool:

        def submit(count: int) -> list[list[tuple[Picture, Future[_Read]]]]:
            return [[(item, pool.submit(_read, item, preprocess)) for item in c] for c in islice(chunks, count)]

        pending = deque(submit(2))
        try:
            while pending:
                batch = _gathered(pending.popleft(), on_error)
                pending.extend(submit(1))
                if batch is not None:
                    yield batch
        finally:
            pool.shutdown(cancel_futures=True)


def read_each(
    inputs: Pictures, bands: int | None = None, on_error: Callable[[str, str], None] | None = None
) -> Iterator[tuple[int, Picture, Tensor]]:
    """Pictures as they are, read a few ahead of their use: their place among all, what they were given as, and
    (C, H, W) uint8, or float32.

    Args:
        inputs: see `VisionModel.features`.
        bands: how many they have at full depth; None reads 8-bit RGB.
        on_error: see `read_batches`.
    Raises:
        ValueError: for something that is no picture, naming the file.
    """
    items = enumerate(listed(inputs))
    with ThreadPoolExecutor(_READERS) as pool:

        def submit(count: int) -> list[tuple[int, Picture, Future[Tensor]]]:
            return [(place, item, pool.submit(_opened, item, bands)) for place, item in islice(items, count)]

        pending = deque(submit(2 * _READERS))
        try:
            while pending:
                place, item, future = pending.popleft()
                pending.extend(submit(1))
                try:
                    yield place, item, future.result()
                except PictureError as error:
                    if on_error is None:
                        raise
                    on_error(error.path, error.reason)
        finally:
            pool.shutdown(cancel_futures=True)


def at_once(size: int, most: int = 64) -> int:
    """How many pictures of a side in pixels go through a network together: `most` of 224, of larger ones fewer, so that
    they have no more pixels."""
    return max(1, min(most, most * 224**2 // size**2))


_Read = tuple[Tensor, tuple[int, int]]


def _read(item: Picture, preprocess: Preprocess) -> _Read:
    """One picture: (C, S, S) as the model wants it, and its own size."""
    image = _opened(item, preprocess.bands)
    size = (image.shape[1], image.shape[2])
    seen = preprocess.size, preprocess.mode, preprocess.share, preprocess.interpolation, preprocess.fill
    return fit(image[None], torch.tensor([size]), *seen)[0], size


def _opened(item: Picture, bands: int | None) -> Tensor:
    """(C, H, W) uint8 or float32, at its own size."""
    return _rgb(item) if bands is None else _of_bands(item, bands)


def _gathered(
    reads: list[tuple[Picture, Future[_Read]]], on_error: Callable[[str, str], None] | None
) -> ReadBatch | None:
    read: list[tuple[Picture, _Read]] = []
    for item, future in reads:
        try:
            read.append((item, future.result()))
        except PictureError as error:
            if on_error is None:
                raise
            on_error(error.path, error.reason)
    if not read:
        return None
    images = torch.stack([image for _, (image, _) in read])
    return ReadBatch([item for item, _ in read], images, [size for _, (_, size) in read])


def _chunks(items: list[Picture], count: int) -> list[list[Picture]]:
    return [items[start : start + count] for start in range(0, len(items), count)]


def listed(inputs: Pictures) -> list[Picture]:
    """Every picture apart: folders, globs, lists and stacks opened.

    Raises:
        ValueError: for something that is no picture, and for none at all.
    """
    if isinstance(inputs, list | tuple):
        items = [item for part in inputs for item in listed(part)]
    elif isinstance(inputs, str | Path):
        items = list(list_images(inputs))
    elif isinstance(inputs, np.ndarray | Tensor) and inputs.ndim == 4:
        items = list(inputs)
    elif isinstance(inputs, Image.Image | np.ndarray | Tensor):
        items = [inputs]
    else:
        raise ValueError(f"cannot read a picture from a {type(inputs).__name__}; {_KINDS}")
    if not items:
        raise ValueError("no pictures were given")
    return items


def is_single(inputs: Pictures) -> bool:
    """Whether one picture was given, not something that holds pictures."""
    if isinstance(inputs, str | Path):
        path = Path(inputs).expanduser()
        return path.is_file() and path.suffix.lower() != ".txt"
    return isinstance(inputs, Image.Image) or (isinstance(inputs, np.ndarray | Tensor) and inputs.ndim < 4)


def _rgb(item: Picture) -> Tensor:
    """(3, H, W), uint8 or float32 in [0, 1]."""
    if isinstance(item, str | Path | Image.Image):
        return torch.from_numpy(read_picture(item)).permute(2, 0, 1)
    values = torch.from_numpy(_pixels(item)).permute(2, 0, 1)
    if len(values) == 1 and item.ndim == 2:  # grey
        values = values.repeat(3, 1, 1)
    if len(values) != 3:
        raise ValueError(f"{_name(item)} has {len(values)} bands, and the model reads 3")
    if values.dtype == torch.uint8:
        return values
    if not values.is_floating_point():
        raise ValueError(f"pixels should be uint8, or floats in [0, 1], not {values.dtype}")
    values = values.float()
    low, high = values.aminmax()
    if not (low >= 0 and high <= 1):  # NaN too
        raise ValueError(f"pixels as floats should lie in [0, 1], and these lie in [{low:g}, {high:g}]")
    return values


def _of_bands(item: Picture, bands: int) -> Tensor:
    """(C, H, W) float32 at full depth, see `data.bands`."""
    if isinstance(item, str | Path | Image.Image):
        read = read_bands(item, bands)
    else:
        read = to_bands(_name(item), _pixels(item), None, bands)
    return torch.from_numpy(read).permute(2, 0, 1)


def _pixels(item: np.ndarray | Tensor) -> np.ndarray:
    """An array (H, W), which is grey, or (H, W, C), or a tensor (C, H, W) as an array (H, W, C) of this machine's
    byte order."""
    if item.ndim not in (2, 3) or 0 in item.shape or (item.ndim == 2 and isinstance(item, Tensor)):
        raise ValueError(f"expected an array (H, W, C) or a tensor (C, H, W), got the shape {tuple(item.shape)}")
    if isinstance(item, Tensor):
        item = item.detach().cpu()
        return (item.float() if item.is_floating_point() else item).permute(1, 2, 0).numpy()
    if item.dtype.kind not in "uifb":
        raise ValueError(f"pixels should be uint8, or floats in [0, 1], not {item.dtype}")
    return np.atleast_3d(item).astype(item.dtype.newbyteorder("="), order="C")


def _name(item: Picture) -> str:
    return str(item) if isinstance(item, str | Path) else f"a picture given as {type(item).__name__}"
