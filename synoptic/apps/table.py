"""The Parquet table of embeddings: what it holds, whether it is whole, its vectors block by block."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synoptic.config import from_dict
from synoptic.models.vit import NAMES

Tokens = Literal["summary", "patches"]
Dtype = Literal["float32", "float16"]

TEXTS = ("path", "content_hash", "model", "weights_hash")  # columns that hold them
DTYPES = {"float32": pa.float32(), "float16": pa.float16()}
BLOCK = 2**25  # bytes of embeddings that are held at once
_MADE = b"synoptic"  # of the file's own metadata, where `Made` stands as JSON
_MEND = "embed with overwrite=true makes it anew"


@dataclass(frozen=True)
class Made:
    """What a table was made with, kept in its metadata.

    Attributes:
        model: the MODEL argument, a path made absolute; None where a loaded model was given.
        load: what was said of the file of that model, see `LoadOptions`.
        tokens: a row a picture, or a row a patch.
        adaptor: the teacher in whose space the embeddings lie; None for the model's own.
    """

    model: str | None = None
    load: Mapping[str, Any] = field(default_factory=dict)
    tokens: Tokens = "summary"
    adaptor: str | None = None


class Table:
    """A file of embeddings, opened; its rows are read when they are asked for.

    Args:
        path: the `.parquet` file.
    Raises:
        ValueError: it is missing, no Parquet file, cut off, or holds other columns.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = pq.ParquetFile(path, pre_buffer=False)  # which would read all row groups ahead
        except FileNotFoundError:
            raise ValueError(f"{path} does not exist; `synoptic embed` writes such a table") from None
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            raise ValueError(f"{path} is no whole Parquet file ({_line(error)}); {_MEND}") from None
        self._check_columns()

    @property
    def columns(self) -> dict[str, Any]:
        """Name and Arrow type of every column, in order."""
        return {field.name: field.type for field in self._file.schema_arrow}

    @property
    def is_plain(self) -> bool:
        """Whether it has the columns that embed writes and no others."""
        return self._file.schema_arrow.equals(schema(self.width, self.made.tokens, self.dtype))

    @property
    def rows(self) -> int:
        """How many embeddings it holds."""
        return self._file.metadata.num_rows

    @property
    def width(self) -> int:
        """Channels of an embedding."""
        return self._type.list_size

    @property
    def dtype(self) -> Dtype:
        """What the embeddings are stored in."""
        return "float16" if pa.types.is_float16(self._type.value_type) else "float32"

    @cached_property
    def made(self) -> Made:
        """What it was made with, as far as the file tells."""
        told = (self._file.schema_arrow.metadata or {}).get(_MADE, b"{}")
        tokens: Tokens = "patches" if "row" in self.columns else "summary"
        try:
            return from_dict(Made, json.loads(told) | {"tokens": tokens}, "its record")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path}: how it was made cannot be read ({_line(error)}); {_MEND}") from None

    @cached_property
    def model(self) -> tuple[str, str]:
        """Name and weights hash of the model; empty texts for a table without rows.

        Raises:
            ValueError: the rows come from several models.
        """
        hashes: set[str] = set()
        name = ""
        for batch in self._batches(["model", "weights_hash"], 2**16):
            hashes.update(batch.column("weights_hash").unique().to_pylist())
            name = name or batch.column("model")[0].as_py()
        if len(hashes) > 1:
            raise ValueError(f"{self.path} holds embeddings of {len(hashes)} models, whose spaces are not one; {_MEND}")
        return name, next(iter(hashes), "")

    def check_model(self, name: str, weights: str, mend: str) -> None:
        """Sees to it that the embeddings are of the model with these weights.

        Raises:
            ValueError: they are of another one, or of several.
        """
        of, hashed = self.model
        if self.rows and hashed != weights:
            random = " (a built-in name stands for other random weights each time)" if self.made.model in NAMES else ""
            raise ValueError(
                f"{self.path} holds embeddings of {of} with the weights {hashed}, and {name} has {weights}{random}; "
                f"{mend}"
            )

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell tables apart: of the size, and of the footer with its statistics."""
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            file.seek(-8, 2)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-8 - length, 2)
            footer = file.read(length)
        return hashlib.sha256(f"{size} ".encode() + footer).hexdigest()[:16]

    def vectors(self) -> Iterator[tuple[int, np.ndarray]]:
        """All embeddings in order, a block at a time: its first row, and (n, C) float32.

        Raises:
            ValueError: an embedding is missing or not finite, or the file is damaged.
        """
        start = 0
        for batch in self._batches(["embedding"], block_rows(self.width, self.dtype)):
            column = batch.column(0)
            numbers = column.flatten()
            if column.null_count or numbers.null_count:
                raise ValueError(f"{self.path} has rows without an embedding, or with a part of one; {_MEND}")
            block = numbers.to_numpy().reshape(-1, self.width)
            if not np.isfinite(block.sum(dtype=np.float32)):
                raise ValueError(
                    f"{self.path} holds embeddings that are no finite numbers: the model that made it fails"
                )
            yield start, block.astype(np.float32, copy=False)
            start += len(block)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows in order, a block at a time."""
        return self._batches(None, block_rows(self.width, self.dtype))

    def pictures(self) -> Iterator[tuple[str, str]]:
        """Path and content hash of every row."""
        for batch in self._batches(["path", "content_hash"], 2**16):
            yield from zip(*(batch.column(name).to_pylist() for name in ("path", "content_hash")), strict=True)

    def paths(self, rows: Sequence[int]) -> list[str]:
        """The pictures of some rows."""
        wanted = np.asarray(rows)
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = np.searchsorted(ends, wanted, side="right")
        found: dict[int, str] = {}
        for group in np.unique(groups):
            column = self._read(lambda group=group: self._file.read_row_group(int(group), columns=["path"]))["path"]
            first = int(ends[group]) - sizes[group]
            found |= {row: column[row - first].as_py() for row in wanted[groups == group].tolist()}
        return [found[row] for row in wanted.tolist()]

    @property
    def _type(self) -> Any:
        return self._file.schema_arrow.field("embedding").type

    def _batches(self, columns: list[str] | None, rows: int) -> Iterator[pa.RecordBatch]:
        batches = self._file.iter_batches(rows, columns=columns)
        while (batch := self._read(lambda: next(batches, None))) is not None:
            yield batch

    def _read(self, read: Any) -> Any:
        try:
            rows = read()
            if rows is not None:
                rows.validate(full=True)  # texts may be no UTF-8
            return rows
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{self.path}: is damaged ({_line(error)}); {_MEND}") from None

    def _check_columns(self) -> None:
        for name in TEXTS:
            kind = self.columns.get(name)
            if kind is None or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise ValueError(f"{self.path} is no table of embeddings: it has no column {name} of texts")
        kind = self.columns.get("embedding", pa.null())
        if not (pa.types.is_fixed_size_list(kind) and kind.list_size > 0 and kind.value_type in DTYPES.values()):
            raise ValueError(
                f"{self.path} is no table of embeddings: it has no column embedding of float32 or float16 lists of one "
                "size"
            )


def schema(width: int, tokens: Tokens, dtype: Dtype) -> pa.Schema:
    """The columns of a table of embeddings of (C,)."""
    texts, numbers = {name: pa.string() for name in TEXTS}, {"width": pa.int64(), "height": pa.int64()}
    kinds = texts | numbers | {"embedding": pa.list_(DTYPES[dtype], width)}
    place = {"row": pa.int64(), "column": pa.int64()} if tokens == "patches" else {}
    names = ("path", "content_hash", "width", "height", "model", "weights_hash", *place, "embedding")
    return pa.schema([(name, (kinds | place)[name]) for name in names])


def block_rows(width: int, dtype: Dtype) -> int:
    """How many embeddings of (C,) a block holds."""
    return max(1, BLOCK // (width * np.dtype(dtype).itemsize))


def write_table(file: IO[bytes] | Path, batches: Iterable[pa.RecordBatch | pa.Table], made: Made) -> None:
    """Writes a table of at least one row, a row group a block; holds one block at a time.

    Args:
        file: where to.
        batches: rows of one schema, as many at a time as there are.
        made: becomes part of the metadata.
    """
    writer: pq.ParquetWriter | None = None
    try:
        for rows in _blocks(batches):
            if writer is None:
                schema = rows.schema.with_metadata({_MADE: json.dumps(asdict(made)).encode()})
                # Embeddings neither repeat nor become smaller; names repeat, and a dictionary holds each once.
                names = [name for name in schema.names if name != "embedding"]
                writer = pq.ParquetWriter(file, schema, compression="none", use_dictionary=names)
            writer.write_table(rows.replace_schema_metadata(writer.schema.metadata))
    finally:
        if writer:
            writer.close()


def _blocks(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[pa.Table]:
    """The same rows, a block at a time; only the last one may be smaller."""
    held: list[pa.Table] = []
    for batch in batches:
        held.append(pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch)
        held[-1] = held[-1].replace_schema_metadata(None)
        kind = held[-1].schema.field("embedding").type
        rows = block_rows(kind.list_size, "float16" if pa.types.is_float16(kind.value_type) else "float32")
        while sum(map(len, held)) >= rows:
            joined = pa.concat_tables(held)
            yield joined.slice(0, rows)
            held = [joined.slice(rows)]
    if sum(map(len, held)):
        yield pa.concat_tables(held)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
