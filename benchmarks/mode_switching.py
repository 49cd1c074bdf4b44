"""Mode switching: whether a student that learned at two resolutions is one model at both.

    python benchmarks/mode_switching.py [--demo runs/demo] [--folder runs/mode_switching] [--steps 400]

RADIO's first models were trained with CLIP and DINOv2 at low resolution and with SAM alone at a high one, and became
two models in one: from about 720 pixels on they answered as a SAM, and CLIP's task was lost (RADIOv2.5, arXiv
2412.07679). Here the sizes are scaled down to two CPU cores: a student `vit_mini8` sees pictures of 32 and of 96
pixels, the teachers are the CLIP of the demo and its DINO, which stands for the teacher of high resolution and is shown
96 pixels.

- "as RADIOv1": at 32 pixels the CLIP teaches alone, at 96 the DINO alone;
- "all teachers at all sizes": both teach at both sizes; the DINO sees small pictures nine at a time on a mosaic.

The same pictures, steps and seed. Judged on test pictures by how well the student answers in the CLIP's space
(`on=agreement`), at sizes from 24 to 128 pixels. The claim: as RADIOv1, the agreement falls between two neighbouring
sizes at least three times as far.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import common
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import synoptic

LEAST = 3.0  # times the drop of the recipe that has all teachers at all sizes
SIZES = (24, 32, 40, 48, 64, 80, 96, 128)
SHARED = {
    **{"model": "vit_mini8", "stages": "32+96@0", "size": 32, "batch": 32, "optim.lr": "1e-3", "summary": "shared"},
    **{"head_hidden": 192, "evaluate_every": 1000, "loader.validation": 0.05, "precision": "fp32", "device": "cpu"},
}
RECIPES: dict[str, dict[str, Any]] = {
    "as RADIOv1": {"teacher.clip.at": 32, "teacher.dino.at": 96, "teacher.dino.size": 96},
    "all teachers at all sizes": {"teacher.dino.size": 96, "teacher.dino.resize": "mosaic"},
}


def trained(run: Path, demo: Path, keys: Mapping[str, Any]) -> Path:
    """A student, which is trained unless that was done before."""
    if not (run / "weights").is_dir():
        teachers = f"clip:{demo / 'teachers' / 'clip'},dino:{demo / 'teachers' / 'dino'}"
        common.synoptic(
            "train radio", {**SHARED, **keys, "teachers": teachers, "data": demo / "data" / "single", "out": run}
        )
    return run


def curve(run: Path, demo: Path) -> dict[str, float]:
    """Scores of agreement with the CLIP, at every size."""
    teachers = f"clip:{demo / 'teachers' / 'clip'}"
    return synoptic.evaluate(run, on=["agreement"], data=str(demo / "data" / "single"), teachers=teachers, sizes=SIZES)


def drawn(curves: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Both curves in one picture."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    common.curves(axes, SIZES, curves, "agreement_clip_cosine")
    axes.set_xlabel("side of the student's pictures in pixels (trained at 32 and 96)")
    axes.set_ylabel("agreement with CLIP (mean cosine)")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="the demo's folder, made where it is not")
    parser.add_argument("--folder", type=Path, default=Path("runs/mode_switching"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--picture", type=Path, default=Path("docs/images/mode_switching.png"))
    options = parser.parse_args()
    common.synoptic("demo", {"out": options.demo})
    curves = {
        name: curve(
            trained(options.folder / name.replace(" ", "_"), options.demo, {**keys, "steps": options.steps}),
            options.demo,
        )
        for name, keys in RECIPES.items()
    }
    print(json.dumps(curves, indent=2))
    drawn(curves, options.picture)
    drops = {name: scores["agreement_clip_drop"] for name, scores in curves.items()}
    first, second = drops.values()
    failures = [] if first >= LEAST * second else [f"drops of {first:.3f} and {second:.3f}"]
    results = {"steps": options.steps, "sizes": SIZES, "drops": drops, "curves": curves}
    common.finish("mode_switching", results, f"as RADIOv1 the drop is at least {LEAST:g} times as large", failures)


if __name__ == "__main__":
    main()
