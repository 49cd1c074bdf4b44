"""What a further teacher costs the old ones, and what it brings.

    python benchmarks/further_teacher.py [--demo runs/demo] [--folder runs/further_teacher] [--steps 400] [--seeds 0,1]

A student `vit_mini8` of 48 pixels learns from the CLIP of the demo alone; then it gets the demo's DINO
(`init=RUN teachers=+dino:...`), with the CLIP away: the student itself, as it was, keeps the old task. Beside it a
student that learned from both at once, as long as both trainings together. Zero-shot is the CLIP's task, k-NN in the
DINO's space the DINO's; (student - chance) / (teacher - chance) is how much of a teacher's score is kept.

The claim: the old teacher's task loses less than 2 points, and the new one's reaches 0.9 of the teacher's score.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import common

import synoptic

MOST_LOST, LEAST_KEPT = 0.02, 0.9
CHANCE = {"zeroshot": 1 / 64, "knn": 1 / 10}
SHARED = {
    **{"size": 48, "batch": 48, "optim.lr": "2e-3", "optim.warmup": 0.2, "crop_scale": "0.6,1.0"},
    **{"evaluate_every": 10000, "loader.validation": 0.05, "precision": "fp32", "device": "cpu"},
}
BEGUN = {"model": "vit_mini8", "position": "learned", "head_hidden": 192}


def student(run: Path, keys: Mapping[str, Any]) -> Path:
    """A student, which is trained unless that was done before."""
    if not (run / "weights").is_dir():
        common.synoptic("train radio", {**SHARED, **keys, "out": run})
    return run


def judged(run: Path, data: str) -> dict[str, float]:
    """The task of each teacher that the student knows."""
    model = synoptic.load(run, "cpu")
    scores = {"zeroshot": synoptic.evaluate(model, on=["zeroshot"], data=data)["zeroshot"]}
    if "dino" in model.adaptors:
        scores["knn"] = synoptic.evaluate(model, on=["knn"], data=data, adaptor="dino")["knn_dino"]
    return scores


def trained(folder: Path, demo: Path, steps: int, seed: int) -> dict[str, dict[str, float]]:
    """The scores of a seed's students: before, after, and of both teachers at once."""
    data = demo / "data" / "single"
    clip, dino = f"clip:{demo / 'teachers' / 'clip'}", f"dino:{demo / 'teachers' / 'dino'}"
    keys = {"data": data, "seed": seed, "steps": steps}
    before = student(folder / f"before-{seed}", {**keys, **BEGUN, "teachers": clip})
    after = student(folder / f"after-{seed}", {**keys, "init": before, "teachers": f"+{dino}"})
    both = student(folder / f"both-{seed}", {**keys, **BEGUN, "teachers": f"{clip},{dino}", "steps": 2 * steps})
    return {name: judged(run, str(data)) for name, run in (("before", before), ("after", after), ("both", both))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="the demo's folder, made where it is not")
    parser.add_argument("--folder", type=Path, default=Path("runs/further_teacher"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    common.synoptic("demo", {"out": options.demo})
    data = str(options.demo / "data" / "single")
    teacher = {
        "zeroshot": synoptic.evaluate(options.demo / "teachers" / "clip", on=["zeroshot"], data=data)["zeroshot"],
        "knn": synoptic.evaluate(options.demo / "teachers" / "dino", on=["knn"], data=data)["knn"],
    }
    seeds = [int(seed) for seed in options.seeds.split(",")]
    runs = [trained(options.folder, options.demo, options.steps, seed) for seed in seeds]
    means = {
        name: {score: round(statistics.mean(run[name][score] for run in runs), 4) for score in runs[0][name]}
        for name in runs[0]
    }
    for name, scores in {"teachers": teacher, **means}.items():
        print(f"{name:10}", ", ".join(f"{score} {value:.3f}" for score, value in scores.items()), flush=True)
    kept = {
        score: round((means["after"][score] - chance) / (teacher[score] - chance), 3)
        for score, chance in CHANCE.items()
    }
    lost = means["before"]["zeroshot"] - means["after"]["zeroshot"]
    failures = [f"zero-shot loses {lost:.3f}"] if lost >= MOST_LOST else []
    failures += [f"k-NN keeps {kept['knn']} of the teacher's"] if kept["knn"] < LEAST_KEPT else []
    results = {"steps": options.steps, "seeds": seeds, "teachers": teacher, "means": means, "kept": kept, "runs": runs}
    common.finish("further_teacher", results, "old tasks lose less than 2 points, the new one reaches 0.9", failures)


if __name__ == "__main__":
    main()
