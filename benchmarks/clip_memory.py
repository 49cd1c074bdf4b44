"""Large batches of CLIP and SigLIP in little memory.

    python benchmarks/clip_memory.py [--model vit_mini16] [--size 64]

A step of `synoptic train clip batch=4096 accumulate=64` compares 4,096 pairs with each other and holds the activations
of 64 (cached gradients, Gao et al. 2021): its peak memory is measured beside that of a plain step of 64 and of 4,096
pairs, each in a process of its own, and its gradients are compared with those of the plain step of 4,096.

The sigmoid loss holds the similarities of 4,096 captions at a time: its peak memory, forward and backward, is measured
at rising batches.

The claims: the step in 64 parts takes at most a quarter of the memory of the plain one, and its gradients equal the
plain ones to 1e-4 of the largest; the memory of the sigmoid loss grows no faster than the batch, within a tenth.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

import common
import torch
from torch import Tensor

from synoptic.config import from_dict
from synoptic.data.sources import Source
from synoptic.losses import contrastive
from synoptic.methods import clip, get_method
from synoptic.types import Batch

BATCH, PARTS = 4096, 64
STEPS = {"64 at once": (BATCH // PARTS, 1), "4,096 at once": (BATCH, 1), "4,096 in 64 parts": (BATCH, PARTS)}
LOSSES = (4096, 8192, 16384)
WIDTH = 512
LEAST_SAVED = 4.0
MOST_GROWTH = 1.1  # of memory a pair
TOLERANCE = 1e-4
CAPTIONS = [f"a {size} {colour} {thing}" for size in ("small", "large") for colour in ("red", "blue", "green")
            for thing in ("cone", "cube", "torus", "sphere")]  # fmt: skip


def build(arguments: argparse.Namespace, batch: int, parts: int) -> tuple[clip.ClipTask, Batch]:
    """The task, and one prepared batch of noise."""
    recipe = get_method("clip")
    values = {
        **{"data": "none", "out": "none", "model": arguments.model, "size": arguments.size, "steps": 10},
        **{"batch": batch, "accumulate": parts, "vocabulary": 300},
    }
    config: Any = recipe.resolve(from_dict(recipe.config, values, "clip_memory"), 10**5)
    source = Source(Path("none"), [Path("none")], captions=[tuple(CAPTIONS)])
    torch.manual_seed(0)
    task = cast(clip.ClipTask, recipe.build(config, source)).train()
    captions = [f"{CAPTIONS[place % len(CAPTIONS)]} {place}" for place in range(batch)]
    images = torch.rand(batch, 3, arguments.size, arguments.size)
    position = torch.arange(batch)
    return task, Batch(crops=(images,), tokens=task.tokenizer(captions), index=position, position=position)


def step(task: clip.ClipTask, batch: Batch) -> None:
    """Forward and backward."""
    task.zero_grad(set_to_none=True)
    for terms in task.losses(batch, 0.0):
        terms["loss"].backward()


def peak_of(name: str, arguments: argparse.Namespace) -> int:
    """Peak memory of one case."""
    if name in STEPS:
        task, batch = build(arguments, *STEPS[name])
        return common.peak(lambda: step(task, batch))
    torch.manual_seed(0)
    pairs = [torch.randn(int(name), WIDTH, requires_grad=True) for _ in range(2)]
    scale, bias = torch.tensor(10.0).log(), torch.tensor(-10.0)
    return common.peak(lambda: contrastive.siglip(*pairs, scale, bias).backward())


def difference(arguments: argparse.Namespace) -> float:
    """The largest of the gradients of a step in parts and at once, over the largest gradient."""
    found: list[dict[str, Tensor]] = []
    for parts in (1, PARTS):
        task, batch = build(arguments, BATCH, parts)
        step(task, batch)
        found.append(
            {name: parameter.grad for name, parameter in task.named_parameters() if parameter.grad is not None}
        )
    whole, cut = found
    assert whole.keys() == cut.keys()
    largest = max(gradient.abs().max().item() for gradient in whole.values())
    return max((cut[name] - gradient).abs().max().item() for name, gradient in whole.items()) / largest


def failures(memory: dict[str, int], error: float) -> list[str]:
    """What speaks against the claims."""
    found = []
    saved = memory["4,096 at once"] / memory["4,096 in 64 parts"]
    if saved < LEAST_SAVED:
        found.append(f"the step in parts takes 1/{saved:.1f} of the memory")
    if not error <= TOLERANCE:
        found.append(f"gradients differ by {error:.1e}")
    each = [memory[str(batch)] / batch for batch in LOSSES]
    if max(each) > MOST_GROWTH * each[0]:
        found.append(f"the sigmoid loss takes {', '.join(f'{one:.0f}' for one in each)} bytes a pair")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_mini16", help="picture encoder")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of is not None:
        return print(peak_of(arguments.peak_of, arguments))
    memory = common.peaks([*STEPS, *map(str, LOSSES)])
    error = difference(arguments)
    for name, taken in memory.items():
        print(f"{name:>20} {taken / 1e6:8.0f} MB")
    print(f"gradients in parts and at once differ by {error:.1e} of the largest")
    common.finish(
        "clip_memory",
        {"peak_bytes": memory, "largest_difference": error},
        "4,096 pairs in little memory, with equal gradients; a sigmoid loss whose memory grows as the batch",
        failures(memory, error),
    )


if __name__ == "__main__":
    main()
