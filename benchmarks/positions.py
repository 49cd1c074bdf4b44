"""Position artefacts: cropped position embeddings against interpolated ones, at sizes that were never trained.

    python benchmarks/positions.py [--demo runs/demo] [--folder runs/positions] [--steps 400]

Two students `vit_mini8` of 48 pixels learn from the teachers of the demo, the same pictures in the same order: one with
a learned table of positions, which is interpolated at other sizes, one with cropped positions (CPE), of which every
training picture sees a part. Judged on test pictures at rising sizes (`on=artefacts,agreement`): the share of the
patches' variance that is the same for all pictures, being of the place alone, and how well the CLIP's patches are
answered.

The claim: at three and four times the trained size, CPE has the fewer artefacts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import common
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import synoptic

SIZES = (32, 48, 64, 96, 144, 192)
SHARED = {
    **{"model": "vit_mini8", "size": 48, "batch": 48, "optim.lr": "2e-3", "optim.warmup": 0.2, "summary": "shared"},
    **{"head_hidden": 192, "crop_scale": "0.6,1.0", "evaluate_every": 10000, "loader.validation": 0.05},
    **{"precision": "fp32", "device": "cpu"},
}
POSITIONS = {"interpolated": "learned", "CPE": "cpe"}


def judged(run: Path, demo: Path, position: str, steps: int) -> dict[str, float]:
    """A student's curves; it is trained unless that was done before."""
    data, teachers = demo / "data" / "single", f"clip:{demo / 'teachers' / 'clip'},dino:{demo / 'teachers' / 'dino'}"
    if not (run / "weights").is_dir():
        keys = {**SHARED, "position": position, "steps": steps, "teachers": teachers, "data": data, "out": run}
        common.synoptic("train radio", keys)
    on = ["artefacts", "agreement"]
    return synoptic.evaluate(run, on=on, data=str(data), teachers=f"clip:{demo / 'teachers' / 'clip'}", sizes=SIZES)


def drawn(curves: dict[str, dict[str, float]], path: Path) -> None:
    """Artefacts and agreement over size."""
    figure, both = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    told = {
        "artefacts_unbiased": "share of variance that is of the place",
        "agreement_clip_cosine": "agreement with CLIP",
    }
    for axes, (key, label) in zip(both, told.items(), strict=True):
        common.curves(axes, SIZES, curves, key)
        axes.set_xlabel("side of the pictures in pixels (trained at 48)")
        axes.set_ylabel(label)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="the demo's folder, made where it is not")
    parser.add_argument("--folder", type=Path, default=Path("runs/positions"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--picture", type=Path, default=Path("docs/images/positions.png"))
    options = parser.parse_args()
    common.synoptic("demo", {"out": options.demo})
    curves: dict[str, dict[str, Any]] = {
        name: judged(options.folder / position, options.demo, position, options.steps)
        for name, position in POSITIONS.items()
    }
    drawn(curves, options.picture)
    failures = []
    for size in SIZES:
        first, second = (scores[f"artefacts_unbiased@{size}"] for scores in curves.values())
        print(f"{size:4} px: artefacts {first:.4f} interpolated, {second:.4f} CPE", flush=True)
        if size >= 3 * SHARED["size"] and second >= first:
            failures.append(f"{second:.4f} against {first:.4f} at {size} px")
    common.finish("positions", {"steps": options.steps, "sizes": SIZES, "curves": curves}, "CPE has fewer", failures)


if __name__ == "__main__":
    main()
