"""Time and memory of loading a ViT-L, against transformers.

    python benchmarks/load.py [--pairs 7] [--depth 24]

Both read the same folder of Hugging Face with the same random weights (float32, 1.2 GB): once as model.safetensors and
once as pytorch_model.bin, a file as PyTorch writes it, `.pth` by another name. What is timed ends when every weight has
been read through once, since a file that is only mapped into memory has not been loaded yet. Ours looks, the first time
that it sees a file and after every change, at the checksums that such an archive holds and at every value for being
finite; that first load is timed too, once, and is no part of the claim. Memory is what a second load holds at most
beyond what the process held before it, each found by a process of its own; pages of the file that are mapped count as
the system's cache, which they are.

The claims: at least as fast as transformers, and no second full copy of the weights in memory.
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
from torch import nn
from transformers import AutoModel, ViTConfig, ViTModel
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

import synoptic
from synoptic.weights.checksums import SETTLED

LEAST = 1.0  # of the speed of transformers
MOST_MEMORY = 1.5  # of the weights' own size: they, and some tensors on their way
KINDS = {"safetensors": "model.safetensors", "pth": "pytorch_model.bin"}


def write(folder: Path, depth: int) -> int:
    """A ViT-L with random weights, in a folder for each kind of file; the bytes of its weights."""
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=1024, num_hidden_layers=depth, num_attention_heads=16, intermediate_size=4096)
    model = ViTModel(config, add_pooling_layer=False)
    model.save_pretrained(folder / "safetensors")
    (folder / "pth").mkdir()
    config.save_pretrained(folder / "pth")
    state = load_file(folder / "safetensors" / KINDS["safetensors"])  # whose keys are not those of the modules
    torch.save(state, folder / "pth" / KINDS["pth"])
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def timed(call: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def read_through(model: nn.Module) -> float:
    """Touches every weight."""
    return sum(float(parameter.detach().sum()) for parameter in model.parameters())


def ours(folder: Path) -> Callable[[], float]:
    return lambda: read_through(synoptic.load(folder, "cpu").model)


def theirs(folder: Path) -> Callable[[], float]:
    return lambda: read_through(AutoModel.from_pretrained(folder, add_pooling_layer=False))


RIVALS = {"synoptic": ours, "transformers": theirs}


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """What speaks against the claims."""
    found = []
    for row in rows:
        if row["speed_of_theirs"] < LEAST:
            found.append(f"{row['speed_of_theirs']} of the speed ({row['file']})")
        if row["memory_of_weights"] > MOST_MEMORY:
            found.append(f"{row['memory_of_weights']} times the weights in memory ({row['file']})")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7, help="loads by each rival")
    parser.add_argument("--depth", type=int, default=24, help="blocks of the ViT")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    set_verbosity_error()
    disable_progress_bar()
    logging.disable(logging.WARNING)  # nothing says how pictures are normalised, which is no matter here
    if options.peak_of:
        rival, kind = options.peak_of.split(",")
        print(common.anonymous_peak(RIVALS[rival](options.folder / kind)))
        return
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = str(Path(name) / "cache")  # in which no file is known yet
        rows = measured(Path(name), options)
    common.finish(
        "load", {"depth": options.depth, "results": rows}, "as fast as transformers, in memory once", failures(rows)
    )


def measured(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    size = write(folder, options.depth)
    time.sleep(SETTLED + 1)  # of younger files nothing is kept
    first = {kind: timed(ours(folder / kind)) for kind in KINDS}
    memory = common.peaks([f"{rival},{kind}" for rival in RIVALS for kind in KINDS], "--folder", str(folder))
    rows = []
    for kind in KINDS:
        found = common.compare(ours(folder / kind), theirs(folder / kind), options.pairs)
        row = {
            "file": kind,
            "weights_mb": round(size / 1e6),
            "seconds": round(found.ours, 3),
            "first_seconds": round(first[kind], 3),
            "speed_of_theirs": round(found.ratio, 3),
            "speed_middle_half": [round(bound, 3) for bound in found.spread],
            "pairs": found.pairs,
            "memory_of_weights": round(memory[f"synoptic,{kind}"] / size, 2),
            "their_memory_of_weights": round(memory[f"transformers,{kind}"] / size, 2),
        }
        low, high = row["speed_middle_half"]
        held = (
            f"memory {row['memory_of_weights']:.2f} of the weights, transformers' {row['their_memory_of_weights']:.2f}"
        )
        print(
            f"{kind:12} {row['seconds']:6.2f} s ({row['first_seconds']:.2f} the first time), {found.ratio:.2f} "
            f"({low:.2f} - {high:.2f}) of transformers' speed; {held}"
        )
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
