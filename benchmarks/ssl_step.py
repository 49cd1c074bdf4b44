"""A training step of DINOv2 as it is done here against the plain way: time and peak memory.

    python benchmarks/ssl_step.py [--model vit_s14] [--batch 4] [--pairs 5] [--device cpu] [--precision fp32]

The step is that of `synoptic train dinov2`: two crops of 224 and eight of 98 pixels a picture, forward and backward of
the student, forward of the teacher, all losses. The plain way runs the student once for each size of crops and computes
every residual branch for all pictures, of which stochastic depth (0.3) then throws some away. Here all crops are packed
into one sequence, and a branch is computed for the pictures that keep it. Rivals in between tell the two apart.

Times are of alternated pairs in one process. Memory is what a step holds at most beyond what the process held before
it: on a CPU by the resident memory of a process for each way, on a GPU by tensors.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import common
import torch
from torch import Tensor

from synoptic.config import from_dict
from synoptic.data.masking import draw_masks
from synoptic.data.sources import Source
from synoptic.methods import dinov2, get_method
from synoptic.models.layers import Block, Groups
from synoptic.models.vit import ViT
from synoptic.types import Batch, Features

WAYS = {  # packed, by subset
    "plain": (False, False),
    "packed": (True, False),
    "subset": (False, True),
    "packed_subset": (True, True),
}
OURS = "packed_subset"
LEAST = {"time_ratio": 1.1, "memory_ratio": 1.05}  # of the plain way to ours
GRID = (16, 16)


def build(model: str, batch: int, device: str) -> tuple[dinov2.Dinov2Task, Batch]:
    """The task, and one prepared batch of noise."""
    recipe = get_method("dinov2")
    values = {
        **{"data": "none", "out": "none", "model": model, "batch": batch, "steps": 10, "size": 224},
        **{"prototypes": 8192, "crops": {"local_size": 98}},
    }
    config: Any = recipe.resolve(from_dict(recipe.config, values, "ssl_step"), 10**5)
    torch.manual_seed(0)
    task = cast(dinov2.Dinov2Task, recipe.build(config, Source(Path("none"), [Path("none")]))).to(device).train()
    position = torch.arange(batch)
    masks = draw_masks(config.masks, GRID, position, batch, 0)
    crops = tuple(torch.rand(batch, 3, side, side, device=device) for side in [224] * 2 + [98] * 8)
    masked = masks.flatten().nonzero()[:, 0]
    return task, Batch(crops=crops, masks=masks.to(device), masked=masked.to(device), position=position)


@contextmanager
def way(name: str) -> Iterator[None]:
    """Within it the networks compute in one of the ways."""
    packed, subset = WAYS[name]
    encode, residual = ViT._encode, Block._residual
    if not packed:
        ViT._encode = _one_by_one(encode)  # type: ignore[method-assign]
    if not subset:
        Block._residual = _masked_residual  # type: ignore[method-assign]
    try:
        yield
    finally:
        ViT._encode, Block._residual = encode, residual  # type: ignore[method-assign]


def _one_by_one(encode: Callable[..., tuple[Features, ...]]) -> Callable[..., tuple[Features, ...]]:
    def each(
        self: ViT, images: Sequence[Tensor], masks: Sequence[Tensor | None], layers: Sequence[int]
    ) -> tuple[Features, ...]:
        return tuple(encode(self, [group], [mask], layers)[0] for group, mask in zip(images, masks, strict=True))

    return each


def _masked_residual(self: Block, tokens: Tensor, groups: Groups, branch: Callable[[Tensor, Groups], Tensor]) -> Tensor:
    """Stochastic depth as it is usually written: the branch of every picture, then zeros for some."""
    change = branch(tokens, groups)
    if not (self.training and self.drop_path):
        return tokens + change
    parts = []
    for part, (pictures, count) in zip(change.split([b * n for b, n in groups]), groups, strict=True):
        keep = (torch.rand(pictures, 1, 1, device=part.device) >= self.drop_path).to(part.dtype)
        parts.append((part.unflatten(0, (pictures, count)) * (keep / (1.0 - self.drop_path))).flatten(0, 1))
    return tokens + torch.cat(parts)


def step(task: dinov2.Dinov2Task, batch: Batch, half: bool) -> None:
    """Forward and backward, and what follows the optimiser's step; waits for the device."""
    device = batch.crops[0].device
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        terms = next(task.losses(batch, 0.5))
    terms["loss"].backward()
    task.after_step(0.5)
    task.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak(name: str, arguments: argparse.Namespace) -> int:
    """Peak memory of a step in one of the ways."""
    task, batch = build(arguments.model, arguments.batch, arguments.device)
    with way(name):
        return common.peak(lambda: step(task, batch, arguments.precision == "bf16"), arguments.device)


def compare(name: str, arguments: argparse.Namespace) -> common.Comparison:
    """Our way against another one."""
    task, batch = build(arguments.model, arguments.batch, arguments.device)

    def rival(which: str) -> Callable[[], None]:
        def run() -> None:
            with way(which):
                step(task, batch, arguments.precision == "bf16")

        return run

    return common.compare(rival(OURS), rival(name), arguments.pairs, warmup=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_s14")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--peak-of", choices=tuple(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        print(peak(arguments.peak_of, arguments))
        return
    memory = common.peaks(tuple(WAYS))
    results: dict[str, Any] = {"peak_bytes": memory, "ways": {}}
    for name in WAYS:
        if name == OURS:
            continue
        timed = compare(name, arguments)
        results["ways"][name] = {
            "time_ratio": round(timed.ratio, 3),
            "time_spread": [round(value, 3) for value in timed.spread],
            "memory_ratio": round(memory[name] / memory[OURS], 3),
            "seconds": round(timed.theirs, 3),
            "our_seconds": round(timed.ours, 3),
        }
        print(f"{name:8} takes {timed.ratio:.2f} times the time and {memory[name] / memory[OURS]:.2f} times the memory")
    settings = {key: getattr(arguments, key) for key in ("model", "batch", "pairs", "device", "precision")}
    name = "ssl_step" if arguments.device == "cpu" else "ssl_step_gpu"
    common.finish(name, {**settings, **results}, "faster, with less memory than the plain way", failures(results))


def failures(results: dict[str, Any]) -> list[str]:
    """What speaks against the claim."""
    plain = results["ways"]["plain"]
    return [f"{key} {plain[key]}, not {least}" for key, least in LEAST.items() if plain[key] < least]


if __name__ == "__main__":
    main()
