"""How the memory of a ViT's attention grows with the picture: the fused kernel against attention written out.

    python benchmarks/attention_memory.py [--model vit_s14] [--sizes 266 518 1036] [--device cpu]

Forward and backward of one picture in float32. Memory is what that holds at most beyond what the process held before,
each found by a process of its own on a CPU, and of tensors on a GPU. Written out, every block keeps its (heads, N, N)
weights for the backward pass; the fused kernel computes them again, so that what is kept grows as the tokens N do.
"""

from __future__ import annotations

import argparse
from typing import Any

import common
import torch
from torch import Tensor

from synoptic.models import layers
from synoptic.models.vit import ViT, vit_config

MOST_GROWTH = 1.1  # of the memory for each token, from the smallest to the largest picture


def written_out(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    """Attention by its definition; all weights exist at once."""
    weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)
    return weights @ value


def peak(way: str, model: str, device: str) -> int:
    """Peak memory of forward and backward in one way, `fused-518` or `written-518`."""
    kind, _, size = way.partition("-")
    if kind == "written":
        layers.attend = written_out
    torch.manual_seed(0)
    vit = ViT(vit_config(model, image_size=int(size))).to(device)
    images = torch.rand(1, 3, int(size), int(size), device=device)

    def step() -> None:
        features = vit(images)
        features.patches.square().mean().backward()
        vit.zero_grad(set_to_none=True)

    return common.peak(step, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_s14")
    parser.add_argument("--sizes", type=int, nargs="+", default=[266, 518, 1036])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        print(peak(arguments.peak_of, arguments.model, arguments.device))
        return
    memory = common.peaks([f"{kind}-{size}" for size in arguments.sizes for kind in ("fused", "written")])
    patch = vit_config(arguments.model).patch_size
    rows = [row(memory, size, (size // patch) ** 2 + 1) for size in arguments.sizes]
    for found in rows:
        print(
            f"{found['size']:5} px, {found['tokens']:5} tokens: fused {found['fused_mb']:7.0f} MB "
            f"({found['fused_kb_per_token']:.0f} kB a token), written out {found['written_mb']:7.0f} MB"
        )
    settings = {"model": arguments.model, "device": arguments.device}
    name = "attention_memory" if arguments.device == "cpu" else "attention_memory_gpu"
    common.finish(name, {**settings, "results": rows}, "memory grows linearly with the tokens", failures(rows))


def row(memory: dict[str, int], size: int, tokens: int) -> dict[str, Any]:
    fused, written = memory[f"fused-{size}"], memory[f"written-{size}"]
    return {
        **{"size": size, "tokens": tokens, "fused_mb": round(fused / 1e6, 1), "written_mb": round(written / 1e6, 1)},
        **{"fused_kb_per_token": round(fused / tokens / 1e3, 1), "ratio": round(written / fused, 2)},
    }


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """What speaks against the claim."""
    first, last = rows[0]["fused_kb_per_token"], rows[-1]["fused_kb_per_token"]
    found = [f"{first} kB a token became {last}"] if last > MOST_GROWTH * first else []
    if rows[-1]["ratio"] <= rows[0]["ratio"]:
        found.append(f"written out took {rows[0]['ratio']} times as much, and {rows[-1]['ratio']} in the end")
    return found


if __name__ == "__main__":
    main()
