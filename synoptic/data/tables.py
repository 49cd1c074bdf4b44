"""Tables of pictures and captions: CSV, TSV and Parquet, whose columns are found by their names."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synoptic.data.pictures import EXTENSIONS

TABLES = (".csv", ".tsv", ".parquet")
# As tables of captions name their columns (open_clip's, Conceptual Captions', Flickr30k's); the first one found counts.
PATHS = (
    *("path", "filepath", "file_path", "filename", "file_name", "file", "image_path", "image_file", "image_name"),
    *("image", "img_path", "img"),
)
CAPTIONS = ("caption", "captions", "text", "texts", "title", "sentence", "sentences", "description", "comment")
DELIMITERS = (",", "\t", ";", "|")  # whatever the ending says: open_clip separates .csv by tabs

SHOWN = 80  # characters of a line in an error
_WANTED = f"needs a column of paths ({', '.join(PATHS)}) and one of captions ({', '.join(CAPTIONS)})"

Row = tuple[str, Sequence[object]]  # a picture's path as written, and its captions


def read_table(path: Path) -> list[Row]:
    """The rows of a table of pictures and captions.

    Args:
        path: a `.csv`, `.tsv` or `.parquet` file with a column of paths and one of captions (`PATHS`, `CAPTIONS`, in
            any case); the captions of a Parquet file may be lists of texts.

    Raises:
        ValueError: no such columns, rows that do not fit the header, no text in UTF-8 or UTF-16, or no row.
    """
    rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _text_rows(path)
    if not rows:
        raise ValueError(f"{path} lists no picture")
    return rows


def _text_rows(path: Path) -> list[Row]:
    text = _text(path)
    delimiter, names, texts = _layout(path, io.StringIO(text.lstrip("\r\n"), newline=None).readline().rstrip("\n"))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    wrong: list[str] = []
    try:
        header = next(filter(None, reader))
        for row in filter(None, reader):
            if len(row) == len(header) and row[names].strip():
                rows.append((row[names].strip(), (row[texts],)))
            else:
                wrong.append(f"line {reader.line_num} ({_shown(delimiter.join(row))})")
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; is a quote never closed?") from None
    if wrong:
        told = f"{len(wrong)} of {len(rows) + len(wrong)} rows do not fit the header's {len(header)} columns"
        mend = "name a picture in each, and put a text that holds the separator in double quotes"
        raise ValueError(f"{path}: {told}, such as {wrong[0]}; {mend}")
    return rows


def _text(path: Path) -> str:
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: is no text in UTF-8; save the table as UTF-8") from None


def _layout(path: Path, first: str) -> tuple[str, int, int]:
    """The separator under which a header names both columns, and the numbers of these.

    Raises:
        ValueError: there is none, showing the line.
    """
    if not first:
        raise ValueError(f"{path} is empty")
    for delimiter in DELIMITERS:
        names, texts = _columns(next(csv.reader([first], delimiter=delimiter), []))
        if names is not None and texts is not None:
            return delimiter, names, texts
    ends = {os.path.splitext(field.strip(' "'))[1].lower() for mark in DELIMITERS for field in first.split(mark)}
    if not EXTENSIONS.isdisjoint(ends):
        raise ValueError(f"{path} has no header: put a first line such as path,caption above {_shown(first)}")
    raise ValueError(f"{path}: {_WANTED}; its first line is {_shown(first)}")


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow as pa  # here, since only these tables need it
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            names, texts = _columns(schema.names)
            if names is None or texts is None:
                raise ValueError(f"{path}: {_WANTED}; its columns are {', '.join(schema.names)}")
            paths, captions = schema.field(names), schema.field(texts)
            if not _holds_text(paths.type):
                raise ValueError(f"{path}: column {paths.name} holds {paths.type}, and should hold paths of files")
            if not _holds_text(getattr(captions.type, "value_type", captions.type)):
                raise ValueError(f"{path}: column {captions.name} holds {captions.type}, and should hold texts")
            table = file.read(columns=[paths.name, captions.name])
            table.validate(full=True)  # texts may be no UTF-8
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise ValueError(f"{path} is no Parquet table, or damaged: {' '.join(str(error).split())}") from None
    rows = zip(table[paths.name].to_pylist(), table[captions.name].to_pylist(), strict=True)
    found: list[Row] = [(name, texts if isinstance(texts, list) else (texts,)) for name, texts in rows]
    if lacking := sum(not name for name, _ in found):
        raise ValueError(f"{path}: {lacking} of {len(found)} rows name no picture in {paths.name}")
    return found


def _holds_text(kind: Any) -> bool:
    """Whether an Arrow type holds texts, as they are or by their number in a dictionary."""
    import pyarrow.types as kinds

    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    return kinds.is_string(kind) or kinds.is_large_string(kind)


def _columns(header: Sequence[str]) -> tuple[int | None, int | None]:
    """The numbers of the columns of paths and of captions."""
    plain = [name.strip().lower().replace(" ", "_").replace("-", "_") for name in header]
    return _first(PATHS, plain), _first(CAPTIONS, plain)


def _first(wanted: Sequence[str], header: Sequence[str]) -> int | None:
    return next((header.index(name) for name in wanted if name in header), None)


def _shown(line: str) -> str:
    return repr(line if len(line) <= SHOWN else f"{line[:SHOWN]}...")
