"""RankMe: how many dimensions embeddings use."""

import math

import numpy as np
import pytest
import torch

from synoptic.evaluation.spread import rankme


def test_rankme_counts_dimensions() -> None:
    assert rankme(torch.eye(8)) == pytest.approx(8)
    assert rankme(torch.ones(9, 4)) == pytest.approx(1)
    assert rankme(torch.zeros(3, 4)) == pytest.approx(1)
    points = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = np.linalg.svd(points.numpy(), compute_uv=False)
    shares = values / values.sum()
    assert rankme(points) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
