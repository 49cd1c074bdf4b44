"""Small sets of pictures as users have them."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from synoptic.data.sources import Source, open_source


def fill(folder: Path, names: Sequence[str], size: tuple[int, int] = (10, 8)) -> Path:
    """A folder of plain pictures, no two of the first 256 alike."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number % 256, 0, 0)).save(folder / name)
    return folder


def coco(path: Path, captions: dict[str, list[str]]) -> Path:
    """A captions JSON in COCO's form; file name -> captions."""
    images = [{"id": number, "file_name": name} for number, name in enumerate(captions)]
    notes = [{"image_id": number, "caption": text} for number, texts in enumerate(captions.values()) for text in texts]
    path.write_text(json.dumps({"images": images, "annotations": notes}))
    return path


def tiff(path: Path, values: np.ndarray, planar: bool = False, **options: Any) -> Path:
    """A TIFF of the bands (H, W, C), interleaved or in planes, as satellites' and microscopes' programs write them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples: dict[str, Any] = {}
    values = values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if values.ndim == 3:
        samples = {"planarconfig": "separate" if planar else "contig"}
        samples["extrasamples"] = ("unspecified",) * (values.shape[2] - 1)
        values = np.moveaxis(values, 2, 0) if planar else values
    tifffile.imwrite(path, values, photometric="minisblack", **samples, **options)
    return path


def shard(path: Path, members: Mapping[str, bytes | str], **options: Any) -> Path:
    """A tar archive of members in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def png(number: int = 0, size: tuple[int, int] = (10, 8)) -> bytes:
    """A plain picture, as `fill` draws them."""
    file = io.BytesIO()
    Image.new("RGB", size, (number % 256, 0, 0)).save(file, "PNG")
    return file.getvalue()


COLOURS = {"red": (200, 30, 30), "green": (30, 190, 40), "blue": (20, 40, 210)}


def paint(root: Path, pictures: Mapping[str, tuple[int, int, int]], size: tuple[int, int] = (12, 12)) -> Source:
    """Writes one-coloured pictures with a little noise and opens them."""
    rng = np.random.default_rng(0)
    for name, colour in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(-12, 13, (size[1], size[0], 3))
        Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(root / name)
    return open_source(str(root), "all")
