"""Nearest vectors by inner product, with FAISS, in blocks of any number."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import numpy as np


def faiss() -> ModuleType:
    """FAISS, imported so that it gets along with PyTorch.

    On macOS each brings an OpenMP runtime of its own, the second of which aborts the process unless it is told not to,
    and may then crash in parallel loops (faiss-wheels/faiss-wheels#73); so FAISS computes in one thread there.
    """
    if sys.platform == "darwin":
        os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")
    import faiss as module

    if sys.platform == "darwin":
        module.omp_set_num_threads(1)
    return module


def nearest(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, k) and places (n, k) of the vectors with the largest inner products, the largest first.

    Args:
        queries: (n, C) float32.
        vectors: (m, C) float32, m >= k.
    """
    module = faiss()
    scores, places = module.knn(queries, vectors, k, metric=module.METRIC_INNER_PRODUCT)
    return scores, places


class Nearest:
    """The nearest vectors of several blocks.

    Args:
        queries: how many ask.
        k: how many each wants.
    """

    def __init__(self, queries: int, k: int):
        self._heap = faiss().ResultHeap(queries, k, keep_max=True)

    def add(self, queries: np.ndarray, block: np.ndarray, start: int) -> None:
        """Looks at a block (m, C) float32, m > 0, whose first vector has the place `start`."""
        scores, places = nearest(queries, block, min(self._heap.k, len(block)))
        self._heap.add_result(scores, places + start)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores (n, k) and places (n, k), the largest score first; called once, after k vectors at least."""
        self._heap.finalize()
        return self._heap.D, self._heap.I
