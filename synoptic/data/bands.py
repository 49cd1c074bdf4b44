"""One picture file of any number of bands at its full depth: TIFF, arrays (`.npy`), and what else holds pictures.

Everything becomes float32, whatever the file holds: 16 bits fit into its 24 without rounding, a run may mix files of
different types, and there is one path from here to the network. Integers without sign of 8 and 16 bits count light up
to a highest value, which becomes 1. Other numbers have a unit of their own (reflectance, Hounsfield units, degrees)
and stay as they are; the network's per-band statistics bring them to one scale.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from synoptic.data.pictures import (
    FORMATS,
    MAX_VALUES,
    PictureError,
    Stored,
    check_size,
    convert,
    guarded,
    orientation_of,
    unpacked,
)
from synoptic.data.resample import resized_crop

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of is no matter, or becomes a PictureError

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NPY = b"\x93NUMPY"
# Compressions whose result is never larger than the file's header says: none, LZW, two kinds of deflate, PackBits,
# LZMA, ZSTD. Of the others, and of TIFF's other colours, Pillow reads those of 8 bits: three kinds of fax, JPEG.
_COMPRESSIONS = (1, 5, 8, 32946, 32773, 34925, 50000)
_PILLOWS = (2, 3, 4, 7)
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB = 0, 1, 2  # TIFF 6.0, PhotometricInterpretation
_PNG_BITS = 24  # where a PNG says how many bits a sample has
_MODES = ("1", "L", "LA", "RGB", "RGBA", "RGBX", "I", "F")  # Pillow's that hold numbers which mean what they are
_BITS, _ORIENTATION, _NODATA = 258, 274, 42113  # TIFF 6.0, TIFF 6.0, GDAL
# Colour of more than 8 bits that Pillow would cut down without a word is left to the formats in which it cannot be.
_EIGHT_BITS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF")

_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


def read_bands(picture: Stored | Image.Image, channels: int, longest: int | None = None) -> np.ndarray:
    """Reads a picture with all its bands at its full depth, upright.

    TIFF: the samples of the first page, interleaved or in planes; where pages have one sample each, the pages of the
    first one's size and type are the bands. Arrays (`.npy`): (H, W), (H, W, C) or (C, H, W); the bands are the last
    axis if that has `channels` entries, else the first if that has. Other files: as they are, transparency being a
    band; colour must have 8 bits, or be PNG.

    Values, and those that are missing: see `to_bands`; a TIFF may name a value that stands for missing ones (GDAL's).

    Args:
        picture: a path, a member of an archive, or a Pillow picture.
        channels: bands that it must have; of a grey one, three are made where three are wanted.
        longest: pixels that the longer side is reduced to (bicubic, antialiased); smaller pictures stay as they are.

    Returns:
        (H, W, channels) float32, an array of its own.

    Raises:
        PictureError: another number of bands, no value at all in a band, and whatever `read_picture` refuses.
    """

    def read(name: str) -> np.ndarray:
        return _reduced(to_bands(name, *_stored(name, picture, channels), channels), longest)

    return guarded(picture, read, broken="damaged ({})")


def to_bands(name: str, values: np.ndarray, missing: float | None, channels: int) -> np.ndarray:
    """Pixels of any type as float32.

    Integers without sign of 8 and 16 bits are divided by their highest value (255, 65535); signed ones, those of 32
    bits, and floats keep their values. Missing ones, which are those that are not finite and those equal to `missing`,
    become the mean of the others in their band, so that a gap stands out as little as it can.

    Args:
        name: told in errors.
        values: (H, W, C), any real type.
        missing: what stands for missing values, beside NaN and infinity.
        channels: bands that there must be; of one, three are made where three are wanted.

    Returns:
        (H, W, channels) float32, an array of its own.

    Raises:
        PictureError: another number of bands, no value at all in a band, a type that is no number.
    """
    kind = values.dtype
    if kind.kind not in "uifb" or values.ndim != 3:
        raise PictureError(name, f"an array of {kind} and shape {values.shape} is not a picture")
    count = values.shape[2]
    if count != channels and (count, channels) != (1, 3):
        raise PictureError(name, f"has {count} band{'s' * (count != 1)}, where channels={channels} are read", count)
    with np.errstate(over="ignore"):
        bands = values.astype(np.float32, order="C")
    if kind.kind == "f" or missing is not None:
        gaps = ~np.isfinite(bands)
        _fill(name, bands, gaps if missing is None else gaps | (values == missing))
    if kind.kind == "u" and kind.itemsize <= 2:
        bands /= np.float32(np.iinfo(kind).max)
    return bands if count == channels else np.repeat(bands, channels, axis=2)


def bits_of(picture: Stored) -> tuple[int, bool]:
    """How many bits a sample of a picture has that Pillow reads, and whether the picture is grey, by its header alone.

    Told of PNG and TIFF; whatever else is read as 8-bit RGB counts as that.
    """
    file = unpacked(picture)
    with Image.open(file, formats=FORMATS) as image:
        grey = len(image.getbands()) == 1
        if image.format == "PNG":
            return _head(file)[_PNG_BITS], grey
        samples = getattr(image, "tag_v2", {}).get(_BITS, (8,))
        return max(samples if isinstance(samples, tuple) else (samples,)), grey


def bands_last(values: np.ndarray, channels: int) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) as (H, W, C).

    The last axis is taken for the bands if it has `channels` entries, else the first one if that has. Where neither
    has, the shorter one is, so that the error can tell how many there are.
    """
    if values.ndim != 3:
        return values[:, :, None] if values.ndim == 2 else values
    first, last = values.shape[0], values.shape[2]
    return np.moveaxis(values, 0, 2) if last != channels and (first == channels or first < last) else values


def as_rgb(bands: np.ndarray) -> np.ndarray:
    """Bands (H, W, C) as a picture for people, (H, W, 3) uint8: the first three, of fewer the first in grey; each from
    black at its 2nd percentile to white at its 98th."""
    chosen = bands[:, :, :3] if bands.shape[2] >= 3 else bands[:, :, [0, 0, 0]]
    low, high = np.percentile(chosen, (2, 98), axis=(0, 1))
    return np.rint(255.0 * ((chosen - low) / np.maximum(high - low, 1e-12)).clip(0.0, 1.0)).astype(np.uint8)


def _fill(name: str, bands: np.ndarray, gaps: np.ndarray) -> None:
    """Puts the mean of each band in the place of its missing values."""
    if not gaps.any():
        return
    for number, (band, gap) in enumerate(zip(bands.transpose(2, 0, 1), gaps.transpose(2, 0, 1), strict=True)):
        if gap.all():
            raise PictureError(name, f"band {number} holds no value at all: all are missing")
        band[gap] = band[~gap].mean(dtype=np.float64)


def _reduced(bands: np.ndarray, longest: int | None) -> np.ndarray:
    height, width = bands.shape[:2]
    scale = 1.0 if longest is None else longest / max(height, width)
    if scale >= 1.0:
        return bands
    planes = torch.from_numpy(bands).permute(2, 0, 1)[None]
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = resized_crop(planes, torch.tensor([[0, 0, width, height]]), size)
    return small[0].permute(1, 2, 0).contiguous().numpy()


_File = str | Path | io.BytesIO


def _head(file: _File) -> bytes:
    """Its first bytes, which tell what it is."""
    if isinstance(file, io.BytesIO):
        return file.getvalue()[:32]
    with open(file, "rb") as opened:
        return opened.read(32)


def _stored(name: str, picture: Stored | Image.Image, channels: int) -> tuple[np.ndarray, float | None]:
    """The pixels of a picture (H, W, C), upright, as they are stored, and what stands for missing ones."""
    if isinstance(picture, Image.Image):
        return _from_pillow(name, picture), None
    file = unpacked(picture)
    start = _head(file)
    if start.startswith(_NPY):
        return _from_array(name, file, channels), None
    if start.startswith(_TIFF):
        return _from_tiff(name, file, channels)
    with Image.open(file, formats=FORMATS) as image:
        if image.format == "PNG" and start[_PNG_BITS] == 16:
            return _from_png(name, file, image), None
        if len(image.getbands()) > 1 and image.format not in _EIGHT_BITS:
            raise PictureError(name, f"colour in {image.format} may have more than 8 bits: write it as TIFF or PNG")
        return _from_pillow(name, image), None


def _from_array(name: str, file: _File, channels: int) -> np.ndarray:
    # Mapped where it is a file, so that its size is known before it is read; in memory it has been read.
    stored = np.load(file, mmap_mode=None if isinstance(file, io.BytesIO) else "r", allow_pickle=False)
    values = bands_last(stored, channels)
    if values.ndim == 3:
        check_size(name, values.shape[1], values.shape[0], values.shape[2])
    return values


def _from_tiff(name: str, file: _File, channels: int) -> tuple[np.ndarray, float | None]:
    from tifffile import TiffFile  # here, since only pictures of full depth need it

    with TiffFile(file) as opened:
        first: Any = opened.pages[0]
        if not _is_plain(first):
            return _from_painted_tiff(name, file, first), None
        pages = [first]
        if first.samplesperpixel == 1 and channels > 1:
            pages = [page for page in opened.pages if (page.shape, page.dtype) == (first.shape, first.dtype)]
        check_size(name, first.imagewidth, first.imagelength, first.samplesperpixel * len(pages))
        if math.prod(first.chunks) > MAX_VALUES:
            raise PictureError(name, f"too large: tiles of {first.chunks}")
        values = np.concatenate([_page(page) for page in pages], axis=2)
        missing, orientation = first.tags.get(_NODATA), first.tags.get(_ORIENTATION)
        values = _upright(values, int(orientation.value) if orientation else 1)
        return values, float(missing.value) if missing else None


def _is_plain(page: Any) -> bool:
    """Whether a page holds numbers that mean what they are, compressed in a way that cannot burst."""
    return page.compression in _COMPRESSIONS and page.photometric in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB)


def _from_painted_tiff(name: str, file: _File, page: Any) -> np.ndarray:
    """A TIFF whose pixels are made for eyes: by a palette, as YCbCr, by fax or JPEG."""
    image = None
    if page.bitspersample <= 8 and page.compression in (*_COMPRESSIONS, *_PILLOWS):
        with suppress(UnidentifiedImageError):
            image = Image.open(file, formats=("TIFF",))
    if image is None:
        kind = f"compression {page.compression:d}, photometric interpretation {page.photometric:d}"
        stored = f"{page.samplesperpixel} x {page.bitspersample} bits with {kind}"
        raise PictureError(name, f"{stored} cannot be read; LZW, deflate and ZSTD can")
    with image:
        return _from_pillow(name, image)


def _page(page: Any) -> np.ndarray:
    """The samples of a page of a TIFF (H, W, S), more light being the higher value."""
    values = page.asarray(maxworkers=1)
    if page.photometric == _MIN_IS_WHITE and values.dtype.kind in "ub":
        highest = values.dtype.type((1 << page.bitspersample) - 1)
        values = highest ^ values
    return np.moveaxis(values, 0, 2) if page.axes == "SYX" else np.atleast_3d(values)


def _from_png(name: str, file: _File, image: Image.Image) -> np.ndarray:
    """A PNG of 16 bits, of which Pillow keeps 8 where it has colour."""
    from imagecodecs import png_decode  # here, as tifffile

    check_size(name, *image.size, 4)
    content = file.getvalue() if isinstance(file, io.BytesIO) else Path(file).read_bytes()
    return _upright(np.atleast_3d(png_decode(content)), orientation_of(image))


def _from_pillow(name: str, image: Image.Image) -> np.ndarray:
    check_size(name, *image.size, len(image.getbands()))
    image.load()
    stored = image if image.mode in _MODES or image.mode.startswith("I;16") else convert(image)
    values = np.atleast_3d(np.asarray(stored))
    if image.format == "PPM" and image.mode == "I":  # how Pillow hands on 16 bits of grey
        values = values.astype(np.uint16)
    return _upright(values, orientation_of(image))


def _upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    return _UPRIGHT[orientation](stored) if orientation in _UPRIGHT else stored
