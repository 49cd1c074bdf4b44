"""What a DIR argument means: pictures with what is known of them, in parts for training, validation and test."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from synoptic.data.bands import read_bands
from synoptic.data.captions import captions_beside, described, is_describing, tell_once
from synoptic.data.listing import expand, list_images, missing, pictures_in
from synoptic.data.members import Member
from synoptic.data.pictures import PictureError, UnreadableLog, read_picture
from synoptic.data.shard_names import is_shard, named_shards, shards_in
from synoptic.data.shards import keys_of, read_shards
from synoptic.files import cache_folder

__all__ = ["Source", "concatenate", "list_images", "open_source", "parts_of", "share_errors"]

logger = logging.getLogger(__name__)

_SCENES = "scenes:"
WEIGHED = 1000  # files of a source whose sizes tell it from another one with the same names
SPLITS = ("train", "validation", "test", "all")
_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
_Parts = Mapping[str, Callable[[], "Source"]]


class Source:
    """Pictures and what is known of them; picture i of `paths` has label i, captions i and mask i.

    Args:
        root: what the paths are below; names the source in messages.
        paths: the pictures: files, or members of archives.
        classes: names of the classes; empty without labels.
        labels: (n,) int64 class of each picture, or None.
        captions: any number of captions a picture.
        masks: the mask file of each picture, or None.
        keys: what tells each picture from the others, wherever their folder lies; by default its path below `root`.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[Path | Member],
        classes: Sequence[str] = (),
        labels: np.ndarray | None = None,
        captions: Sequence[tuple[str, ...]] | None = None,
        masks: Sequence[Path] | None = None,
        keys: Sequence[str] | None = None,
    ):
        self.root = root
        self.paths: list[Path | Member] = list(paths)
        self.classes = tuple(classes)
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.captions = [()] * len(self.paths) if captions is None else list(captions)
        self.masks = None if masks is None else list(masks)
        self.keys = _keys(paths, root) if keys is None else list(keys)
        self.errors: UnreadableLog | PartOfLog = UnreadableLog(str(root), len(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The picture's path, for messages."""
        return str(self.paths[index])

    def read(self, index: int, longest: int | None = None, bands: int | None = None) -> np.ndarray:
        """One picture, upright, its longer side at most `longest` pixels.

        Args:
            index: which one.
            longest: None leaves the picture's size as it is.
            bands: None reads (H, W, 3) uint8, RGB; a number (H, W, bands) float32 at full depth (see `data.bands`).

        Raises:
            PictureError: the picture cannot be used, or has another number of bands.
        """
        path = self.paths[index]
        return read_picture(path, longest) if bands is None else read_bands(path, bands, longest)

    def pictures(self, longest: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Every readable picture once, in order, with its index; the others are recorded (see `record_errors`).

        Raises:
            ValueError: more of them cannot be read than is allowed (see `allow_unreadable`).
        """
        for index in range(len(self)):
            try:
                yield index, self.read(index, longest)
            except PictureError as error:
                self.errors.note([], [(index, error)])

    def record_errors(self, path: Path) -> None:
        """Lists unreadable files in `path` (JSON lines of `path` and `reason`) from now on, once each."""
        self.errors.write_to(path)

    def allow_unreadable(self, share: float) -> None:
        """Makes more than this share of unreadable pictures an error, in place of 5 %; called before any is read.

        Args:
            share: the value of `loader.unreadable`, in [0, 1]; 1 allows all.
        """
        self.errors = UnreadableLog(str(self.root), len(self), share)

    def select(self, indices: Sequence[int]) -> Source:
        """The source that holds these pictures alone, in this order."""
        return Source(
            self.root,
            [self.paths[index] for index in indices],
            self.classes,
            None if self.labels is None else self.labels[list(indices)],
            [self.captions[index] for index in indices],
            None if self.masks is None else [self.masks[index] for index in indices],
            [self.keys[index] for index in indices],
        )

    def sample(self, count: int) -> Source:
        """At most `count` pictures, evenly from all of them; those that cannot be read count among all of them."""
        if len(self) <= count:
            return self
        indices = [place * len(self) // count for place in range(count)]
        sample = self.select(indices)
        sample.errors = PartOfLog(self.errors, indices)
        return sample

    def fingerprint(self, captions: bool) -> str:
        """16 hexadecimal digits that tell sets of pictures apart: SHA-256 of their keys in order, with their captions
        where `captions` says so, and of the sizes of some of the files. What the pictures show is not looked at."""
        digest = hashlib.sha256()
        every = max(len(self) // WEIGHED, 1)
        digest.update(json.dumps([_bytes_of(path) for path in self.paths[::every]]).encode())
        for key, texts in zip(self.keys, self.captions, strict=True):
            digest.update(json.dumps([_composed(key), *(texts if captions else ())]).encode())
        return digest.hexdigest()[:16]


def _bytes_of(path: Path | Member) -> int | None:
    try:
        return path.size if isinstance(path, Member) else path.stat().st_size
    except OSError:  # told when it is read
        return None


class PartOfLog:
    """The log of a whole, for a part of its pictures by their own numbers.

    Args:
        whole: the log.
        indices: which numbers of the whole they are.
    """

    def __init__(self, whole: UnreadableLog | PartOfLog, indices: Sequence[int]):
        self.total: int = whole.total
        self.allowed: float | None = whole.allowed
        self.limit: float = whole.limit
        self._whole = whole
        self._indices = indices

    def write_to(self, path: Path) -> None:
        self._whole.write_to(path)

    def note(self, asked: Sequence[int], failed: Iterable[tuple[int, PictureError]]) -> None:
        of = self._indices
        self._whole.note([of[index] for index in asked], [(of[index], error) for index, error in failed])

    def __contains__(self, index: int) -> bool:
        return self._indices[index] in self._whole

    def __len__(self) -> int:
        return sum(index in self._whole for index in self._indices)


def share_errors(sources: Sequence[Source]) -> None:
    """Makes several parts of a data set keep one list of unreadable pictures, so that their share of all counts.

    The first part says how many are allowed.
    """
    title = ",".join(dict.fromkeys(str(source.root) for source in sources))
    whole = UnreadableLog(title, sum(map(len, sources)), sources[0].errors.allowed)
    start = 0
    for source in sources:
        source.errors = PartOfLog(whole, range(start, start + len(source)))
        start += len(source)


def concatenate(sources: Sequence[Source]) -> Source:
    """Several sources one after the other.

    Labels are kept where all have the same classes, masks where all have masks.
    """
    if len(sources) == 1:
        return sources[0]
    labels = [source.labels for source in sources if source.labels is not None]
    masks = [source.masks for source in sources if source.masks is not None]
    same_classes = len(labels) == len(sources) and len({source.classes for source in sources}) == 1
    roots = ",".join(str(source.root) for source in sources)
    if labels and not same_classes:
        logger.warning("no labels are used: the class folders of %s differ", roots)
    return Source(
        Path(roots),
        list(chain.from_iterable(source.paths for source in sources)),
        sources[0].classes if same_classes else (),
        np.concatenate(labels) if same_classes else None,
        list(chain.from_iterable(source.captions for source in sources)),
        list(chain.from_iterable(masks)) if len(masks) == len(sources) else None,
        list(chain.from_iterable(source.keys for source in sources)),
    )


def open_source(
    spec: str,
    split: str = "train",
    *,
    captions: bool = False,
    validation: float = 0.1,
    images: str | None = None,
) -> Source:
    """Opens what a DIR argument names.

    Args:
        spec: a folder of pictures; a data set (a folder with `train/` inside, and `validation/`, `val/` or `test/`);
            a captions or instances JSON of COCO's form; a table of paths and captions (`.csv`, `.tsv`, `.parquet`);
            WebDataset shards (`x-{000..009}.tar`, a glob, a folder of them); `scenes:` with settings
            (`scenes:count=2000,size=96,objects=1,seed=0`); or several of them, comma-separated.
        split: train, validation, test, or all: everything but the test part.
        captions: keep only pictures that have captions.
        validation: share of the training pictures, in (0, 1), set apart for validation where the set has no such part.
            It depends on the pictures' names alone.
        images: the folder that the names in a JSON or a table are relative to, or one for each of several, in their
            order, comma-separated; None takes `images/` beside a JSON, and the folder that a table is in.

    Raises:
        ValueError: nothing there, no picture, no such part, no captions where they are asked for, or `images` where
            there is nothing that it says something of.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split} is none of {', '.join(SPLITS)}")
    if not 0 < validation < 1:
        raise ValueError(f"loader.validation={validation:g} is no share above 0 and below 1")
    sets = _split_spec(spec)
    folders = _picture_folders(sets, images)
    return concatenate(
        [
            _open(part, _parts(part, folder), split, captions, validation)
            for part, folder in zip(sets, folders, strict=True)
        ]
    )


def parts_of(spec: str) -> tuple[str, ...]:
    """The parts that every set of a DIR argument brings along, of train, validation and test; at least train."""
    found = [_parts(part) for part in _split_spec(spec)]
    return tuple(name for name in _FOLDERS if all(name in parts for parts in found))


def _picture_folders(sets: Sequence[str], images: str | None) -> list[Path | None]:
    """Where the pictures of each set lie, as far as `images` says so."""
    if images is None:
        return [None] * len(sets)
    given = [expand(folder) for folder in _split_spec(images, "images")]
    asking = [number for number, part in enumerate(sets) if is_describing(expand(part))]
    if not asking:
        raise ValueError(
            f"images={images}: only a captions JSON or a table asks for it, and data has none; leave it out"
        )
    if len(given) not in (1, len(asking)):
        counts = f"names {len(given)} folders for the {len(asking)} captions files in data"
        raise ValueError(f"images={images}: {counts}; give one for all, or one for each")
    folders = dict(zip(asking, given * len(asking) if len(given) == 1 else given, strict=True))
    return [folders.get(number) for number in range(len(sets))]


def _split_spec(spec: str, key: str = "data") -> list[str]:
    """The sets of a comma-separated list; a comma may also belong to a path, to braces, or to settings of `scenes:`."""
    if not spec.strip():
        raise ValueError(f"{key} is empty: name a folder of pictures")
    if os.path.exists(expand(spec)):
        return [spec]
    parts: list[str] = []
    for piece in (piece.strip() for piece in re.split(r",(?![^{}]*\})", spec)):
        joined = f"{parts[-1]},{piece}" if parts else ""
        is_setting = joined.startswith(_SCENES) and re.fullmatch(r"\w+=\S*", piece)
        if joined and (is_setting or os.path.exists(expand(joined))):
            parts[-1] = joined
        elif piece:
            parts.append(piece)
    return parts


def _open(spec: str, parts: _Parts, split: str, captions: bool, validation: float) -> Source:
    source = _take(spec, parts, split, validation)
    if not captions:
        return source
    captioned = [index for index, texts in enumerate(source.captions) if texts]
    if not captioned:
        raise ValueError(_no_captions(spec))
    if len(captioned) < len(source):
        logger.info("%s: %d of %d pictures have captions", spec, len(captioned), len(source))
    return source.select(captioned)


def _take(spec: str, parts: _Parts, split: str, validation: float) -> Source:
    if split == "test":
        if "test" not in parts:
            raise ValueError(f"{spec} has no test part: a data set has folders train/ and test/")
        return parts["test"]()
    if split == "validation" and "validation" in parts:
        return parts["validation"]()
    source = parts["train"]()
    if "validation" in parts:
        return source if split == "train" else concatenate([source, parts["validation"]()])
    if split == "all":
        return source
    held_out = _held_out(source, validation)
    if split == "validation" and not held_out:
        raise ValueError(f"{spec} holds a single picture: none is left for validation")
    return source.select([index for index in range(len(source)) if (index in held_out) == (split == "validation")])


def _held_out(source: Source, share: float) -> set[int]:
    """Which pictures are set apart: those whose names hash lowest, so that a new picture moves few of the others."""
    count = min(max(round(share * len(source)), 1), len(source) - 1)
    digests = [hashlib.sha256(_composed(key).encode(errors="surrogateescape")).digest() for key in source.keys]
    return set(sorted(range(len(digests)), key=digests.__getitem__)[:count])


def _composed(key: str) -> str:
    """A key in the one form of accented letters that all file systems are made to agree on."""
    return unicodedata.normalize("NFC", key)


def _keys(paths: Sequence[Path | Member], root: Path) -> list[str]:
    """What tells pictures apart wherever their folder lies: their paths below it, with slashes."""
    start = len((root / "x").as_posix()) - 1
    return [str(path).replace(os.sep, "/")[start:] for path in paths]


def _parts(spec: str, images: Path | None = None) -> _Parts:
    """How to open each part of one set; `images` says where the pictures that a file names lie."""
    if shards := named_shards(spec):
        return {"train": partial(_open_shards, spec, shards)}
    path = _scenes(spec) if spec.startswith(_SCENES) else expand(spec)
    if os.path.isfile(path):
        return {"train": partial(_open_file, path, images)}
    if not os.path.isdir(path):
        raise missing(path)
    folders = _split_folders(path)
    if not folders:
        return {"train": partial(_open_folder, path)}
    return {name: partial(_open_folder, folder, folders["train"]) for name, folder in folders.items()}


def _scenes(spec: str) -> Path:
    """The folder of built-in scenes with the settings of `spec`, drawn when it is asked for the first time."""
    from synoptic.data import scenes  # here, since only the generator needs pycocotools

    settings: dict[str, Any] = {"count": 2000}
    for setting in filter(None, spec.removeprefix(_SCENES).split(",")):
        name, _, value = setting.partition("=")
        if name == "objects":
            settings[name] = scenes.parse_objects(value)
        elif name in ("count", "size", "seed") and value.isdecimal():
            settings[name] = int(value)
        else:
            raise ValueError(f"{spec}: {setting} is none of count=N, size=PIXELS, objects=1..6, seed=N")
    config = scenes.SceneConfig(**settings)
    few, many = config.objects
    cache = cache_folder("scenes")
    folder = cache / f"v{scenes.FORMAT}-count{config.count}-size{config.size}-objects{few}..{many}-seed{config.seed}"
    if not folder.exists():
        logger.info("drawing %d scenes into %s", config.count, folder)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            scenes.write(folder, config, workers=1)  # more would start the caller's script again in each process
        except OSError as error:
            if not folder.exists():  # otherwise another process was first
                raise ValueError(f"{spec}: cannot write {folder}: {error.strerror}; set XDG_CACHE_HOME") from None
    return folder


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of a data set with parts; empty where `root` is a plain folder of pictures."""
    found = {part: root / name for part, names in _FOLDERS.items() for name in names[::-1] if (root / name).is_dir()}
    if "train" not in found:
        return {}
    others = [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    return found if len(found) > 1 or len(others) == 1 else {}


def _open_folder(folder: Path, train: Path | None = None) -> Source:
    """One folder of pictures; a class has the number that it has in `train`, even where a part lacks some classes."""
    known = () if train in (None, folder) else _open_folder(train).classes
    if shards := shards_in(folder):
        return _open_shards(str(folder), shards, known)
    root = folder / "images" if (folder / "images").is_dir() else folder
    paths = pictures_in(root)
    keys = _keys(paths, root)
    classes, labels = _classes(_class_folders(keys), known)
    masks = _masks(keys, folder / "masks") if root != folder and (folder / "masks").is_dir() else None
    captions = captions_beside(keys, folder / "captions.json") if (folder / "captions.json").is_file() else None
    return Source(root, paths, classes, labels, captions, masks)


def _open_file(path: Path, images: Path | None) -> Source:
    """The pictures that a file names, or those in a shard."""
    if is_shard(path):
        return _open_shards(str(path), [path])
    if not is_describing(path):
        forms = "a captions file (.json, .csv, .tsv, .parquet) or shards (.tar)"
        raise ValueError(f"{path} is a file: data is a folder of pictures, {forms}")
    found = described(path, images)
    return Source(found.root, found.paths, captions=found.captions, keys=found.keys)


def _open_shards(spec: str, shards: Sequence[Path], known: Sequence[str] = ()) -> Source:
    """Pictures in shards, in the order of their names there; classes where every picture has one."""
    samples = read_shards(spec, shards)
    names = [sample.label for sample in samples]
    if 0 < (lacking := names.count(None)) < len(names):
        tell_once(f"{spec}: no classes are used, since {lacking} of its {len(names)} pictures have none")
    classes, labels = _classes(names, known)
    captions = [sample.captions for sample in samples]
    root = shards[0] if len(shards) == 1 else expand(spec)
    return Source(root, [sample.picture for sample in samples], classes, labels, captions, keys=keys_of(samples))


def _class_folders(keys: Sequence[str]) -> list[str | None]:
    """Class folders: where every picture lies exactly one folder deep, the folder is its class."""
    if any(key.count("/") != 1 for key in keys):
        return [None] * len(keys)
    return [key.partition("/")[0] for key in keys]


def _classes(names: Sequence[str | None], known: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray | None]:
    """The classes, those that are known first, and the number of each picture's; none where a picture has none."""
    named = [name for name in names if name is not None]
    if len(named) < len(names):
        return (), None
    classes = (*known, *sorted(set(named) - set(known)))
    number = {name: index for index, name in enumerate(classes)}
    return classes, np.array([number[name] for name in named], dtype=np.int64)


def _masks(keys: Sequence[str], folder: Path) -> list[Path]:
    masks = [folder / f"{os.path.splitext(key)[0]}.png" for key in keys]
    lacking = [mask for mask in masks if not mask.is_file()]
    if lacking:
        raise ValueError(f"{len(lacking)} of {len(masks)} masks are missing, such as {lacking[0]}")
    return masks


def _no_captions(spec: str) -> str:
    path = expand(spec)
    if path.is_file() and not is_shard(path):
        return f"{spec} has no captions: none of its {'annotations' if path.suffix == '.json' else 'rows'} has one"
    if named_shards(spec) or is_shard(path) or (path.is_dir() and shards_in(path)):
        return f"{spec} has no captions: none of its pictures has a .txt, or a .json with caption or text, beside it"
    others = [str(other) for other in sorted(path.glob("*captions*.json"))] if path.is_dir() else []
    if others:
        return f"{spec} has no captions for its pictures; name a captions file as data: {' or '.join(others)}"
    return f"{spec} has no captions: put a captions.json of COCO's form beside images/, or name such a file as data"
