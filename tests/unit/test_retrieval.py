"""Retrieval: the average precision of the definition, and what it means for known rankings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synoptic.data.sources import Source
from synoptic.evaluation import retrieval
from synoptic.evaluation.features import Embeddings, Space
from synoptic.evaluation.retrieval import Retrieval, ranked


def plain(vectors: np.ndarray, labels: np.ndarray) -> tuple[list[float], list[bool]]:
    """The definition, one picture, one rank at a time."""
    precisions, firsts = [], []
    for asking in range(len(vectors)):
        others = [place for place in range(len(vectors)) if place != asking]
        others.sort(key=lambda place: (-float(vectors[place] @ vectors[asking]), place))
        hits, shares = 0, []
        for rank, place in enumerate(others, start=1):
            if labels[place] == labels[asking]:
                hits += 1
                shares.append(hits / rank)
        if shares:
            precisions.append(sum(shares) / len(shares))
            firsts.append(bool(labels[others[0]] == labels[asking]))
    return precisions, firsts


@settings(max_examples=60)
@given(
    count=st.integers(2, 25),
    classes=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    piece=st.sampled_from([1, 40, 10**6]),
)
def test_average_precision_is_that_of_a_plain_loop(count: int, classes: int, seed: int, piece: int):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (count, 3)).astype(np.float32) / 4  # many are equally near
    labels = rng.integers(0, classes, count)
    labels[:2] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "SIMILARITIES", piece)
        precision, first = ranked(torch.from_numpy(vectors), labels)
    expected, nearest = plain(vectors, labels)
    np.testing.assert_allclose(precision, expected, rtol=1e-12)
    assert first.tolist() == nearest


def source(labels: list[int]) -> Source:
    """Pictures that are never read."""
    return Source(Path("nowhere"), [Path(f"{i}.jpg") for i in range(len(labels))], "abc", np.array(labels))


def scores(labels: list[int], angles: list[float], adaptor: str | None = None) -> dict[str, float]:
    radians = torch.tensor(angles).deg2rad()
    vectors = torch.stack([radians.cos(), radians.sin()], 1)
    return dict(
        Retrieval(source(labels), adaptor).scores(Embeddings(np.arange(len(labels)), {Space(adaptor): vectors}))
    )


def test_classes_that_lie_together_are_found_whole():
    assert scores([0, 0, 1, 1], [0, 5, 90, 95]) == {"retrieval_map": 1.0, "retrieval_p1": 1.0}


def test_the_picture_itself_is_no_answer_and_lone_pictures_ask_for_nothing():
    # 0 and 2 are of a class, 1 lies between them, 3 is alone in its class.
    found = scores([0, 1, 0, 2, 1], [0, 10, 20, 90, 180], "clip")
    assert found == {"retrieval_map_clip": pytest.approx((1 / 2 + 1 / 4 + 1 / 2 + 1 / 3) / 4), "retrieval_p1_clip": 0.0}


def test_retrieval_needs_classes_of_two():
    with pytest.raises(ValueError, match="no class has two pictures"):
        Retrieval(source([0, 1, 2]))
    with pytest.raises(ValueError, match="has no labels"):
        Retrieval(Source(Path("nowhere"), [Path("a.jpg")]))
