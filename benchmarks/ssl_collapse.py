"""What centring and sharpening each keep a self-distilling network from, and whether the guard says so.

    python benchmarks/ssl_collapse.py [--folder runs/ssl_collapse] [--picture docs/images/collapse.png]

Four trainings of DINO that differ in nothing but these two (DINO sec. 5.3, arXiv 2104.14294), on 2,500 scenes of one
object. The picture shows the entropy of the teacher's targets, of its largest value, and how far the student is from
them: at no distance the two agree on an answer that tells no picture from another. Marks are what the guard told, by
name. What lies in FOLDER already is not made again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import common
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from synoptic.engine.observe import read_metrics
from synoptic.methods.collapse import ALIKE, SAME, WINS

PROTOTYPES = 256
KEYS: Mapping[str, Any] = {
    **{"model": "vit_nano8", "size": 32, "batch": 64, "steps": 400, "device": "cpu", "threads": 1, "precision": "fp32"},
    **{"optim.lr": 5e-4, "prototypes": PROTOTYPES, "head_hidden": 256, "bottleneck": 64, "drop_path": 0},
    **{"teacher_temperature": 0.02, "teacher_temperature_start": 0.02, "momentum": 0.99},
    **{"crops.local_count": 4, "log_every": 5, "evaluate_every": 40, "checkpoint_every": 400},
}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "both": {},
    "centring alone": {"sharpening": "false"},
    "sharpening alone": {"centring": "none"},
    "neither": {"sharpening": "false", "centring": "none"},
}
COLOURS = ("#1b7837", "#2166ac", "#b2182b", "#6a51a3")


def metrics(folder: Path, way: str) -> list[dict[str, Any]]:
    """The metrics of a training, which is run unless that was done before."""
    run = folder / way.replace(" ", "_")
    if not (run / "weights").is_dir():
        keys = {**KEYS, **WAYS[way], "data": folder / "scenes", "out": run}
        common.synoptic("train dino", keys)
    return read_metrics(run / "metrics.jsonl")


def draw(ways: Mapping[str, list[dict[str, Any]]], path: Path) -> None:
    figure = Figure(figsize=(9, 3.4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharex=True)
    for (way, lines), colour in zip(ways.items(), COLOURS, strict=True):
        looks = [line for line in lines if "target_entropy" in line]
        steps = [line["step"] for line in looks]
        entropy = [line["target_entropy"] / math.log(PROTOTYPES) for line in looks]
        left.plot(steps, entropy, color=colour, linewidth=1.6)
        divergence = [line["dino"] - line["target_entropy"] for line in looks]
        right.plot(steps, divergence, color=colour, linewidth=1.6, label=way)
        for step, name in told(lines):
            height = entropy[steps.index(step)]
            left.plot(step, height, "o", color=colour, markersize=5)
            offset = (4, -12) if height > 0.5 else (4, 7)
            left.annotate(name, (step, height), offset, textcoords="offset points", color=colour, fontsize=8)
    left.set_title("entropy of the teacher's targets / ln K", fontsize=9)
    left.set_ylim(-0.05, 1.1)
    right.set_title("KL divergence of the student from its targets, nats", fontsize=9)
    for axes in (left, right):
        axes.set_xlabel("step", fontsize=9)
        axes.grid(axis="y", linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, fontsize=8, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def told(lines: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """(step, name) of what the guard told."""
    return [(line["step"], line["diagnosis"].split(":")[0]) for line in lines if "diagnosis" in line]


def failures(names: Mapping[str, list[str]]) -> list[str]:
    """What speaks against the claim."""
    found = []
    if names["both"]:
        found.append(f"both: {names['both']}")
    for way, wanted in {"centring alone": {ALIKE}, "sharpening alone": {WINS}, "neither": {ALIKE, WINS, SAME}}.items():
        if not {ill.name for ill in wanted} & set(names[way]):
            found.append(f"{way}: {names[way] or 'nothing told'}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/ssl_collapse"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/collapse.png"))
    arguments = parser.parse_args()
    if not (arguments.folder / "scenes" / "scenes.json").is_file():
        keys = {"out": arguments.folder / "scenes", "count": 2500, "objects": 1, "size": 48, "seed": 0}
        common.synoptic("scenes", keys)
    ways = {way: metrics(arguments.folder, way) for way in WAYS}
    draw(ways, arguments.picture)
    results = {}
    for way, lines in ways.items():
        last = [line for line in lines if "target_entropy" in line][-1]
        scores = [line["evaluation"] for line in lines if "evaluation" in line][-1]
        results[way] = {
            "told": told(lines),
            "target_entropy": round(last["target_entropy"] / math.log(PROTOTYPES), 4),
            "divergence": round(last["dino"] - last["target_entropy"], 4),
            "prototypes_used": round(last["prototypes_used"], 4),
            **scores,
        }
        print(f"{way:18} {results[way]}")
    names = {way: [name for _, name in found["told"]] for way, found in results.items()}
    common.finish(
        "ssl_collapse",
        {"keys": KEYS, "ways": results},
        "one without the other collapses, and is named",
        failures(names),
    )


if __name__ == "__main__":
    main()
