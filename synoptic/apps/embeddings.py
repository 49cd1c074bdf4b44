"""The verb `embed`: pictures to a Parquet table of embeddings, a row a picture or a row a patch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch.nn.functional as F
from torch import Tensor

from synoptic.apps.reading import Reading
from synoptic.data.inputs import ReadBatch
from synoptic.files import check_file
from synoptic.predict import VisionModel, load
from synoptic.types import Features
from synoptic.weights.folder import weights_hash

Tokens = Literal["summary", "patches"]


def embed(
    images: str,
    model: str | VisionModel,
    out: Path,
    tokens: Tokens = "summary",
    adaptor: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes the embeddings of pictures; the file appears when it is whole.

    Columns: path, content_hash (of the file's bytes), width, height (of the picture, upright), model, weights_hash and
    embedding (float32, L2-normalised); for patches also row and column.

    Args:
        images: a file, folder (any depth), glob or `.txt` list.
        model: a MODEL, or one that is loaded.
        out: the `.parquet` file.
        tokens: one embedding a picture, or one a patch.
        adaptor: a student's teacher in whose space the embeddings lie; None takes the model's own.
        progress: told how many of how many pictures are done.
    Returns:
        How many pictures could not be read; they are named in the log and left out.
    Raises:
        ValueError: `out` cannot be written or has another ending, no pictures, no such model or adaptor, or none of the
            pictures can be read.
    """
    reading = Reading(images, progress)
    check_file(out)
    if out.suffix.lower() != ".parquet":
        raise ValueError(f"out={out}: embeddings become a Parquet table; give a name that ends in .parquet")
    vision = model if isinstance(model, VisionModel) else load(model)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        _write(partial, _tables(vision, reading, tokens, adaptor))
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return reading.left_out


def _write(path: Path, tables: Iterator[pa.Table]) -> None:
    writer: pq.ParquetWriter | None = None
    try:
        for table in tables:
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer:
            writer.close()


def _tables(vision: VisionModel, reading: Reading, tokens: Tokens, adaptor: str | None) -> Iterator[pa.Table]:
    """The rows of one batch after the other."""
    if adaptor is not None and adaptor not in vision.adaptors:
        has = ", ".join(vision.adaptors) or "none"
        raise ValueError(f"{vision.name} has no adaptor {adaptor!r}; it has {has}")
    hashed = weights_hash(vision.model)
    for batch in reading.batches(vision):
        answer = vision(batch.images, adaptors=() if adaptor is None else (adaptor,))
        features = answer if adaptor is None else answer.adaptors[adaptor]
        rows = _picture_rows(batch, vision.name, hashed)
        yield _summaries(rows, features) if tokens == "summary" else _patches(rows, features)


def _picture_rows(batch: ReadBatch, name: str, weights: str) -> dict[str, list[Any]]:
    paths = [Path(str(path)) for path in batch.inputs]
    return {
        "path": [str(path) for path in paths],
        "content_hash": [hashlib.sha256(path.read_bytes()).hexdigest()[:32] for path in paths],
        "width": [width for _, width in batch.sizes],
        "height": [height for height, _ in batch.sizes],
        "model": [name] * len(paths),
        "weights_hash": [weights] * len(paths),
    }


def _summaries(rows: dict[str, list[Any]], features: Features) -> pa.Table:
    if features.summary is None:
        raise ValueError("this model has no summary of a picture; take tokens=patches")
    return pa.table({**rows, "embedding": _fixed_size(features.summary)})


def _patches(rows: dict[str, list[Any]], features: Features) -> pa.Table:
    height, width = features.grid
    count = height * width
    pictures = len(features.patches)
    repeated = {name: [value for value in values for _ in range(count)] for name, values in rows.items()}
    place = {
        "row": [row for row in range(height) for _ in range(width)] * pictures,
        "column": list(range(width)) * height * pictures,
    }
    return pa.table({**repeated, **place, "embedding": _fixed_size(features.patches.flatten(0, 1))})


def _fixed_size(vectors: Tensor) -> pa.FixedSizeListArray:
    """(n, C) as n lists of C float32, L2-normalised."""
    unit = F.normalize(vectors.float(), dim=-1).cpu().contiguous()
    return pa.FixedSizeListArray.from_arrays(pa.array(unit.flatten().numpy()), unit.shape[1])
