"""The verb `embed`: pictures to a Parquet table of embeddings, and a table up to date when its pictures changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch.nn.functional as F
from torch import Tensor

from synoptic.apps.parts import parts_of
from synoptic.apps.reading import Reading
from synoptic.apps.table import Dtype, Made, Table, Tokens, schema, write_table
from synoptic.data.inputs import ReadBatch
from synoptic.data.listing import expand
from synoptic.files import check_file, write_atomically
from synoptic.predict import VisionModel, load
from synoptic.weights.folder import model_hash
from synoptic.weights.options import FILES, LoadOptions
from synoptic.weights.zoo import is_name

Key = tuple[str, str]  # path and content hash of a picture

_HASHING = 4  # threads, which mostly wait for the disk


@dataclass(frozen=True)
class Tally:
    """What became of the pictures, against the table that was there before.

    Attributes:
        new, changed, renamed, kept: pictures in the table, by what they were in the one before.
        dropped: pictures of the one before that are not among IMAGES any more, or cannot be read any more.
        left_out: pictures that could not be read; they are named in the log.
    """

    new: int = 0
    changed: int = 0
    renamed: int = 0
    dropped: int = 0
    kept: int = 0
    left_out: int = 0

    @property
    def is_same(self) -> bool:
        """Whether the table is what it was."""
        return not (self.new or self.changed or self.renamed or self.dropped)

    def __str__(self) -> str:
        renamed = f"{self.renamed} renamed, " if self.renamed else ""
        return f"{self.new} new, {self.changed} changed, {renamed}{self.dropped} dropped, {self.kept} kept"


def embed(
    images: str | Path,
    model: str | Path | VisionModel,
    out: str | Path,
    tokens: Tokens = "summary",
    adaptor: str | None = None,
    dtype: Dtype = "float32",
    overwrite: bool = False,
    options: LoadOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tally:
    """Writes the embeddings of pictures, or brings those that lie in `out` up to date.

    Pictures whose path and content the table has already keep their rows, as do those that have only another path now;
    new and changed ones are embedded, and come after the others; those that are gone are dropped. What a killed call
    had done is kept beside the table, and the next call goes on with it; the table itself is always whole.

    Columns: path, content_hash (of the file's bytes), width, height (of the picture, upright), model, weights_hash and
    embedding (L2-normalised); for patches also row and column. The file's metadata tell how it was made.

    Args:
        images: a file, folder (any depth), glob or `.txt` list: all pictures that the table is to hold.
        model: a MODEL, or one that is loaded.
        out: the `.parquet` file.
        tokens: one embedding a picture, or one a patch.
        adaptor: a student's teacher in whose space the embeddings lie; None takes the model's own.
        dtype: what embeddings are stored in; float16 takes half the space and rounds to three digits.
        overwrite: throws away what lies in `out`, whatever it is.
        options: what a weights file of other makers does not say itself.
        progress: told how many of how many pictures are done.
    Returns:
        How many pictures were new, kept and so on.
    Raises:
        ValueError: `out` cannot be written or has another ending, or holds a table of other weights, another kind or
            of pictures that are there and that IMAGES does not name; no pictures, no such model or adaptor, or none of
            the pictures can be read.
    """
    reading, out = Reading(str(images), progress), expand(out)
    check_file(out)
    if out.suffix.lower() != ".parquet":
        raise ValueError(f"out={out}: embeddings become a Parquet table; give a name that ends in .parquet")
    vision, made = _loaded(model, options or LoadOptions(), tokens, adaptor)
    embedder = Embedder(vision, made, dtype)
    files = {_text(path): path for path in reading.paths}
    hashes = _hashes(files)
    with parts_of(out, made, anew=overwrite) as parts:
        before = [embedder.fitting(out)] if out.exists() and not overwrite else []
        old = dict(_keys(before))
        _check_dropped(out, old, hashes)
        plan = planned(hashes, _keys([*before, *map(embedder.fitting, parts.paths())]))
        _check_shared(out, old, plan, hashes)
        reading.skip(len(plan.rows))
        for batch in reading.batches(vision, [files[path] for path in plan.missing]):
            parts.add(embedder.rows(batch, hashes))
        parts.flush()
        tables = [*before, *map(Table, parts.paths())]
        plan = planned(hashes, _keys(tables))  # what it lacks cannot be read
        tally = _tally(old, plan)
        if not before or not tally.is_same:
            write_atomically(out, lambda file: write_table(file, _chosen(tables, dict(plan.rows)), made))
        parts.clear()
    return tally


@dataclass(frozen=True)
class Plan:
    """Where the rows of each picture come from.

    Attributes:
        rows: picture that is embedded -> path under which it is wanted.
        missing: paths that have to be embedded.
    """

    rows: Mapping[Key, str]
    missing: Sequence[str]


class Embedder:
    """Makes rows of a table.

    Args:
        vision: the model.
        made: what the table is to be made with.
        dtype: of the embeddings.
    """

    def __init__(self, vision: VisionModel, made: Made, dtype: Dtype):
        if made.adaptor is not None and made.adaptor not in vision.adaptors:
            has = ", ".join(vision.adaptors) or "none"
            raise ValueError(f"{vision.name} has no adaptor {made.adaptor!r}; it has {has}")
        self._vision, self._made, self._dtype = vision, made, dtype
        self._hash = model_hash(vision.model, vision.preprocess)

    def rows(self, batch: ReadBatch, hashes: Mapping[str, str]) -> pa.Table:
        """The rows of some pictures."""
        adaptor = self._made.adaptor
        answer = self._vision(batch.images, adaptors=() if adaptor is None else (adaptor,))
        features = answer if adaptor is None else answer.adaptors[adaptor]
        paths = [_text(str(path)) for path in batch.inputs]
        columns: dict[str, Any] = {
            "path": paths,
            "content_hash": [hashes[path] for path in paths],
            "width": [width for _, width in batch.sizes],
            "height": [height for height, _ in batch.sizes],
            "model": [self._vision.name] * len(paths),
            "weights_hash": [self._hash] * len(paths),
        }
        vectors = features.summary
        if self._made.tokens == "patches":
            columns, vectors = _of_patches(columns, features.grid), features.patches.flatten(0, 1)
        if vectors is None:
            whose = f"adaptor={self._made.adaptor}: it" if self._made.adaptor else "this model"
            raise ValueError(f"{whose} has no summary of a picture; take tokens=patches")
        columns["embedding"] = _fixed_size(vectors, self._dtype)
        return pa.table(columns, schema=schema(vectors.shape[1], self._made.tokens, self._dtype))

    def fitting(self, path: Path) -> Table:
        """A table that lies there already.

        Raises:
            ValueError: it is none, or holds other embeddings than this one makes.
        """
        mend = "overwrite=true makes all anew, another out= keeps it"
        table = Table(path)
        table.check_model(self._vision.name, self._hash, mend)
        was, wanted = _kind(table.made, table.dtype), _kind(self._made, self._dtype)
        different = [f"{key}={_typed(was[key])}, not {_typed(wanted[key])}" for key in was if was[key] != wanted[key]]
        if different:
            raise ValueError(f"{path} holds embeddings with {different[0]}; {mend}")
        if not table.is_plain:
            raise ValueError(f"{path} has columns that embed does not write; {mend}")
        return table


def _loaded(
    model: str | Path | VisionModel, options: LoadOptions, tokens: Tokens, adaptor: str | None
) -> tuple[VisionModel, Made]:
    """The model, and how to load it again from wherever."""
    if isinstance(model, VisionModel):
        return model, Made(None, {}, tokens, adaptor)
    said = {key: value for key, value in asdict(options).items() if value is not None}
    vision = load(model, **said)
    said |= {key: _anywhere(said[key]) for key in FILES if key in said}
    return vision, Made(str(model) if is_name(model) else _anywhere(model), said, tokens, adaptor)


def _anywhere(path: str | Path) -> str:
    """A path as it is found from any folder; a name that is no path as it is."""
    expanded = os.path.expanduser(path)
    return os.path.abspath(expanded) if os.path.exists(expanded) else str(path)


def planned(hashes: Mapping[str, str], known: Iterable[Key]) -> Plan:
    """Rows go to the picture of the same path and content, or else to one of the same content.

    Args:
        hashes: path -> content hash of the pictures that are wanted, empty where a file cannot be read.
        known: pictures that are embedded.
    """
    there = dict.fromkeys(known)
    rows = {key: key[0] for key in hashes.items() if key in there}
    free = {key[1]: key for key in there if key not in rows}
    missing = []
    for path, hashed in hashes.items():
        if (path, hashed) in rows:
            continue
        if hashed in free:
            rows[free.pop(hashed)] = path
        else:
            missing.append(path)
    return Plan(rows, missing)


def _keys(tables: Iterable[Table]) -> Iterator[Key]:
    return (key for table in tables for key in table.pictures())


def _tally(old: Mapping[str, str], plan: Plan) -> Tally:
    kept = changed = renamed = 0
    for key, path in plan.rows.items():
        was_there = old.get(key[0]) == key[1]
        kept += was_there and path == key[0]
        renamed += was_there and path != key[0]
        changed += not was_there and path in old
    wanted = set(plan.rows.values())
    dropped = sum(key not in plan.rows and key[0] not in wanted for key in old.items())
    new = len(plan.rows) - kept - changed - renamed
    return Tally(new, changed, renamed, dropped, kept, len(plan.missing))


def _check_dropped(out: Path, old: Mapping[str, str], hashes: Mapping[str, str]) -> None:
    """Pictures that were deleted are dropped; those whose files are there, but that were not named, are not."""
    there = [path for path in old if path not in hashes and os.path.isfile(path)]
    if there:
        raise ValueError(
            f"{out} holds {len(there)} pictures that are there and that IMAGES does not name, such as {there[0]}; name "
            "all that it is to hold (a folder above, a glob or a .txt list) or another out=; overwrite=true drops them"
        )


def _check_shared(out: Path, old: Mapping[str, str], plan: Plan, hashes: Mapping[str, str]) -> None:
    """A table of which nothing would be left is more likely another one, or named from another folder."""
    if old and not any(key in plan.rows for key in old.items()) and not old.keys() & hashes.keys():
        raise ValueError(
            f"{out} holds {len(old)} pictures, none of which is there any more or named by IMAGES, such as "
            f"{next(iter(old))}; paths are seen from this folder; name another out=, or overwrite=true drops them"
        )


def _chosen(tables: Iterable[Table], rows: dict[Key, str]) -> Iterator[pa.RecordBatch]:
    """The rows of the pictures that are wanted, under the paths that they have now."""
    for table in tables:
        found: set[Key] = set()
        for batch in table.batches():
            keys = list(zip(*(batch.column(name).to_pylist() for name in ("path", "content_hash")), strict=True))
            places = [place for place, key in enumerate(keys) if key in rows]
            found.update(keys[place] for place in places)
            names = pa.array([rows[keys[place]] for place in places], pa.string())
            yield batch.take(pa.array(places, pa.int64())).set_column(0, "path", names)
        for key in found:  # a picture's rows come from one table
            del rows[key]


def _hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """Path -> content hash, empty where a file cannot be read."""
    places = list(files.values())
    hashes: list[str] = []
    with ThreadPoolExecutor(_HASHING) as pool:
        for start in range(0, len(places), 1000):  # a pool holds something of every file that waits
            hashes.extend(pool.map(_content_hash, places[start : start + 1000]))
    return dict(zip(files, hashes, strict=True))


def _content_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError:
        return ""  # whoever reads the picture says why


def _text(path: Any) -> str:
    """A path as a text that any file may hold; names of files may be any bytes."""
    return str(path).encode(errors="backslashreplace").decode()


def _of_patches(rows: Mapping[str, list[Any]], grid: tuple[int, int]) -> dict[str, Any]:
    """Rows of pictures as rows of their patches."""
    height, width = grid
    pictures = len(rows["path"])
    repeated = {name: [value for value in values for _ in range(height * width)] for name, values in rows.items()}
    place = {
        "row": [row for row in range(height) for _ in range(width)] * pictures,
        "column": list(range(width)) * height * pictures,
    }
    return repeated | place


def _fixed_size(vectors: Tensor, dtype: Dtype) -> pa.FixedSizeListArray:
    """(n, C) as n lists of C, L2-normalised."""
    unit = F.normalize(vectors.float(), dim=-1).cpu().contiguous().numpy().astype(dtype)
    return pa.FixedSizeListArray.from_arrays(pa.array(unit.reshape(-1)), unit.shape[1])


def _kind(made: Made, dtype: Dtype) -> dict[str, str | None]:
    """What may differ between tables of one model."""
    return {"tokens": made.tokens, "adaptor": made.adaptor, "dtype": dtype}


def _typed(value: str | None) -> str:
    return "none" if value is None else value
