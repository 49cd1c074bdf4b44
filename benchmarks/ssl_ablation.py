"""What each part of DINOv2 is worth in a short run on photographs: one thing changed at a time, three seeds.

    python benchmarks/ssl_ablation.py [--data DIR] [--folder runs/ssl_ablation] [--seeds 3] [--jobs 2]

DIR is the folder that SYNOPTIC_DATA names. Models learn from `imagenette96/train`, less a tenth that is set apart. They
are judged by 10-NN of that tenth (500 pictures of ten classes) among the rest, at the 64 pixels of the training and at
the 96 of its high-resolution phase, by a linear probe from patches to the classes of pixels on `camvid240` (184 road
pictures to fit, 117 to judge by), and by the rank of their embeddings. What lies in FOLDER already is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import common
import torch

import synoptic
from synoptic.engine.observe import read_metrics
from synoptic.evaluation.protocols import build_evaluator
from synoptic.methods import get_method
from synoptic.predict import VisionModel

STEPS = 300
SEEN = (64, 96)  # pixels: sides of the pictures whose neighbours are asked about
PROBED = 224  # pixels: side of the pictures whose patches are probed
BASE: Mapping[str, Any] = {
    **{"preset": "photos", "steps": STEPS, "evaluate_every": STEPS, "checkpoint_every": STEPS},
    **{"device": "cpu", "threads": 1},
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "running mean in place of Sinkhorn-Knopp": {"centring": "mean"},
    "running mean and the paper's temperature": {
        **{"centring": "mean", "teacher_temperature": 0.04, "teacher_temperature_start": 0.04}
    },
    "one head for crops and patches": {"heads": "tied"},
    "without KoLeo": {"koleo": 0},
    "without masks": {"ibot": 0},
    "with a high-resolution phase": {"high_resolution.share": 0.2, "high_resolution.scale": 1.5},
}


def scores(data: Path, folder: Path, variant: str, seed: int) -> dict[str, float]:
    """Scores of a variant, which is trained and judged unless that was done before."""
    run = folder / f"{variant.replace(' ', '_')}-{seed}"
    found = run / "scores.json"
    if not (run / "weights").is_dir():
        keys = {**BASE, **VARIANTS[variant], "data": data / "imagenette96" / "train", "out": run, "seed": seed}
        common.synoptic("train dinov2", keys)
    if not found.is_file():
        found.write_text(json.dumps(judged(synoptic.load(run), data)))
    scored: dict[str, float] = json.loads(found.read_text())
    last = next(line["evaluation"] for line in reversed(read_metrics(run / "metrics.jsonl")) if "evaluation" in line)
    return scored | {"rankme": last["rankme"]}


def judged(model: VisionModel, data: Path) -> dict[str, float]:
    """10-NN for each size, and the mean intersection over union of the probe."""

    def at(size: int) -> VisionModel:
        return VisionModel(model.model, replace(model.preprocess, size=size), model.name)

    knn = build_evaluator("knn", str(data / "imagenette96" / "train"), "validation")
    segmentation = build_evaluator("segmentation", str(data / "camvid240"), "test")
    found = {f"knn_{size}": dict(knn.run(at(size)))["knn_10"] for size in SEEN}
    return {**found, **dict(segmentation.run(at(PROBED)))}


def summary(found: Mapping[tuple[str, int], Mapping[str, float]], seeds: int) -> dict[str, Any]:
    """For each variant and score its values, their mean, and the mean and the deviation of the differences from the
    base with equal seeds.

    Args:
        found: scores by name, of each variant and seed.
        seeds: how many.
    """
    table: dict[str, Any] = {}
    for variant, score in product(VARIANTS, next(iter(found.values()))):
        values = [found[variant, seed][score] for seed in range(seeds)]
        changes = [value - found["as it is", seed][score] for seed, value in enumerate(values)]
        table.setdefault(variant, {})[score] = {
            "seeds": [round(value, 4) for value in values],
            "mean": round(statistics.mean(values), 4),
            "change": round(statistics.mean(changes), 4),
            "deviation": round(statistics.stdev(changes), 4) if seeds > 1 else None,
        }
    return table


def show(table: Mapping[str, Any]) -> None:
    """Prints the table as it stands in the documentation."""
    scores = next(iter(table.values()))
    print(f"| | {' | '.join(scores)} |\n|{' --- |' * (1 + len(scores))}")
    for variant, row in table.items():
        cells = (cell(row[score], digits=1 if score == "rankme" else 3) for score in row)
        print(f"| {variant} | {' | '.join(cells)} |")


def cell(values: Mapping[str, Any], digits: int) -> str:
    """The mean, and how far it lies from the base."""
    mean = f"{values['mean']:.{digits}f}"
    if not values["change"]:
        return mean
    return f"{mean} ({values['change']:+.{digits}f} ± {values['deviation'] or 0:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SYNOPTIC_DATA", "")))
    parser.add_argument("--folder", type=Path, default=Path("runs/ssl_ablation"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once, of one thread each")
    arguments = parser.parse_args()
    if not all((arguments.data / name).is_dir() for name in ("imagenette96", "camvid240")):
        print("left out, since the photographs are not there; give --data, or set SYNOPTIC_DATA")
        return
    torch.set_num_threads(1)
    cells = [(variant, seed) for seed in range(arguments.seeds) for variant in VARIANTS]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = dict(
            zip(cells, pool.map(lambda cell: scores(arguments.data, arguments.folder, *cell), cells), strict=True)
        )
    table = summary(found, arguments.seeds)
    show(table)
    keys = {**get_method("dinov2").presets["photos"], **BASE}
    common.finish("ssl_ablation", {"keys": keys, "variants": table}, "what each part of DINOv2 is worth", [])


if __name__ == "__main__":
    main()
