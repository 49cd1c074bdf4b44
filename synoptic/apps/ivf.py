"""An inverted file: the embeddings of a large table in lists of neighbours, of which a search reads the nearest few.

FAISS finds the lists (k-means) and compares vectors; the file is of safetensors, since FAISS reads files of its own
without the care that a file of unknown origin needs, and whole, where here only the lists that are asked for leave the
disk. Source: Jegou et al. 2011, sec. IV (inverted file); Douze et al. 2024 (FAISS, arXiv 2401.08281).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from synoptic.apps.nearest import Nearest, faiss, nearest
from synoptic.apps.table import Table
from synoptic.files import sole_writer, write_atomically

LISTS = 4  # times the square root of the rows: FAISS's advice for a million of them
SAMPLE = 40  # rows a list, from which k-means finds it; below 39 FAISS warns
ITERATIONS = 10
QUERIES, NEIGHBOURS = 500, 10  # rows and neighbours of each, by which the number of lists to read is chosen
RECALL = 0.98  # the share of those neighbours that are found
APART = 4  # times as many lists are read for a query from elsewhere, such as words, whose nearest lie in more of them

_FORMAT = "synoptic inverted file 1"
_NAMES = {"float32": "F32", "float16": "F16", "int64": "I64"}  # of safetensors

Tell = Callable[[int], None]  # of how many rows are done


class InvertedFile:
    """An inverted file, opened.

    Args:
        path: the file.
        table: the table that it was made of.
    Raises:
        ValueError: it is missing, damaged, or was made of another table.
    """

    def __init__(self, path: Path, table: Table):
        try:
            self._file = safe_open(path, framework="numpy")
            facts = self._file.metadata() or {}
            if (facts.get("format"), facts.get("table")) != (_FORMAT, table.fingerprint):
                raise ValueError("made of another table")
            self.probes = int(facts["probes"])
            self._centroids, self._offsets, self._rows = map(self._file.get_tensor, ("centroids", "offsets", "rows"))
            self._vectors = self._file.get_slice("vectors")
            self._check(table)
        except (OSError, SafetensorError, KeyError) as error:
            raise ValueError(str(error)) from None

    @property
    def lists(self) -> int:
        """How many there are."""
        return len(self._centroids)

    def search(self, query: np.ndarray, k: int, apart: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Scores (k,) and rows (k,) of the embeddings nearest to (C,) float32, from lists that hold k at least.

        Args:
            apart: whether the query lies apart from all embeddings, as words do.
        """
        order = nearest(query[None], self._centroids, len(self._centroids))[1][0]
        enough = int(np.searchsorted(np.cumsum(np.diff(self._offsets)[order]), k)) + 1
        found = Nearest(1, k)
        for place in order[: max(self.probes * (APART if apart else 1), enough)]:
            start, stop = self._offsets[place : place + 2].tolist()
            if stop > start:
                found.add(query[None], self._vectors[start:stop].astype(np.float32, copy=False), start)
        scores, places = found.result()
        return scores[0], self._rows[places[0]]

    def _check(self, table: Table) -> None:
        """The shapes and the places that searching relies on."""
        lists, vectors = len(self._centroids), self._vectors
        found = [(array.dtype.name, array.shape) for array in (self._centroids, self._offsets, self._rows)]
        wanted = [("float32", (lists, table.width)), ("int64", (lists + 1,)), ("int64", (table.rows,))]
        whole = (
            found == wanted
            and (vectors.get_dtype(), vectors.get_shape()) == (_NAMES[table.dtype], [table.rows, table.width])
            and (self._offsets[0], self._offsets[-1]) == (0, table.rows)
            and (np.diff(self._offsets) >= 0).all()
            and 0 <= self._rows.min() <= self._rows.max() < table.rows
            and 1 <= self.probes <= lists
        )
        if not whole:
            raise ValueError("damaged")


def build(path: Path, table: Table, progress: Callable[[int, int], None] | None = None) -> None:
    """Writes the inverted file of a table; holds a sample of the rows, and a block of them at a time.

    The number of lists that a search reads is the smallest with which the neighbours of a sample of rows are found.
    Queries that lie apart from all rows, as words do (Liang et al. 2022, arXiv 2203.02053), find fewer of theirs.

    Raises:
        ValueError: another process is at it, or the table is damaged.
        OSError: the file cannot be written.
    """
    tell: Tell = (lambda done: progress(done, 3 * table.rows)) if progress else (lambda done: None)
    work = path.with_name(f".{path.name}.work")
    with sole_writer(work):
        try:
            _build(path, table, tell)
        finally:
            shutil.rmtree(work)


def _build(path: Path, table: Table, tell: Tell) -> None:
    sample, queries = _samples(table, tell)
    centroids = _centroids(sample)
    del sample
    lists, neighbours = _assigned(table, centroids, queries, tell)
    probes = _probes(queries, centroids, lists[neighbours])
    order = np.argsort(lists, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(lists, minlength=len(centroids)))])
    small = {"rows": order.astype(np.int64), "offsets": offsets.astype(np.int64), "centroids": centroids}
    facts = {"format": _FORMAT, "table": table.fingerprint, "probes": str(probes)}
    where = np.empty_like(order)
    where[order] = np.arange(len(order))

    def write(file: IO[bytes]) -> None:
        start = _write_head(file, small, ("vectors", table.dtype, [table.rows, table.width]), facts)
        _write_vectors(file, start, table, where, tell)

    write_atomically(path, write)


def _samples(table: Table, tell: Tell) -> tuple[np.ndarray, np.ndarray]:
    """Rows that k-means learns from, and rows that try out what it has found."""
    rng = np.random.default_rng(0)
    wanted = [min(table.rows, SAMPLE * _lists(table.rows)), min(table.rows, QUERIES)]
    chosen = [np.sort(rng.choice(table.rows, count, replace=False)) for count in wanted]
    samples = [np.empty((count, table.width), np.float32) for count in wanted]
    for start, block in table.vectors():
        for rows, sample in zip(chosen, samples, strict=True):
            first, last = np.searchsorted(rows, (start, start + len(block)))
            sample[first:last] = block[rows[first:last] - start]
        tell(start + len(block))
    return samples[0], samples[1]


def _lists(rows: int) -> int:
    return max(1, round(LISTS * rows**0.5))


def _centroids(sample: np.ndarray) -> np.ndarray:
    """(L, C) float32."""
    lists = len(sample) // SAMPLE or 1
    kmeans = faiss().Kmeans(sample.shape[1], lists, niter=ITERATIONS, spherical=True, seed=0)
    kmeans.train(sample)
    return kmeans.centroids


def _assigned(table: Table, centroids: np.ndarray, queries: np.ndarray, tell: Tell) -> tuple[np.ndarray, np.ndarray]:
    """The list of every row, and the true neighbours of the queries, themselves among them."""
    lists = np.empty(table.rows, np.int32)
    found = Nearest(len(queries), min(NEIGHBOURS + 1, table.rows))
    for start, block in table.vectors():
        lists[start : start + len(block)] = nearest(block, centroids, 1)[1][:, 0]
        found.add(queries, block, start)
        tell(table.rows + start + len(block))
    return lists, found.result()[1]


def _probes(queries: np.ndarray, centroids: np.ndarray, lists: np.ndarray) -> int:
    """How many lists have to be read so that those of the neighbours are among them.

    Args:
        queries: (n, C) float32.
        centroids: (L, C) float32.
        lists: (n, k) the list in which each neighbour lies, the first neighbour being the query itself.
    """
    order = nearest(queries, centroids, len(centroids))[1]
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(len(centroids))[None], axis=1)
    needed = np.take_along_axis(rank, lists[:, 1:] if lists.shape[1] > 1 else lists, axis=1)
    return int(np.quantile(needed, RECALL, method="higher")) + 1


def _write_head(
    file: IO[bytes], small: dict[str, np.ndarray], large: tuple[str, str, list[int]], facts: dict[str, str]
) -> int:
    """Everything before the last array, which is large; returns where that begins."""
    head: dict[str, Any] = {"__metadata__": facts}
    end = 0
    name, dtype, shape = large
    arrays = [(key, array.dtype.name, list(array.shape)) for key, array in small.items()]
    for key, kind, size in [*arrays, (name, dtype, shape)]:
        start, end = end, end + int(np.prod(size)) * np.dtype(kind).itemsize
        head[key] = {"dtype": _NAMES[kind], "shape": size, "data_offsets": [start, end]}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for array in small.values():
        file.write(np.ascontiguousarray(array).data)
    return file.tell()


def _write_vectors(file: IO[bytes], begin: int, table: Table, where: np.ndarray, tell: Tell) -> None:
    """Every row at its place, rows that come to lie side by side at once."""
    size = table.width * np.dtype(table.dtype).itemsize
    for start, block in table.vectors():
        places = where[start : start + len(block)]
        order = np.argsort(places)
        rows, places = block[order].astype(table.dtype, copy=False), places[order]
        cuts = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]
        for first, last in pairwise(cuts):
            file.seek(begin + int(places[first]) * size)
            file.write(rows[first:last].data)
        tell(2 * table.rows + start + len(block))
