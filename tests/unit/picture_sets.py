"""Small sets of pictures as users have them."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image


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
