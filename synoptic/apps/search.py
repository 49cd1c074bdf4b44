"""The verb `search`: the pictures of a table of embeddings that are nearest to a text or a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from synoptic.apps.index import Index
from synoptic.apps.sheets import GREY, Panel, Strip, sheet
from synoptic.data.bands import as_rgb, read_bands
from synoptic.data.inputs import is_single
from synoptic.data.listing import expand, missing
from synoptic.data.pictures import PictureError, read_picture
from synoptic.files import check_file, write_atomically, write_text
from synoptic.predict import VisionModel, load
from synoptic.weights.folder import model_hash, text_towers
from synoptic.weights.options import LoadOptions

ENDINGS = (".png", ".json", ".csv")
SHOWN = 100  # pictures on a contact sheet
SIDE, ACROSS = 200, 5  # pixels of a picture there, pictures beside each other


@dataclass(frozen=True)
class Hit:
    """A picture that was found.

    Attributes:
        score: cosine similarity to what was asked for.
        path: as `embed` was given it.
        missing: whether there is no such file any more, seen from here.
    """

    score: float
    path: str
    missing: bool


def search(
    index: str | Path,
    text: str | None = None,
    image: str | Path | None = None,
    k: int = 10,
    model: str | Path | VisionModel | None = None,
    out: str | Path | None = None,
    exact: bool = False,
    options: LoadOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Hit]:
    """The pictures nearest to a text or a picture; a picture that is in the table finds itself first.

    Below a million rows all are looked at. A larger table gets an inverted file beside it (`.ivf`), made at the first
    search and whenever the table has changed, with which about 98 % of the ten nearest pictures to a picture are found.
    Words lie apart from the pictures by which that was measured: for them four times as many lists are read, and they
    may find fewer nevertheless: see `exact`.

    Args:
        index: the `.parquet` file that `embed` has written.
        text: what is looked for in words; for embeddings in a space where the model knows words.
        image: or the file of a picture.
        k: how many are wanted; of a smaller table all are told.
        model: the MODEL that made the table, if it does not lie where it lay then.
        out: `.png` for a contact sheet with the scores, `.json` or `.csv`.
        exact: looks at every row of a large table, too.
        options: what the weights file of `model` does not say itself.
        progress: told how much of how much is done, while an inverted file is made.
    Returns:
        The pictures, the nearest first.
    Raises:
        ValueError: text and image or neither, no such file, an index that is no table of embeddings or one of patches,
            no model, another model than the table's, or words where the model knows none.
    """
    index, image, out = expand(index), expand(image) if image else None, expand(out) if out else None
    _check(text, image, k, out)
    searched = Index(index, exact, progress)
    made = searched.table.made
    if made.tokens == "patches":
        raise ValueError(
            f"{index}: holds patches, and neither words nor whole pictures lie in their space; search a table of "
            "tokens=summary"
        )
    vision = _model(searched, model, options or LoadOptions())
    if text is not None:
        query = _words(index, vision, text, made.adaptor)
    else:
        query = vision.embed([str(image)], made.adaptor)[0]
    scores, rows = searched.search(query, k, apart=text is not None)
    paths = searched.table.paths(rows.tolist())
    hits = [Hit(score, path, not Path(path).is_file()) for score, path in zip(scores.tolist(), paths, strict=True)]
    if out:
        _write(out, hits, vision, text, image)
    return hits


def _check(text: str | None, image: Path | None, k: int, out: Path | None) -> None:
    if (text is None) == (image is None):
        raise ValueError('give what to look for, either text="a red bus" or image=FILE')
    if text is not None and not text.strip():
        raise ValueError('text= is empty; say what to look for, as in text="a red bus"')
    if image is not None and not image.exists():
        raise ValueError(f"image={missing(image)}")
    if image is not None and not is_single(image):
        raise ValueError(f"image={image}: give the file of one picture")
    if k < 1:
        raise ValueError(f"k={k}: ask for one picture at least")
    if out is not None:
        if out.suffix.lower() not in ENDINGS:
            raise ValueError(f"out={out}: give a name that ends in .png (a contact sheet), .json or .csv")
        check_file(out)


def _model(searched: Index, model: str | Path | VisionModel | None, options: LoadOptions) -> VisionModel:
    """The model that made a table.

    Raises:
        ValueError: it cannot be found, or is another one.
    """
    table = searched.table
    said = {key: value for key, value in asdict(options).items() if value is not None}
    if isinstance(model, VisionModel):
        vision = model
    elif model is not None:
        vision = load(model, **said)
    elif table.made.model is None:
        raise ValueError(f"{table.path}: does not tell where its model {table.model[0]} is; give model=MODEL")
    else:
        try:
            vision = load(table.made.model, **{**table.made.load, **said})
        except ValueError as error:
            raise ValueError(f"{table.path}: made by {table.made.model}; {error}; or give model=MODEL") from None
    found = model_hash(vision.model, vision.preprocess)
    table.check_model(vision.name, found, "give the model that made it, or embed anew")
    return vision


def _words(index: Path, vision: VisionModel, text: str, adaptor: str | None) -> np.ndarray:
    """(C,) a text, in the space of a table."""
    towers = text_towers(vision.model)
    if towers and (adaptor or "") not in towers:
        space = "the model's own space" if adaptor is None else f"the space of {adaptor}"
        mend = f"adaptor={next(iter(towers))}" if "" not in towers else "no adaptor="
        raise ValueError(
            f"{index}: lies in {space}, where {vision.name} knows no words; embed with {mend} to use words"
        )
    return vision.encode_text([text], adaptor)[0]


def _write(out: Path, hits: Sequence[Hit], vision: VisionModel, text: str | None, image: Path | None) -> None:
    kind = out.suffix.lower()
    rows = [asdict(hit) for hit in hits]
    if kind == ".json":
        write_text(out, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    elif kind == ".csv":
        lines = io.StringIO()
        table = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_text(out, lines.getvalue())
    else:
        contact = contact_sheet(hits, vision, text, image)
        write_atomically(out, lambda file: contact.save(file, "PNG"))


def contact_sheet(hits: Sequence[Hit], vision: VisionModel, text: str | None, image: Path | None) -> Image.Image:
    """The pictures side by side, their paths and scores under them; before them the picture that was asked for."""
    strips = [] if image is None else [Strip([Panel("asked for", _thumbnail(str(image), vision))])]
    for hit in hits[:SHOWN]:
        strips.append(Strip([Panel("", _thumbnail(hit.path, vision))], f"{hit.path}  {hit.score:.3f}"))
    shown = f"the first {SHOWN} of {len(hits)}" if len(hits) > SHOWN else f"{len(hits)}"
    note = f"{shown} nearest pictures in the space of {vision.name}"
    return sheet(str(text or image), note, strips, SIDE, gap=12, across=min(ACROSS, len(strips)))


def _thumbnail(path: str, vision: VisionModel) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8, the whole picture on white; grey with a cross where it cannot be read."""
    bands = vision.preprocess.bands
    try:
        picture = read_picture(path, 2 * SIDE) if bands is None else as_rgb(read_bands(path, bands, 2 * SIDE))
    except PictureError:
        return _cross()
    return np.asarray(ImageOps.pad(Image.fromarray(picture), (SIDE, SIDE), color="white"))


def _cross() -> np.ndarray:
    """What stands for a picture that is missing."""
    panel = np.full((SIDE, SIDE, 3), 235, np.uint8)
    places = np.arange(SIDE // 4, SIDE - SIDE // 4)
    for width in range(-2, 3):
        panel[places, places + width] = GREY
        panel[places, SIDE - 1 - places + width] = GREY
    return panel
