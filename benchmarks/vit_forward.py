"""ViT-B/16 at 224 pixels against the ViT of transformers with equal weights, and against the machine's own limit.

    python benchmarks/vit_forward.py [--pairs 15] [--batch 4]

Both networks have the same random weights, which went through the converter, and see the same pictures; normalisation
is part of both. First their outputs are compared: in float32 they must be equal to 1e-4 of the largest value. Then
each is timed in alternated pairs, as is ours against a product of large square matrices, whose rate is what the
machine can reach: the share is (operations of the network / its time) / (operations of the product / its time).

On one thread times are processor time, so that a busy machine does not favour a side; on several they are wall time.
The claim: equal outputs, and at least 0.97 of the speed in every case.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ViTConfig as TheirConfig
from transformers import ViTModel
from transformers.utils.logging import disable_progress_bar

from synoptic.models.vit import ViT, ViTConfig, vit_config
from synoptic.weights.convert import HUGGINGFACE_VIT, load_state, to_ours

TOLERANCE = 1e-4  # of the largest value, for a full-size model in float32
SPEED = 0.97  # of theirs: what pairs of equal networks differ by on a quiet machine
SIDE = 2048  # of the matrices


class Theirs(nn.Module):
    """The ViT of transformers, with the normalisation of pixels that ours has inside."""

    def __init__(self, model: ViTModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images - 0.5) / 0.5).last_hidden_state


def rivals(dtype: torch.dtype) -> tuple[ViT, Theirs]:
    """Ours and theirs with equal weights."""
    torch.manual_seed(0)
    theirs = ViTModel(TheirConfig(), add_pooling_layer=False)
    halves = (0.5, 0.5, 0.5)
    ours = ViT(vit_config("vit_b16", norm_eps=theirs.config.layer_norm_eps, mean=halves, std=halves))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        load_state(ours, to_ours(load_file(Path(folder) / "model.safetensors"), HUGGINGFACE_VIT), "transformers")
    return ours.to(dtype).eval(), Theirs(theirs).to(dtype).eval()


def operations(config: ViTConfig, batch: int) -> int:
    """Floating-point operations of the matrix products of one forward pass, a multiplication and an addition each."""
    patches = (config.image_size // config.patch_size) ** 2
    tokens, width, hidden = patches + config.summary_tokens, config.width, config.hidden or 4 * config.width
    embedding = patches * width * config.channels * config.patch_size**2
    linear = tokens * width * (4 * width + 2 * hidden)
    attention = 2 * tokens * tokens * width
    return 2 * batch * (embedding + config.depth * (linear + attention))


@torch.inference_mode()
def measure(dtype: torch.dtype, threads: int, batch: int, pairs: int) -> dict[str, Any]:
    """One row of the results."""
    torch.set_num_threads(threads)
    clock: Callable[[], float] = time.process_time if threads == 1 else time.perf_counter
    ours, theirs = rivals(dtype)
    images = torch.rand(batch, 3, 224, 224).to(dtype)
    matrix = torch.randn(SIDE, SIDE).to(dtype)

    features, expected = ours(images), theirs(images).float()
    assert features.summary is not None
    answer = torch.cat([features.summary[:, None], features.patches], dim=1).float()
    error = ((answer - expected).abs().max() / expected.abs().max()).item()

    speed = common.compare(lambda: ours(images), lambda: theirs(images), pairs, clock)
    limit = common.compare(lambda: ours(images), lambda: torch.mm(matrix, matrix), pairs, clock)
    share = limit.ratio * operations(ours.config, batch) / (2 * SIDE**3)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "batch": batch,
        "pairs": pairs,
        "clock": clock.__name__,
        "largest_difference": error,
        "speed_of_theirs": round(speed.ratio, 3),
        "speed_middle_half": [round(bound, 3) for bound in speed.spread],
        "share_of_matrix_rate": round(share, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="measurements of each rival")
    parser.add_argument("--batch", type=int, default=4, help="pictures in a batch")
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    several = os.cpu_count() or 1
    cases = [(torch.float32, 1), (torch.float32, several), (torch.bfloat16, 1), (torch.bfloat16, several)]
    rows = [measure(dtype, threads, options.batch, options.pairs) for dtype, threads in dict.fromkeys(cases)]
    print(
        f"{'dtype':9} {'threads':>7} {'difference':>11} {'ours / theirs':>14} {'middle half':>14} {'matrix rate':>12}"
    )
    for row in rows:
        low, high = row["speed_middle_half"]
        print(
            f"{row['dtype']:9} {row['threads']:7} {row['largest_difference']:11.1e} {row['speed_of_theirs']:14.3f} "
            f"{low:6.3f} - {high:5.3f} {row['share_of_matrix_rate']:12.3f}"
        )
    common.finish(
        "vit_forward",
        {"results": rows},
        f"outputs equal in float32, at least {SPEED} of the speed of transformers",
        failures(rows),
    )


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """What speaks against the claim."""
    found = []
    for row in rows:
        case = f"{row['dtype']}, {row['threads']} threads"
        if row["dtype"] == "float32" and not row["largest_difference"] <= TOLERANCE:
            found.append(f"outputs differ by {row['largest_difference']:.1e} of the largest value ({case})")
        if row["speed_of_theirs"] < SPEED:
            found.append(f"{row['speed_of_theirs']} of the speed ({case})")
    return found


if __name__ == "__main__":
    main()
