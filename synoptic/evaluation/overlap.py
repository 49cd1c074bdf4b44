"""How two sets of pictures lie to each other in a space of features: does one cover the other, does it give it away?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = 5  # of an asked picture, whose farthest bounds its neighbourhood (Naeem et al. sec. 4.2)
ALIKE = 0.01  # share of the asked pictures' distances to their nearest that count as between near-duplicates,
NEAR = 0.25  # and of the usual such distance: of few pictures the hundredth is as far as any, and others come nearer
FEWEST = 2 * (NEIGHBOURS + 1)  # pictures to ask about, of which half have neighbourhoods
FEW = 200  # pictures to ask about, below which both numbers are rough
_SAME = 1e-6  # distance of unit vectors below which they are the same but for rounding
_ROWS = 1024  # asked pictures at a time


@dataclass(frozen=True)
class Overlap:
    """What pictures to learn from have to do with those that will be asked about.

    Attributes:
        coverage: share of the asked pictures in whose neighbourhood a picture to learn from lies: 1 is best.
        expected: the coverage that other pictures of the asked kind would have, by taking half of them for the other.
        leakage: share of the asked pictures that are shown in training, or as good as: nearer to one of its pictures
            than all but the nearest hundredth of them are to each other, and than a quarter of what is usual among
            them. 0 is best, and what makes scores honest.
    """

    coverage: float
    expected: float
    leakage: float


def overlap(learned: Tensor, asked: Tensor) -> Overlap:
    """How pictures to learn from lie to those that will be asked about.

    Args:
        learned: (N, C) features of the pictures to learn from; lengths do not matter.
        asked: (M, C) likewise, of the others.
    Raises:
        ValueError: there are too few of the others for neighbourhoods.
    Source: coverage as Naeem et al. 2020 (arXiv 2002.09797), sec. 4.2, for generated pictures: unlike recall it cannot
        be raised by outliers.
    """
    if len(asked) < FEWEST:
        raise ValueError(f"{len(asked)} pictures to ask about are too few; give at least {FEWEST}")
    learned, asked = (F.normalize(each.double(), dim=1) for each in (learned, asked))
    towards = _nearest(asked, learned, 1)[:, 0]
    radius = _nearest(asked, asked, NEIGHBOURS + 1)[:, NEIGHBOURS]  # the first is the picture itself
    alone = _without_twins(asked)
    closest = _nearest(asked, alone, 2)[:, -1]
    usual = _nearest(alone, alone, 2)[:, -1]
    near_duplicate = torch.minimum(torch.quantile(usual, ALIKE), usual.median() * NEAR)
    halves = asked[::2], asked[1::2]
    inside = _nearest(halves[0], halves[0], NEIGHBOURS + 1)[:, NEIGHBOURS]
    expected = (_nearest(halves[0], halves[1], 1)[:, 0] <= inside).double().mean()
    return Overlap(
        float((towards <= radius).double().mean()),
        float(expected),
        float((towards < torch.minimum(near_duplicate, closest).clamp(min=_SAME)).double().mean()),
    )


def _without_twins(vectors: Tensor) -> Tensor:
    """(N, C) vectors, of those that are the same the first alone."""
    kept: list[Tensor] = []
    for rows in vectors.split(_ROWS):
        near = torch.cdist(rows, rows) < _SAME
        rows = rows[~near.tril(-1).any(dim=1)]
        for earlier in kept:
            rows = rows[~(torch.cdist(rows, earlier) < _SAME).any(dim=1)]
        kept.append(rows)
    return torch.cat(kept)


def _nearest(ones: Tensor, others: Tensor, count: int) -> Tensor:
    """(N, count) distances of unit vectors to their nearest, the nearest first."""

    def parts() -> Iterator[Tensor]:
        for rows in ones.split(_ROWS):
            yield torch.cdist(rows, others).topk(min(count, len(others)), largest=False).values

    return torch.cat(list(parts()))
