"""How many pictures a second `synoptic scenes` draws, files and all, the command typed as a user types it.

    python benchmarks/scenes.py [--count 1000] [--size 96] [--rounds 3]

Processes start, pictures are traced, and every file is written; time is by the wall, so other work on the machine
counts against it. Each kind of data set is drawn `rounds` times, in turns; told is the median.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

KINDS = {
    "one object": ["objects=1"],
    "one to six objects": ["objects=1..6"],
    "one to six objects, two views": ["objects=1..6", "views=2"],
}
CLAIM = 100  # pictures of one to six objects a second


def rate(count: int, size: int, keys: list[str]) -> float:
    """Pictures a second of one data set."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scenes"
        begun = time.perf_counter()
        command = [sys.executable, "-m", "synoptic", "scenes", f"out={out}", f"count={count}", f"size={size}", *keys]
        subprocess.run(command, check=True, capture_output=True)
        return count / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.rounds):
        for kind, keys in KINDS.items():
            rates[kind].append(rate(arguments.count, arguments.size, keys))
    results = {kind: {"pictures_per_second": statistics.median(found), "all": found} for kind, found in rates.items()}
    for kind, result in results.items():
        print(f"{kind}: {result['pictures_per_second']:.0f} pictures a second")
    common.finish(
        "scenes",
        {"count": arguments.count, "size": arguments.size, "kinds": results},
        f"at least {CLAIM} pictures of 96 px a second on 2 cores",
        failures(results["one to six objects"]["pictures_per_second"]),
    )


def failures(pictures_per_second: float) -> list[str]:
    """What speaks against the claim."""
    return [] if pictures_per_second >= CLAIM else [f"{pictures_per_second:.0f} pictures a second"]


if __name__ == "__main__":
    main()
