"""What is searched: a table of embeddings, row by row or, where it is large, by its inverted file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from synoptic.apps.ivf import InvertedFile, build
from synoptic.apps.nearest import Nearest
from synoptic.apps.table import Table

log = logging.getLogger(__name__)

LARGE = 1_000_000  # rows; below, all are looked at in seconds


class Index:
    """A table of embeddings that can be asked again and again; it holds next to nothing of them.

    Args:
        path: the `.parquet` file.
        exact: looks at every row, however many there are.
        progress: told how much of how much is done, while the inverted file of a large table is made.
    Raises:
        ValueError: see `Table`, and for a table without rows.
    """

    def __init__(self, path: Path, exact: bool = False, progress: Callable[[int, int], None] | None = None):
        self.table = Table(path)
        if not self.table.rows:
            raise ValueError(f"{path} holds no embeddings")
        self._inverted = None if exact or self.table.rows < LARGE else _inverted(self.table, progress)

    def search(self, query: np.ndarray, k: int = 10, apart: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The rows nearest to a vector.

        Args:
            query: (C,) float32, L2-normalised.
            k: how many; of a smaller table all.
            apart: whether the query is no picture's, and lies apart from all of them.
        Returns:
            Scores (k,) float32, cosine similarities, the largest first, and the rows (k,) they belong to.
        Raises:
            ValueError: the query has another width, or the table is damaged.
        """
        if query.shape != (self.table.width,):
            raise ValueError(f"{self.table.path} holds embeddings ({self.table.width},), the query is {query.shape}")
        k = min(k, self.table.rows)
        if self._inverted:
            return self._inverted.search(query, k, apart)
        found = Nearest(1, k)
        for start, block in self.table.vectors():
            found.add(query[None], block, start)
        scores, rows = found.result()
        return scores[0], rows[0]


def _inverted(table: Table, progress: Callable[[int, int], None] | None) -> InvertedFile | None:
    """The inverted file of a table, made where it is missing or stale; None where it cannot be written."""
    path = table.path.with_name(f"{table.path.name}.ivf")
    try:
        return InvertedFile(path, table)
    except ValueError as reason:
        log.warning("making %s: %s", path, reason if path.exists() else "once, for all searches of this table")
    try:
        build(path, table, progress)
        return InvertedFile(path, table)
    except OSError as error:
        log.warning("%s cannot be written (%s): looking at every row", path, error.strerror)
        return None
