"""The verb `figures`: what a model sees in pictures: patches as colours, attention, and where they are like words."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from synoptic.apps.figures import PatchColours, Scale, class_colours, paint_attention, paint_named, proper_name
from synoptic.apps.reading import Reading
from synoptic.apps.report_parts import FINEST
from synoptic.apps.resolutions import CURVES, MAPS, SHEET, Rising
from synoptic.apps.sheets import Legend, Panel, Strip, sheet
from synoptic.config import load_json
from synoptic.data.bands import as_rgb
from synoptic.evaluation.dense import segment
from synoptic.files import is_ours, write_atomically, write_text
from synoptic.predict import VisionModel, load
from synoptic.weights.folder import model_hash
from synoptic.weights.options import TeacherFile

BATCH = 64  # pictures of up to 224 pixels that the model sees at once; fewer of larger ones
SHOWN = 48  # pictures on the contact sheet, from which the colours are found
BASIS = 50_000  # of their patches, evenly chosen, are enough for that
SIDE, LARGEST_SIDE = 224, 480  # pixels of a panel on a picture's sheet, as many as the model sees within these
SMALL_SIDE = 104  # pixels of a panel on the contact sheet
WIDEST = 6  # panels beside each other on a picture's sheet
ACROSS = 15  # panels beside each other on the contact sheet

OWN = "patches"  # the label of the model's own space
RECORD, CONTACT, SHEETS = "figures.json", "contact_sheet.png", "sheets"
AT_SIZES = (SHEET, CURVES, MAPS)


@dataclass(frozen=True)
class Seen:
    """A picture as a model sees it.

    Attributes:
        path: the file.
        picture: (S, S, 3) uint8, cropped or squashed as the model wants it.
        grids: (h, w) patches, of each space.
        patches: for each of the model's spaces, by label, (h*w, D) float32.
        attention: (heads, h, w) float32, or None where the model has none.
        similarity: (n, h, w) float32, cosines to the texts, or None without any.
    """

    path: Path
    picture: np.ndarray
    grids: Mapping[str, tuple[int, int]]
    patches: Mapping[str, np.ndarray]
    attention: np.ndarray | None
    similarity: np.ndarray | None = None


def figures(
    images: str,
    model: str | VisionModel,
    out: Path,
    layer: int = -1,
    size: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    texts: Sequence[str] = (),
    adaptor: str | None = None,
    teachers: Mapping[str, str | VisionModel] | str | None = None,
    sizes: Sequence[int] | None = None,
    teacher: Mapping[str, TeacherFile] = MappingProxyType({}),
) -> int:
    """Writes a sheet for each picture, and a contact sheet.

    `sheets/` holds a PNG for each picture under the picture's name: the picture as the model sees it; its patches, the
    first three principal components of their features as red, green and blue, in the model's own space and in that of
    each of a student's teachers; and what the summary token looks at, the mean of the heads and each head, registers
    and the summary itself left out; and for each text a map of how much the patches are like it (see
    `VisionModel.similarity`), behind several of them the picture in the colours of the likeliest. All pictures share
    the components, with fixed signs, and all texts and pictures one scale of cosines. `contact_sheet.png` shows the
    pictures side by side, of more than 48 that many, evenly chosen, from which components and scale are found.
    `figures.json` says what was drawn.

    With `teachers` or `sizes` there are besides: `resolutions.png`, the patches of some pictures at rising sizes, the
    student's beside those of its teachers; `agreement.png`, curves of how well they agree (see `Agreement`); and
    `artefacts.png`, what patches say of their place alone (see `PositionArtefacts`), both over at most 200 pictures.

    Args:
        images: a file, folder (any depth), glob or `.txt` list.
        model: a MODEL, or one that is loaded.
        out: a new or an empty folder, or one of the same figures, of which the missing ones are drawn.
        layer: block whose attention is shown, counted from 0 or, if negative, from the end.
        size: side in pixels at which the model sees pictures, a multiple of its patches; None takes the smallest
            multiple of its own size that has 12 patches across.
        overwrite: throws away other figures that `out` holds.
        progress: told how many of how many pictures are done.
        texts: words as they are, such as "a dog".
        adaptor: a student's teacher whose words are used; needed where several know words.
        teachers: `name:MODEL,...` or name -> MODEL, by the names of a student's adaptors.
        sizes: sides in pixels at which the model is looked at; None takes some around its own, see `rising_sizes`.
        teacher: what the files of those in `teachers` do not say themselves, by their names.
    Returns:
        How many pictures could not be read; they are named in the log and left out.
    Raises:
        ValueError: no pictures, no such model, layer or size, or none of the pictures can be read; texts that are empty
            or there twice, or for a model without words; `out` holds other things, or other figures and `overwrite` is
            false.
    """
    _check_texts(texts)
    reading = Reading(images, progress)
    vision = model if isinstance(model, VisionModel) else load(model)
    eye = Eye(vision, layer, size, texts, adaptor)
    names = dict(zip(reading.paths, sheet_names(reading.paths), strict=True))
    rising = Rising.of(vision, teachers, sizes, teacher)
    record = {"images": images, "pictures": _fingerprint(names.values()), **eye.facts}
    record |= {} if rising is None else rising.facts
    goes_on = _check_place(out, record, overwrite)
    missing = {path for path in names if not (goes_on and (out / SHEETS / names[path]).is_file())}
    whole = [out / name for name in (CONTACT, *(() if rising is None else rising.files))]
    if not missing and all(path.is_file() for path in whole):
        return 0
    shown = _evenly(list(names), SHOWN)
    first = list(eye.see(reading, shown))  # before anything is thrown away, since it finds the mistakes
    if not goes_on:
        _clear(out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / RECORD, json.dumps(record, indent=2) + "\n")
    painter = Painter(eye, first)
    _save(out / CONTACT, painter.contact_sheet({names[seen.path]: seen for seen in first}, len(names)))
    rest = sorted(missing - set(shown))
    for seen in chain(first, eye.see(reading, rest) if rest else ()):
        if seen.path in missing:
            _save(out / SHEETS / names[seen.path], painter.sheet(names[seen.path], seen))
    if rising is not None:
        rising.draw(out, list(names))
    return reading.left_out


class Eye:
    """A model that looks at pictures.

    Args:
        vision: the model.
        layer: block whose attention is asked for.
        size: side in pixels of what it sees, or None; see `figures`.
        texts: what patches are compared with.
        adaptor: whose words they are.
    Raises:
        ValueError: there are texts, and the model knows no words.
    """

    def __init__(
        self, vision: VisionModel, layer: int, size: int | None, texts: Sequence[str] = (), adaptor: str | None = None
    ):
        self.vision, self.layer, self.texts, self.adaptor = vision, layer, list(texts), adaptor
        if self.texts:
            vision.encode_text(self.texts, adaptor)  # a model without words is told before any picture is read
        own = vision.preprocess.size
        self.preprocess = replace(vision.preprocess, size=size or own * -(-FINEST * vision.stride // own))

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the figures of a picture."""
        weights = model_hash(self.vision.model, self.vision.preprocess)
        facts = {"model": self.vision.name, "weights": weights, "layer": self.layer, "size": self.preprocess.size}
        return facts | ({"text": self.texts, "adaptor": self.adaptor} if self.texts else {})

    def see(self, reading: Reading, paths: Sequence[Path]) -> Iterator[Seen]:
        """Those pictures that can be read, in order."""
        batch_size = max(1, min(BATCH, BATCH * 224**2 // self.preprocess.size**2))
        for batch in reading.batches(self.vision, paths, self.preprocess, batch_size):
            answer = self.vision(batch.images)
            spaces = {OWN: answer} | {f"as {proper_name(name)}": each for name, each in answer.adaptors.items()}
            patches = {label: features.patches.float().cpu().numpy() for label, features in spaces.items()}
            maps = self.vision.attention(batch.images, self.layer).cpu().numpy() if self.vision.attends else None
            like = self.vision.similarity(batch.images, self.texts, self.adaptor).numpy() if self.texts else None
            for place, path in enumerate(batch.inputs):
                yield Seen(
                    Path(str(path)),
                    self._picture(batch.images[place]),
                    {label: features.grid for label, features in spaces.items()},
                    {label: array[place] for label, array in patches.items()},
                    None if maps is None else maps[place],
                    None if like is None else like[place],
                )

    def _picture(self, image: Tensor) -> np.ndarray:
        bands = image.permute(1, 2, 0).numpy()
        return as_rgb(bands) if self.preprocess.bands is not None else (bands * 255).round().astype(np.uint8)


class Painter:
    """Draws what a model sees, in colours found from some pictures.

    Args:
        eye: the model.
        first: the pictures.
    """

    def __init__(self, eye: Eye, first: Sequence[Seen]):
        self._eye = eye
        self._side = max(SIDE, min(eye.preprocess.size, LARGEST_SIDE))
        self._colours = {label: _colours([seen.patches[label] for seen in first]) for label in first[0].patches}
        maps = [seen.similarity for seen in first if seen.similarity is not None]
        self._scale = Scale.of(np.stack(maps)) if maps else None

    def sheet(self, name: str, seen: Seen) -> Image.Image:
        """All that is seen in one picture."""
        panels = self._panels(seen)
        heads = () if seen.attention is None else paint_attention(seen.attention, (self._side, self._side))
        numbered = [Panel(f"head {number}", head) for number, head in enumerate(heads, start=1)]
        every = [panels, self._words(seen), numbered]
        strips = [Strip(part[start : start + WIDEST]) for part in every for start in range(0, len(part), WIDEST)]
        note = f"{self._eye.vision.name}, {self._note(seen)}"
        return sheet(_printable(name), note, strips, self._side, gap=12, legend=self._legend())

    def contact_sheet(self, pictures: Mapping[str, Seen], total: int) -> Image.Image:
        """Several of all pictures side by side, each under its name."""
        strips = [Strip(self._panels(seen) + self._words(seen), _printable(name)) for name, seen in pictures.items()]
        across = min(max(1, ACROSS // len(strips[0].panels)), len(strips))
        count = f"{len(strips)} of {total} pictures" if len(strips) < total else f"{total} pictures"
        note = f"{count}, {self._note(next(iter(pictures.values())))}"
        title = self._eye.vision.name
        return sheet(title, note, strips, SMALL_SIDE, gap=6, across=across, legend=self._legend())

    def _panels(self, seen: Seen) -> list[Panel]:
        """The picture, its patches in every space, and the mean of the heads' attention."""
        size = (self._side, self._side)
        panels = [Panel("picture", seen.picture)]
        for label, patches in seen.patches.items():
            panels.append(Panel(label, self._colours[label].paint(patches[None], seen.grids[label], size)[0]))
        if seen.attention is not None:
            panels.append(Panel("attention", paint_attention(seen.attention.mean(0, keepdims=True), size)[0]))
        return panels

    def _words(self, seen: Seen) -> list[Panel]:
        """Where the picture is like each of the texts."""
        if self._scale is None or seen.similarity is None:
            return []
        size = (self._side, self._side)
        painted = self._scale.paint(seen.similarity, size)
        colours = class_colours(len(painted) + 1)[1:]  # without the background's
        pairs = zip(self._eye.texts, painted, strict=True)
        if len(painted) == 1:
            return [Panel(f"“{text}”", each) for text, each in pairs]
        panels = [Panel(f"“{text}”", each, _rgb(colour)) for (text, each), colour in zip(pairs, colours, strict=True)]
        likeliest = segment(torch.from_numpy(seen.similarity), size)
        picture = np.asarray(Image.fromarray(seen.picture).resize(size, Image.Resampling.LANCZOS))
        return [*panels, Panel("likeliest", paint_named(picture, likeliest, colours))]

    def _legend(self) -> Legend | None:
        if self._scale is None:
            return None
        before = f"cosine to the words, one scale for all: {self._scale.low:.2f}"
        return Legend(before, self._scale.bar(120, 10), f"{self._scale.high:.2f}")

    def _note(self, seen: Seen) -> str:
        (height, width), vision = seen.grids[OWN], self._eye.vision
        note = f"{height} x {width} patches of {vision.stride} pixels"
        if seen.attention is None:
            return note
        return f"{note}, attention in layer {self._eye.layer % vision.depth} of 0 to {vision.depth - 1}"


def sheet_names(paths: Sequence[Path]) -> list[str]:
    """The file of each picture's sheet: its path below the folder that holds them all, ending in .png.

    Pictures that differ by their endings alone, or by capital letters, keep the ending before it: a.jpg.png.
    """
    places = [os.path.abspath(path) for path in paths]
    root = os.path.commonpath([os.path.dirname(place) for place in places])
    names = [os.path.relpath(place, root) for place in places]
    stems = [os.path.splitext(name)[0] for name in names]
    count = Counter(stem.casefold() for stem in stems)
    return [f"{name if count[stem.casefold()] > 1 else stem}.png" for name, stem in zip(names, stems, strict=True)]


def _rgb(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(part) for part in colour)
    return red, green, blue


def _check_texts(texts: Sequence[str]) -> None:
    if not all(text.strip() for text in texts):
        raise ValueError(f'text={",".join(texts)}: one is empty; give words, comma-separated, as in text="a dog,a bus"')
    twice = next((text for text, count in Counter(texts).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"text={','.join(texts)}: {twice!r} is there twice; leave one")


def _check_place(out: Path, record: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether the figures that are wanted were begun in `out`; an error where others, or other things, are there."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out}: is a file; give a folder for the figures")
    if not out.exists() or all(is_ours(path) for path in out.iterdir()):
        return False
    if not (out / RECORD).is_file():
        raise ValueError(f"out={out}: holds files that are no figures; give a new or an empty folder")
    if overwrite:
        return False
    before = load_json(out / RECORD)
    if before != record:
        other = next(key for key in (*record, *before) if before.get(key) != record.get(key))
        raise ValueError(
            f"out={out}: holds figures with {other}={before.get(other)}, not {record.get(other)}; overwrite=true "
            "throws them away"
        )
    return True


def _clear(out: Path) -> None:
    """Removes what this verb wrote, and nothing else."""
    shutil.rmtree(out / SHEETS, ignore_errors=True)
    for name in (CONTACT, RECORD, *AT_SIZES):
        (out / name).unlink(missing_ok=True)


def _save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: image.save(file, "PNG"))


def _colours(patches: Sequence[np.ndarray]) -> PatchColours:
    rows = np.concatenate(patches)
    return PatchColours.of(rows[:: -(-len(rows) // BASIS)])


def _evenly(paths: Sequence[Path], count: int) -> list[Path]:
    return [paths[place * len(paths) // count] for place in range(count)] if len(paths) > count else list(paths)


def _fingerprint(names: Iterable[str]) -> str:
    """16 hexadecimal digits that tell lists of pictures apart."""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()[:16]


def _printable(name: str) -> str:
    """A picture's name as the name of its sheet tells it; a file's name may be any bytes, a text not."""
    return name.removesuffix(".png").encode(errors="backslashreplace").decode()
