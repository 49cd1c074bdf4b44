"""A generator of labelled pictures with exact truth, from no download.

Shaded solids stand on, or float above, a textured ground before a textured backdrop, seen by a pinhole camera. Every
picture comes with boxes, masks, captions whose noun phrases are grounded, depth, normals, the camera and, on request,
a second view with correspondences. All of it follows from the configuration and the picture's index alone.
"""

import glob
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from synoptic.data import scene_description, scene_surfaces
from synoptic.data.listing import expand
from synoptic.data.scene_files import Record, save_picture, write_annotations
from synoptic.data.scene_picture import Picture, draw_picture
from synoptic.data.solids import SOLIDS
from synoptic.files import LOCK, sole_writer

FORMAT = 1  # of a written data set; raised whenever the same settings would give other files
SHAPES = tuple(SOLIDS)
COLOURS = tuple(scene_surfaces.COLOURS)
TEXTURES = tuple(scene_surfaces.TEXTURES)
SIZES = tuple(scene_description.SIZES)
SPLITS = ("train", "test")

# Two shapes a colour, each shape once or twice: whatever is held out, its colour and its shape are both learned.
HELDOUT_PAIRS = tuple(
    (colour, SHAPES[(number + step) % len(SHAPES)]) for number, colour in enumerate(COLOURS) for step in (0, 5)
)
SEEN_PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in HELDOUT_PAIRS)

TEST_FRACTION = 0.2
CHUNK = 50  # pictures a process draws before it reports
MOST_OBJECTS = 6


@dataclass(frozen=True)
class SceneConfig:
    """What a data set of scenes holds.

    Attributes:
        count: pictures in all; a fifth of them, at least one, are the test split.
        size: side of the square pictures in pixels, 32 to 1024.
        seed: from which everything random follows, 0 or more.
        objects: fewest and most objects in a picture, within 1 to 6.
        views: 2 adds a second camera's picture and its pixel correspondences.
    Raises:
        ValueError: naming the value that is out of range.
    """

    count: int
    size: int = 96
    seed: int = 0
    objects: tuple[int, int] = (1, 6)
    views: int = 1

    def __post_init__(self) -> None:
        _check("count", self.count, self.count >= 2, "give 2 or more, so that there is a train and a test picture")
        _check("size", self.size, 32 <= self.size <= 1024, "give 32 to 1024 pixels")
        _check("seed", self.seed, self.seed >= 0, "give 0 or more")
        few, many = self.objects
        _check("objects", self.objects, 1 <= few <= many <= MOST_OBJECTS, f"give 1 to {MOST_OBJECTS}, the fewest first")
        _check("views", self.views, self.views in (1, 2), "give 1 or 2")

    @property
    def counts(self) -> dict[str, int]:
        """Pictures in each split."""
        test = max(1, round(TEST_FRACTION * self.count))
        return {"train": self.count - test, "test": test}

    @property
    def by_class(self) -> bool:
        """Whether pictures show one object each, and so lie in class folders."""
        return self.objects == (1, 1)


def _check(name: str, value: Any, good: bool, mend: str) -> None:
    if not good:
        raise ValueError(f"scenes: {name}={value} is out of range; {mend}")


def parse_objects(text: str | int | tuple[int, int]) -> tuple[int, int]:
    """The fewest and the most objects from "1..6", "3", 3 or (1, 6).

    Raises:
        ValueError: for anything else.
    """
    if isinstance(text, tuple):
        return text
    few, dots, many = str(text).partition("..")
    try:
        return int(few), int(many if dots else few)
    except ValueError:
        raise ValueError(f"scenes: objects={text!r} is no number of objects; give one such as 3 or 1..6") from None


def draw(config: SceneConfig, split: str, index: int) -> Picture:
    """Draws one picture in memory, the same whenever and wherever it is drawn.

    Args:
        split: "train" or "test". Only test pictures show the held-out pairs of colour and shape.
        index: 0 or more; beyond the configured count pictures just go on.
    """
    if split not in SPLITS:
        raise ValueError(f"scenes: there is no split {split!r}; give train or test")
    rng = _rng(config, split, "picture", index)
    few, many = config.objects
    count = int(rng.integers(few, many + 1))
    pairs = [_pair(config, split, index * many + place) for place in range(count)]
    return draw_picture(pairs, config.size, config.views, rng)


def _rng(config: SceneConfig, split: str, purpose: str, *numbers: int) -> np.random.Generator:
    purposes = ("picture", "shapes", "colours")
    return np.random.default_rng([config.seed, SPLITS.index(split), purposes.index(purpose), *numbers])


def _pair(config: SceneConfig, split: str, slot: int) -> tuple[str, str]:
    """The (colour, shape) of the slot-th object: shapes come in shuffled rounds, and a shape's colours do too."""
    around, place = divmod(slot, len(SHAPES))
    shape = _shuffled(config, split, "shapes", around, len(SHAPES))[place]
    pairs = SEEN_PAIRS if split == "train" else HELDOUT_PAIRS + SEEN_PAIRS
    colours = sorted(colour for colour, other in pairs if other == SHAPES[shape])
    around, place = divmod(around, len(colours))
    return colours[_shuffled(config, split, "colours", around, len(colours), shape)[place]], SHAPES[shape]


@lru_cache(maxsize=256)
def _shuffled(
    config: SceneConfig, split: str, purpose: str, around: int, length: int, shape: int = 0
) -> tuple[int, ...]:
    return tuple(int(i) for i in _rng(config, split, purpose, around, shape).permutation(length))


def write(
    out: str | Path,
    config: SceneConfig,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes a data set of labelled pictures.

    The folder holds `scenes.json` (all settings) and, in `train/` and in `test/`: `images/` (JPEG), `masks/` (PNG, 0
    or the category of each pixel), `depth/` (16-bit PNG, millimetres along the camera's axis, 0 for the backdrop),
    `normals/` (PNG, round((n + 1) / 2 * 255) in the camera's frame), `instances.json` and `captions.json` (COCO).
    With two views also `views/` (JPEG) and `correspondences/` (.npy, see `SecondView`). Files of one picture have the
    same name everywhere; where each picture shows one object, they lie in folders named after its shape. The same
    settings give the same bytes, with however many processes, under the same versions of NumPy and Pillow.

    Args:
        out: a folder that is empty, or does not exist yet, or holds this very data set: then nothing is done.
        workers: processes, by default one for each core. Since they are started afresh, a script that asks for more
            than one must guard its entry by `if __name__ == "__main__"`.
        progress: called with the number of pictures done and the number of all.
    Returns:
        `out` as a path.
    Raises:
        ValueError: where `out` holds anything else.
    """
    out = expand(out)
    settings = _settings(config)
    if _holds(out, settings):
        return out
    _remove_abandoned(out)
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with sole_writer(partial):
            _make_folders(partial, config)
            records = _draw_all(partial, config, workers or os.cpu_count() or 1, progress)
            for split, count in config.counts.items():
                write_annotations(partial / split, [records[split, index] for index in range(count)])
            (partial / "scenes.json").write_text(settings, encoding="utf-8")
            (partial / LOCK).unlink(missing_ok=True)
            try:
                if out.exists():
                    out.rmdir()
                partial.rename(out)
            except OSError:
                if not _holds(out, settings):  # else another process was quicker
                    raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _remove_abandoned(out: Path) -> None:
    """Removes what killed processes left of their attempts at `out`; what a living one writes is locked, and stays."""
    for partial in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        if (partial / LOCK).exists():
            with suppress(ValueError), sole_writer(partial):
                shutil.rmtree(partial, ignore_errors=True)


def _settings(config: SceneConfig) -> str:
    """All that a data set follows from, as JSON."""
    settings = {
        "format": FORMAT,
        "count": config.count,
        "counts": config.counts,
        "size": config.size,
        "seed": config.seed,
        "objects": list(config.objects),
        "views": config.views,
        "shapes": list(SHAPES),
        "colours": list(COLOURS),
        "textures": list(TEXTURES),
        "sizes": list(SIZES),
        "heldout_pairs": [list(pair) for pair in HELDOUT_PAIRS],
        "seen_pairs": [list(pair) for pair in SEEN_PAIRS],
    }
    return json.dumps(settings, indent=2) + "\n"


def _holds(out: Path, settings: str) -> bool:
    """Whether a folder holds the data set of these settings already."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    found = out / "scenes.json"
    if found.is_file() and found.read_text(encoding="utf-8") == settings:
        return True
    raise ValueError(f"scenes: {out} already holds other files; give another folder, or remove it first")


def _make_folders(root: Path, config: SceneConfig) -> None:
    kinds = ["images", "masks", "depth", "normals"] + ["views", "correspondences"] * (config.views == 2)
    for split in SPLITS:
        for kind in kinds:
            for name in SHAPES if config.by_class else ("",):
                (root / split / kind / name).mkdir(parents=True)


def _draw_all(
    root: Path, config: SceneConfig, workers: int, progress: Callable[[int, int], None] | None
) -> dict[tuple[str, int], Record]:
    """Draws and saves all pictures; returns their records by split and index."""
    chunks = [
        (split, range(start, min(start + CHUNK, count)))
        for split, count in config.counts.items()
        for start in range(0, count, CHUNK)
    ]
    records: dict[tuple[str, int], Record] = {}
    for split, indices, drawn in _drawn_chunks(root, config, chunks, min(workers, len(chunks))):
        records.update({(split, index): record for index, record in zip(indices, drawn, strict=True)})
        if progress is not None:
            progress(len(records), config.count)
    return records


def _drawn_chunks(
    root: Path, config: SceneConfig, chunks: list[tuple[str, range]], workers: int
) -> Iterator[tuple[str, range, list[Record]]]:
    if workers == 1:
        for split, indices in chunks:
            yield split, indices, _draw_chunk(root, config, split, indices)
        return
    # Spawned, not forked: the calling process may have threads (PyTorch's, TensorBoard's) that do not survive a fork.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        jobs = {pool.submit(_draw_chunk, root, config, *chunk): chunk for chunk in chunks}
        for job in as_completed(jobs):
            yield *jobs[job], job.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _draw_chunk(root: Path, config: SceneConfig, split: str, indices: range) -> list[Record]:
    records = []
    for index in indices:
        picture = draw(config, split, index)
        folder = f"{picture.instances[0].kind.shape}/" if config.by_class else ""
        records.append(save_picture(picture, root / split, f"{folder}{index:06d}"))
    return records


def contact_sheet(
    folder: str | Path, out: str | Path, split: str = "train", columns: int = 6, rows: int = 5, scale: int = 2
) -> Path:
    """Draws the first pictures of a written data set with their boxes, a caption below each, to be looked at.

    Args:
        folder: as written by `write`.
        out: PNG file.
        scale: enlargement of the pictures.
    """
    split_folder = Path(folder) / split
    instances = json.loads((split_folder / "instances.json").read_text(encoding="utf-8"))
    captions = json.loads((split_folder / "captions.json").read_text(encoding="utf-8"))["annotations"]
    images = instances["images"][: columns * rows]
    side, strip = scale * images[0]["width"], 44
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + strip + 4)), "white")
    for place, image in enumerate(images):
        tile = Image.open(split_folder / "images" / image["file_name"]).resize((side, side), Image.Resampling.LANCZOS)
        pen = ImageDraw.Draw(tile)
        for annotation in instances["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, width, height = (scale * value for value in annotation["bbox"])
                pen.rectangle([x, y, x + width - 1, y + height - 1], outline="black")
        told = [caption["caption"] for caption in captions if caption["image_id"] == image["id"]]
        left, top = place % columns * (side + 4), place // columns * (side + strip + 4)
        sheet.paste(tile, (left, top))
        ImageDraw.Draw(sheet).text((left, top + side), _wrapped(told[place % len(told)], side // 6), fill="black")
    sheet.save(out)
    return Path(out)


def _wrapped(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f"{word} "
    return "\n".join(lines)
