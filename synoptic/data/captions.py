"""Files that name pictures and describe them in words: JSON of COCO's form, and tables (CSV, TSV, Parquet)."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from synoptic.data.listing import missing
from synoptic.data.tables import TABLES, read_table

logger = logging.getLogger(__name__)

DESCRIBING = (".json", *TABLES)
LOOKED_FOR = 20  # pictures: where none of so many is there, they lie elsewhere


@dataclass(frozen=True)
class Described:
    """Pictures that a file names; picture i has key i and captions i.

    Attributes:
        root: the folder that they are below.
        paths: the picture files, which need not be there.
        keys: what tells each from the others, wherever their folder lies.
        captions: any number of captions a picture.
    """

    root: Path
    paths: Sequence[Path]
    keys: Sequence[str]
    captions: Sequence[tuple[str, ...]]


def is_describing(path: Path) -> bool:
    """Whether a path is that of a file that names pictures, so that `images=` says where these lie."""
    return path.suffix.lower() in DESCRIBING and not os.path.isdir(path)


def described(path: Path, images: Path | None = None) -> Described:
    """The pictures of a captions file, in the order of their names.

    Args:
        path: a JSON of COCO's form, or a table.
        images: the folder that file names are relative to; None takes `images/` beside a JSON, and a table's folder.

    Raises:
        ValueError: the file is not of its kind, or none of its pictures is there.
    """
    if images is not None and not os.path.isdir(images):
        raise ValueError(f"images={missing(images)}")
    is_table = path.suffix.lower() in TABLES
    named = _without_empty(_by_place(read_table(path)), path) if is_table else read_coco(path)
    if impossible := next((name for name in named if "\0" in name), None):
        raise ValueError(f"{path}: names the picture {impossible!r}, and no file's name has a null byte; mend that row")
    root = images or (path.parent if is_table else path.parent / "images")
    if not os.path.isdir(root):
        raise ValueError(f"{path} describes pictures in {root}, which is not there; images=DIR says where they lie")
    names = sorted(named)
    found = _placed(root, names, [named[name] for name in names])
    _check_there(path, found.paths)
    return found


def captions_beside(keys: Sequence[str], path: Path) -> list[tuple[str, ...]]:
    """The captions of each picture of a folder, by a JSON of COCO's form."""
    texts = read_coco(path)
    captions = [texts.pop(key, ()) for key in keys]
    if texts:
        tell_once(f"{path} lists {len(texts)} pictures that are not there, such as {next(iter(texts))}")
    return captions


def cleaned(texts: Iterable[object]) -> tuple[str, ...]:
    """Captions without white space around them; what is empty or no text is left out.

    Half a character of UTF-16, which JSON can hold and no tokenizer reads, becomes a question mark.
    """
    stripped = (text.strip() for text in texts if isinstance(text, str))
    return tuple(text.encode(errors="replace").decode() for text in stripped if text)


@lru_cache
def tell_once(warning: str) -> None:
    """Warns, however often the same data are opened."""
    logger.warning("%s", warning)


def read_coco(path: Path) -> dict[str, tuple[str, ...]]:
    """The captions of every picture that a JSON of COCO's form lists, by its file name; () where it has none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    try:
        names = {image["id"]: _inside(str(image["file_name"]), path) for image in content["images"]}
        notes = [(names.get(note["image_id"]), note.get("caption")) for note in content.get("annotations", ())]
    except (KeyError, TypeError, AttributeError):
        form = "images (id, file_name) and annotations (image_id, caption), as COCO's have"
        raise ValueError(f"{path} is no captions JSON, which holds {form}; data may also be a folder") from None
    if not names:
        raise ValueError(f"{path} lists no picture")
    captions: dict[str, list[object]] = {name: [] for name in names.values()}
    for name, caption in notes:
        if name is not None:
            captions[name].append(caption)
    if strays := sum(name is None for name, _ in notes):
        tell_once(f"{path}: {strays} annotations belong to pictures that it does not list")
    return _without_empty(captions, path)


def _by_place(rows: Iterable[tuple[str, Sequence[object]]]) -> dict[str, list[object]]:
    """The texts of all rows about one picture, whose path may be spelled in several ways (`a.jpg`, `./a.jpg`)."""
    found: dict[str, list[object]] = {}
    for name, texts in rows:
        found.setdefault(os.path.normpath(name), []).extend(texts)
    return found


def _without_empty(captions: Mapping[str, Sequence[object]], path: Path) -> dict[str, tuple[str, ...]]:
    kept = {name: cleaned(texts) for name, texts in captions.items()}
    texts = (text for each in captions.values() for text in each)
    if empty := sum(isinstance(text, str) and not text.strip() for text in texts):
        tell_once(f"{path}: left out {empty} empty caption{'s' * (empty != 1)}")
    return kept


def _placed(root: Path, names: Sequence[str], captions: Sequence[tuple[str, ...]]) -> Described:
    """Pictures by their names below a folder; where some lie elsewhere, below the one folder that holds all."""
    paths = [root / name for name in names]
    if not any(os.path.isabs(name) or name.startswith("..") for name in names):
        return Described(root, paths, [PurePosixPath(name).as_posix() for name in names], captions)
    paths = [Path(os.path.normpath(path)) for path in paths]
    shared = Path(os.path.commonpath([path.parent for path in paths]))
    return Described(shared, paths, [path.relative_to(shared).as_posix() for path in paths], captions)


def _check_there(where: Path, paths: Sequence[Path]) -> None:
    """A few missing pictures are left out where they are read; where all are, something else is wrong."""
    some = paths[:: max(len(paths) // LOOKED_FOR, 1)]
    if not any(os.path.exists(path) for path in some):
        told = f"{where}: none of its pictures is there, such as {paths[0]}"
        raise ValueError(f"{told}; images=DIR says where they lie")


def _inside(name: str, where: Path) -> str:
    """A file name that stays below its folder, since a data set may come from anywhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{where}: file_name {name!r} points outside its folder")
    return path.as_posix()
