"""One process of a self-supervised training in float64: ``python -m ssl_processes METHOD STEPS OUT``.

Pictures are random numbers that their place in the run decides; the weights are written to OUT/PROCESSES.pt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from synoptic.config import from_dict
from synoptic.data.sources import Source
from synoptic.engine import checkpoint, distributed, loop
from synoptic.methods import get_method
from synoptic.methods.teachers import Teacher
from synoptic.methods.views import Asked, Shown
from synoptic.types import Batch, Group

BATCH = 8
SHARED = {
    **{"data": "d", "out": "o", "model": "vit_nano8", "size": 16, "batch": BATCH, "steps": 10, "precision": "fp32"},
    **{"checkpoint_every": 5, "optim": {"lr": 1e-3}},
}
OF_METHODS: dict[str, dict[str, Any]] = {
    "clip": {"text_width": 32, "text_depth": 1, "text_heads": 1, "embedding": 12, "vocabulary": 300},
    "dino": {
        **{"prototypes": 24, "head_hidden": 16, "bottleneck": 8, "drop_path": 0.0},
        "crops": {"global_size": 16, "local_size": 8, "local_count": 2},
    },
}
OF_METHODS["dinov2"] = OF_METHODS["dino"]
OF_METHODS["radio"] = {"teachers": "one:vit_nano16,two:vit_mini8", "position": "learned", "head_hidden": 24}
CASES: dict[str, dict[str, Any]] = {
    "dino": {"koleo": 0.1},
    "dinov2": {"patch_bottleneck": 8, "masks": {"ratio": (0.3, 0.6)}},
    "dinov2-parts": {"patch_bottleneck": 8, "accumulate": 2, "centring": "mean", "koleo": 0.0},
    "dinov2-phases": {"patch_bottleneck": 8, "koleo": 0.0, "high_resolution": {"share": 0.4, "scale": 2}},
    "dinov2-queue": {"patch_bottleneck": 8, "queue": 32, "heads": "tied"},
    "clip": {},
    "clip-whole": {"gathering": "whole"},
    "clip-detached": {"gathering": "detached"},
    "clip-siglip": {"loss": "siglip"},
    "clip-parts": {"accumulate": 2},
    "clip-taught": {},
    "radio": {"drop_teachers": 0.5},
    "radio-phases": {
        **{"stages": "16@0,16+32@0.4", "standardise": "phi_s", "patch_loss": "mse", "settle": 0.5},
        "teacher": {"two": {"at": [16]}},
    },
    "radio-balance": {
        **{"balance": "adaloss", "summary_loss": "angle", "shift": 1, "windows": [2, 0], "size": 32},
        "freeze": 0.3,
    },
}


PICTURES = Source(Path("p"), [Path("a.jpg")], captions=[("a cone 1 2 3 cubes",)])


class _Killed(Exception):
    """Stands for the end of the process."""


class Pictures:
    """Crops for the places of a process, made of nothing but their numbers."""

    def __init__(self, group: Group):
        share = BATCH // group.size
        self._places = torch.arange(share) + group.rank * share

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        for step in range(start, stop):
            position = step * BATCH + self._places
            captions = [(f"a cone {place}", f"{place % 3} cubes") for place in position.tolist()]
            yield Batch(
                images=torch.zeros(len(position), 1), position=position, index=position, captions=tuple(captions)
            )

    def names(self, step: int) -> list[str]:
        return []


def crops_of(batch: Batch, seed: int, scale: int = 1) -> Batch:
    assert batch.position is not None

    def crop(number: int, size: int) -> torch.Tensor:
        pictures = []
        for place in batch.position.tolist():
            random = torch.Generator().manual_seed(place * 10 + number)
            pictures.append(torch.rand(3, size, size, generator=random, dtype=torch.float64))
        return torch.stack(pictures)

    return replace(
        batch, images=None, crops=tuple(crop(number, scale * size) for number, size in enumerate((16, 16, 8, 8)))
    )


def shown_crops(shown: Shown) -> Callable[[Batch, int, int], dict[Asked, torch.Tensor]]:
    """What student and teachers are shown in a step, made of the places of the pictures in the run."""

    def crops(batch: Batch, step: int, seed: int) -> dict[Asked, torch.Tensor]:
        asked = dict.fromkeys(shown.asked(step, seed).values())
        whole = {each.side: crops_of(replace(batch, images=None), seed) for each in asked}
        return {each: F.interpolate(whole[each.side].crops[0], size=each.side) for each in asked}

    return crops


def main() -> None:
    case, steps, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    recipe = get_method(case.partition("-")[0])
    config: Any = recipe.resolve(
        from_dict(recipe.config, {**SHARED, **OF_METHODS[recipe.name], **CASES[case]}, case), 64
    )
    config = replace(config, device="cpu")
    with distributed.joined("cpu") as group:
        torch.manual_seed(0)
        task: Any = recipe.build(config, PICTURES).double()
        if case == "clip-taught":
            task._teacher.append(Teacher(recipe.build(config, PICTURES).model.double(), config.size))
        task.crop = task.multi_crop = crops_of
        task.high_resolution = partial(crops_of, scale=2)
        for shown in getattr(task, "shown", {}).values():
            shown.crops = shown_crops(shown)
        if steps < config.steps:
            _stop_after(task, steps)
        try:
            loop.train(task, Pictures(group), config, out, None, "cpu", group)
        except _Killed:
            return
        if group.rank == 0:
            checkpoint.save(out / f"{group.size}.pt", {"state": task.state_dict()})


def _stop_after(task: Any, steps: int) -> None:
    after, done = task.after_step, iter(range(1, steps + 1))

    def counted(progress: float) -> None:
        after(progress)
        if next(done) == steps:
            raise _Killed

    task.after_step = counted


if __name__ == "__main__":
    main()
