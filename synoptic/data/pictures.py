"""One picture file, whatever its kind, to an array of 8-bit RGB; and the record of the files that cannot be read."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from synoptic.data.members import LARGEST, Member

logger = logging.getLogger(__name__)

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"})
EXTENSIONS |= {".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif"}
ARRAYS = frozenset({".npy"})  # pictures too, where a folder holds no others
# Content decides what a file is. The list keeps out formats that start other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")

MIN_SIDE = 8  # pixels: below this nothing can be cropped from a picture
MAX_PIXELS = 1 << 27  # 134 million: 11,585 squared, 400 MB once decoded
MAX_VALUES = 3 * MAX_PIXELS  # of all bands together

MAX_UNREADABLE = 0.05  # more of a source's pictures broken is an error, unless a user says otherwise
JUDGED_AFTER = 200  # pictures: of fewer, a few broken ones say little about a large source
TOLD = 3  # files that are named for one reason, where all are listed elsewhere

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # EXIF 2.3, tag 274


class PictureError(ValueError):
    """A picture that cannot be used.

    Attributes:
        path: the file, or "picture" for one that has no name.
        reason: why, in a few words.
        bands: how many the picture has, where that is why.
    """

    def __init__(self, path: str, reason: str, bands: int | None = None):
        super().__init__(path, reason, bands)
        self.path = path
        self.reason = reason
        self.bands = bands

    def __str__(self) -> str:
        path = self.path.encode(errors="backslashreplace").decode()  # a file's name may be any bytes, a message not
        return f"{path}: {self.reason}"


Stored = str | Path | Member
Readable = Stored | BinaryIO | Image.Image
NO_PICTURE = "not a picture"


def read_picture(picture: Readable, longest: int | None = None) -> np.ndarray:
    """Reads a picture of any kind as 8-bit RGB: upright by its EXIF orientation, the first frame where it moves.

    Transparency is laid over white. Grey of 16 bits keeps its upper half; integers and floats of 32 bits are read in
    the smallest of the usual ranges that holds them (see `to_rgb`).

    Args:
        picture: a path, a member of an archive, an open binary file, or a Pillow picture.
        longest: pixels that the longer side is reduced to (bicubic, antialiased); smaller pictures stay as they are.

    Returns:
        (H, W, 3) uint8, a writable array of its own.

    Raises:
        PictureError: no such file, not a picture, truncated, smaller than 8 pixels on a side, or of more than 134
            million pixels.
    """
    other = name_of(picture).lower().endswith((".tif", ".tiff", ".npy"))
    unknown = "not a picture of 8-bit RGB; channels=N or depth=full reads others" if other else NO_PICTURE
    return guarded(picture, lambda name: _read_rgb(name, picture, longest), unknown)


def guarded(
    picture: Readable, read: Callable[[str], np.ndarray], unknown: str = NO_PICTURE, broken: str = "{}"
) -> np.ndarray:
    """What `read` makes of a picture, given its name; whatever it raises becomes a PictureError.

    Args:
        picture: a path, or a member of an archive, is looked at first: it must be a file that holds something.
        read: may raise anything.
        unknown: the reason where Pillow does not know what the file is.
        broken: the reason where a reader says itself, as `{}`, what it cannot read.
    """
    name = name_of(picture)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # readers warn of metadata that decoding does not need
            if isinstance(picture, (str, Path, Member)):
                check_stored(picture)
            return read(name)
    except PictureError:
        raise
    except Exception as error:  # readers raise nearly every kind of exception on broken files
        reason = unknown if isinstance(error, UnidentifiedImageError) else _reason(error, broken)
    raise PictureError(name, reason)  # out here, since it may be kept, and would keep the reader's error and memory


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright 8-bit RGB copy of a Pillow picture of any mode.

    Transparency is laid over white. 16-bit grey: 65535 becomes 255. 32-bit integers and floats: the first of the
    ranges 0..1 (floats only), 0..255, 0..65535 that holds all values becomes 0..255; otherwise the picture's own
    range does, so that no measuring device's units come out all black or all white.
    """
    return _upright(convert(image), orientation_of(image))


class UnreadableLog:
    """Which pictures of a source could not be read, written down once each; too many of them are an error.

    Args:
        title: what the pictures belong to, for messages.
        total: how many there are.
        allowed: share of them, as `loader.unreadable` says; None allows 5 %, and names no key in the error.
    """

    def __init__(self, title: str, total: int, allowed: float | None = None):
        self.title = title
        self.total = total
        self.allowed = allowed
        self.path: Path | None = None
        self._asked = np.zeros(total, dtype=bool)
        self._failed: dict[int, PictureError] = {}
        self._written: set[str] = set()
        self._told: Counter[str] = Counter()

    @property
    def limit(self) -> float:
        """Share of the pictures above which those that cannot be read are an error."""
        return MAX_UNREADABLE if self.allowed is None else self.allowed

    def write_to(self, path: Path) -> None:
        """Appends to `path` from now on (JSON lines of `path` and `reason`), but no file that it already names."""
        self.path = path
        content = path.read_text() if path.exists() else ""
        self._written = _paths_in(content)
        if content and not content.endswith("\n"):  # torn by a crash
            self._append("\n")
        for error in self._failed.values():
            self._write(error)

    def note(self, asked: Sequence[int], failed: Iterable[tuple[int, PictureError]]) -> None:
        """Takes down which pictures failed.

        Args:
            asked: those asked for in random order, whose share of failures tells early of all the others.
            failed: those that failed, asked for or not.

        Raises:
            ValueError: more than the allowed share of all pictures failed, or so many of those asked for that it is
                sure to come to that.
        """
        self._asked[list(asked)] = True
        for index, error in failed:
            if index not in self._failed:
                self._tell(error)
                self._failed[index] = error.with_traceback(None)  # which would keep what its frames hold
                self._write(error)
        if self._failed:
            self._judge()

    def __contains__(self, index: int) -> bool:
        return index in self._failed

    def __len__(self) -> int:
        return len(self._failed)

    def _tell(self, error: PictureError) -> None:
        """Names a file, unless some were named for the same reason and the rest can be looked up."""
        self._told[error.reason] += 1
        if self.path is None or self._told[error.reason] <= TOLD:
            logger.log(logging.INFO if self._failed else logging.WARNING, "skipped %s", error)
        elif self._told[error.reason] == TOLD + 1:
            logger.info("skipped more files: %s; all are listed in %s", error.reason, self.path)

    def _judge(self) -> None:
        total = len(self._asked)
        if len(self) > self.limit * total:
            raise ValueError(self._verdict(f"{len(self)} of {total} pictures"))
        asked = int(self._asked.sum())
        failed = int(self._asked[list(self._failed)].sum())
        if asked >= JUDGED_AFTER and beyond_chance(failed, asked, self.limit):
            raise ValueError(self._verdict(f"{failed} of the first {asked} pictures"))

    def _write(self, error: PictureError) -> None:
        if self.path is None or error.path in self._written:
            return
        if self.path.exists():  # other processes of the same training may have met it, too
            self._written |= _paths_in(self.path.read_text())
            if error.path in self._written:
                return
        self._written.add(error.path)
        self._append(json.dumps({"path": error.path, "reason": error.reason}) + "\n")

    def _append(self, text: str) -> None:
        assert self.path is not None
        with self.path.open("a") as file:
            file.write(text)

    def _verdict(self, share: str) -> str:
        example = next(iter(self._failed.values()))
        where = f"; all are listed in {self.path}" if self.path else ""
        # They stay where they are: with fewer pictures, a run that has begun would be another.
        mend = (
            "repair or remove them" if self.allowed is None else "repair them, or go on with a higher loader.unreadable"
        )
        return f"{self.title}: {share} cannot be read, over {100 * self.limit:.3g}%, such as {example}{where}; {mend}"


def beyond_chance(failed: int, asked: int, share: float) -> bool:
    """Whether so many of the pictures that were asked for at random failed that it is more than that share of all."""
    return failed > share * asked + 4 * math.sqrt(asked * share * (1 - share))  # standard deviations of the count


def _paths_in(log: str) -> set[str]:
    """The files that a log names; a line torn by a crash names none."""
    paths = set()
    for line in log.splitlines():
        try:
            paths.add(json.loads(line)["path"])
        except (ValueError, KeyError, TypeError):
            logger.warning("not a line of a list of unreadable files: %.80s", line)
    return paths


def _read_rgb(name: str, picture: Readable, longest: int | None) -> np.ndarray:
    if isinstance(picture, Image.Image):
        check_size(name, *picture.size)
        return _decode(picture, longest)
    with Image.open(unpacked(picture) if isinstance(picture, Member) else picture, formats=FORMATS) as image:
        check_size(name, *image.size)
        return _decode(image, longest, _draft(image, longest))


def unpacked(picture: Stored) -> str | Path | io.BytesIO:
    """What readers of files take: a path as it is, a member of an archive as a file in memory."""
    return io.BytesIO(picture.read_bytes()) if isinstance(picture, Member) else picture


def _draft(image: Image.Image, longest: int | None) -> tuple[float, float, float, float] | None:
    """Lets JPEG's decoder reduce a picture that is reduced anyway; answers what of the decoded picture counts."""
    if longest is None or max(image.size) <= longest:
        return None
    # To twice what is asked for: the decoder's reduction is coarse, the antialiased resize after it is not.
    reach = 2 * longest / max(image.size)
    drafted = image.draft(None, (max(1, round(image.width * reach)), max(1, round(image.height * reach))))
    return drafted[1] if drafted else None


def _decode(
    image: Image.Image, longest: int | None, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    image.load()
    orientation = orientation_of(image)  # after load: some formats hold it behind the pixels, TIFF applies it itself
    return np.array(_upright(_reduce(convert(image), box, longest), orientation))


def _reduce(image: Image.Image, box: tuple[float, float, float, float] | None, longest: int | None) -> Image.Image:
    """`image` with its longer side `longest`; `box` is what of it counts (JPEG's reduction rounds sizes up)."""
    if longest is None:
        return image
    box = box or (0.0, 0.0, *image.size)
    scale = longest / max(box)
    if scale >= 1:
        return image
    size = (max(1, round(box[2] * scale)), max(1, round(box[3] * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, box=box)


def convert(image: Image.Image) -> Image.Image:
    """8-bit RGB, as `to_rgb`, but not yet upright."""
    if image.mode.startswith("I;16"):
        return _from_range(np.asarray(image), 0.0, 65535.0)
    if image.mode in ("I", "F"):
        return _from_range(*_usual_range(np.asarray(image)))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _usual_range(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The values with the range that they are to be read in."""
    is_float = np.issubdtype(values.dtype, np.floating)
    if is_float:
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    for top in (1.0, 255.0, 65535.0) if is_float else (255.0, 65535.0):
        if low >= 0 and high <= top:
            return values, 0.0, top
    return values, low, high


def _from_range(values: np.ndarray, low: float, high: float) -> Image.Image:
    grey = (values.astype(np.float64) - low) * (255.0 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")


def orientation_of(image: Image.Image) -> int:
    """How a picture is to be turned (EXIF 2.3, tag 274): 1 for one that is upright. Asked once it is decoded."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata is no reason to lose a picture
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def name_of(picture: Readable) -> str:
    """What a picture is called in messages."""
    if isinstance(picture, (str, Path, Member)):
        return str(picture)
    return str(getattr(picture, "filename", "") or getattr(picture, "name", "") or "picture")


def check_size(name: str, width: int, height: int, bands: int = 3) -> None:
    """Refuses what is too small to crop from, and what would not fit into memory.

    Raises:
        PictureError: less than 8 pixels on a side, over 134 million of them, or over 3 times as many values.
    """
    if min(width, height) < MIN_SIDE:
        raise PictureError(name, f"too small: {width} x {height} pixels, at least {MIN_SIDE} on a side are needed")
    if width * height > MAX_PIXELS:
        raise PictureError(name, _too_large(width * height))
    if width * height * bands > MAX_VALUES:
        raise PictureError(name, f"too large: {width} x {height} pixels of {bands} bands")


def check_stored(picture: Stored) -> int:
    """The bytes of a picture; refused are what is no file, and files that hold nothing or, in an archive, more than
    memory should.

    Raises:
        PictureError: see above.
        OSError: there is no such file.
    """
    size = picture.size if isinstance(picture, Member) else _size_of_file(picture)
    if size == 0:
        raise PictureError(str(picture), "empty file")
    if isinstance(picture, Member) and size > LARGEST:
        raise PictureError(str(picture), f"too large: {size / 1e9:.1f} GB in an archive")
    return size


def _size_of_file(path: str | Path) -> int:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise PictureError(str(path), "not a file")
    return status.st_size


def _too_large(pixels: int) -> str:
    return f"too large: {pixels / 1e6:.0f} million pixels, at most {MAX_PIXELS / 1e6:.0f} million are read"


def _reason(error: Exception, broken: str) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(int(re.findall(r"\d+", str(error))[0]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return broken.format(" ".join(str(error).split())[:200] or type(error).__name__)
