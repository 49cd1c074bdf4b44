"""One process of those that gather statistics of teachers: ``python -m statistics_processes OUT``.

Rows are random numbers; which process sees which of them is the only thing that differs. The state of each process is
written to OUT/PROCESSES-RANK.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from synoptic.engine import checkpoint, distributed
from synoptic.losses.balance import Balancer, teacher_weights
from synoptic.losses.distillation import Dispersion
from synoptic.losses.standardise import Standard, Standardiser
from synoptic.types import Group

STEPS, ROWS, WIDTH = 4, 40, 13  # of no width is a Hadamard matrix known


def rows_of(step: int) -> Tensor:
    """(ROWS, WIDTH) float64, correlated, with a mean far from zero."""
    rng = torch.Generator().manual_seed(step)
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(100), dtype=torch.float64)
    return torch.randn(ROWS, WIDTH, generator=rng, dtype=torch.float64) @ mixing + 1e4


def part_of(rows: Tensor, group: Group) -> Tensor:
    """The rows of this process: of two, the first has 30 and the second 10."""
    return rows if group.size == 1 else rows.split([30, 10])[group.rank]


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    with distributed.joined("cpu") as group:
        standards: dict[str, Standardiser] = {kind: Standardiser(WIDTH, kind) for kind in get_args(Standard)}
        dispersion, balancer = Dispersion(WIDTH), Balancer({"mean": 1.0, "square": 1.0, "first": 1.0}, "adaloss")
        weights: dict[str, Tensor] = {}
        for step in range(STEPS):
            rows = part_of(rows_of(step), group)
            for standardiser in standards.values():
                standardiser.observe(rows, group)
            dispersion.update(rows - 1e4, group)
            whole = rows_of(step) - 1e4
            mine = whole.chunk(group.size)[group.rank]
            terms = {"mean": mine.abs().mean(), "square": mine.square().mean()}
            if group.rank == 0 and step % 2:  # a term that another process lacks
                terms["first"] = whole[0, 0].abs()
            balancer(terms, group)
            own = teacher_weights(mine[:, :3], mine[:, 3:6].sigmoid(), 0.5, group)
            weights[f"weights.{step}"] = group.gather(own)
        for standardiser in standards.values():
            standardiser.settle(group)
        state = nn.ModuleDict({**standards, "dispersion": dispersion, "balancer": balancer}).state_dict()
        checkpoint.save(out / f"{group.size}-{group.rank}.pt", {**state, **weights})


if __name__ == "__main__":
    main()
