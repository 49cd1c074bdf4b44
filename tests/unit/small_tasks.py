"""Tiny batches, sources and configurations, and one backward pass: what tests of methods share."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synoptic.config import from_dict
from synoptic.data.sources import Source
from synoptic.methods import get_method
from synoptic.types import Batch

CAPTIONS = ("a red cone", "a small blue torus", "a white cube left of a green sphere")


def batch_of(count: int = 4, size: int = 32, start: int = 0) -> Batch:
    pictures = torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    place = torch.arange(start, start + count)
    captions = tuple((f"{CAPTIONS[i % 3]} number {i}", CAPTIONS[(i + 1) % 3]) for i in range(count))
    sizes = torch.full((count, 2), size)
    return Batch(images=pictures, sizes=sizes, captions=captions, index=place, position=place)


def source_of(count: int = 4) -> Source:
    captions = [(CAPTIONS[i % 3], CAPTIONS[(i + 1) % 3]) for i in range(count)]
    return Source(Path("pictures"), [Path(f"{i}.jpg") for i in range(count)], captions=captions)


def config_of(method: str, **values: Any) -> Any:
    recipe = get_method(method)
    shared = {"data": "d", "out": "o", "model": "vit_nano16", "size": 32, "batch": 4, "steps": 10}
    return recipe.resolve(from_dict(recipe.config, {**shared, **values}, method), 4)


def backward(task: Any, batch: Batch, progress: float = 0.0, seed: int = 0) -> dict[str, Tensor]:
    (terms,) = task.losses(task.prepare(batch, seed), progress)
    terms["loss"].backward()
    return terms
