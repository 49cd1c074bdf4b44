"""Is a classifier right as often as it is sure?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15  # as the calibration errors of the literature are counted


@dataclass(frozen=True)
class Calibration:
    """Answers by how sure they are, in bins of equal width.

    Attributes:
        counts: (bins,) int64, answers in each.
        confidence: (bins,) their mean confidence; 0 where there are none.
        accuracy: (bins,) the share of them that is right; 0 where there are none.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: how far accuracy and confidence are apart, on average over the answers."""
        return float((self.counts * np.abs(self.accuracy - self.confidence)).sum() / self.counts.sum())


def calibration(probabilities: np.ndarray, truth: np.ndarray, bins: int = BINS) -> Calibration:
    """Sorts answers by the probability of the class that they name.

    Args:
        probabilities: (Q, classes), rows that sum to 1.
        truth: (Q,) int64 classes; Q is at least 1.
        bins: how many; the first holds 0 and each its upper end.
    Source: Guo et al. 2017 (arXiv 1706.04599), eq. 2 to 3.
    """
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == truth
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    some = np.maximum(counts, 1)
    means = (np.bincount(places, weights=values, minlength=bins) / some for values in (confidence, right))
    return Calibration(counts, *means)
