"""Whether a model that learns on from given weights, on other pictures, stays as good as it was.

    python benchmarks/ssl_continuing.py [--data DIR] [--folder runs/ssl_continuing] [--picture FILE]

DIR is `imagenette96` below the folder that SYNOPTIC_DATA names. DINO learns from five of its classes, and goes on with
the five others, twice: as `init=` does it, the new head alone at first and then the backbone with it, and naively,
both at once and at their full rate from the first step. k-NN is that of 500 pictures of the new classes among 2,000,
from before the first step on. The picture is docs/images/continuing.png. What lies in FOLDER already is not made
again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import common
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from synoptic.engine.observe import read_metrics

ALLOWED = 0.1  # share by which k-NN may fall
KEYS: Mapping[str, Any] = {
    **{"preset": "photos", "device": "cpu", "threads": 1, "loader.validation": 0.2, "checkpoint_every": 300},
}
ON: Mapping[str, Any] = {"steps": 150, "evaluate_every": 10}
RUNS: Mapping[str, Mapping[str, Any]] = {
    "given": {"steps": 1200, "evaluate_every": 300, "devices": 2},
    "head first": {**ON, "head_warmup": 0.2, "max_drop": ALLOWED},
    "all at once": {**ON, "head_warmup": 0, "optim.warmup": 0, "max_drop": 1},  # shown to its end, however far it falls
}
COLOURS = {"head first": "#1b7837", "all at once": "#b2182b"}


def split(data: Path, folder: Path) -> None:
    """Links to the pictures of every other class, and to those of the rest."""
    classes = sorted(path for path in (data / "train").iterdir() if path.is_dir())
    for part, members in (("first", classes[::2]), ("second", classes[1::2])):
        for each in members:
            link = folder / part / each.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(each.resolve())


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    """(step, k-NN) of a training, which is run unless that was done before."""
    run = folder / name.replace(" ", "_")
    if not (run / "weights").is_dir():
        where = {"data": folder / "first"} if name == "given" else {"data": folder / "second", "init": folder / "given"}
        keys = {**KEYS, **RUNS[name], **where, "out": run}
        common.synoptic("train dino", keys)
    lines = read_metrics(run / "metrics.jsonl")
    return [(line["step"], line["evaluation"]["knn"]) for line in lines if "evaluation" in line]


def draw(curves: Mapping[str, list[tuple[int, float]]], path: Path) -> None:
    figure = Figure(figsize=(5.5, 3.2), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    before = curves["head first"][0][1]
    axes.axhline(before, color="#555555", linewidth=0.8)
    axes.axhline((1 - ALLOWED) * before, color="#555555", linewidth=0.8, linestyle=":")
    for at, text in ((before, "as given"), ((1 - ALLOWED) * before, f"max_drop={ALLOWED}")):
        axes.annotate(text, (150, at), (0, 2), textcoords="offset points", ha="right", fontsize=8, color="#555555")
    alone = RUNS["head first"]["head_warmup"] * ON["steps"]
    axes.axvspan(0, alone, color=COLOURS["head first"], alpha=0.1, linewidth=0)
    for name, colour in COLOURS.items():
        axes.plot(*zip(*curves[name], strict=True), color=colour, linewidth=1.6, label=name)
    axes.set_xlabel("step (shaded: the head learns alone)", fontsize=9)
    axes.set_ylabel("k-NN of the new classes", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SYNOPTIC_DATA", "")) / "imagenette96")
    parser.add_argument("--folder", type=Path, default=Path("runs/ssl_continuing"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/continuing.png"))
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"left out, since {arguments.data} is not there; give --data, or set SYNOPTIC_DATA")
        return
    split(arguments.data, arguments.folder)
    curves = {name: curve(arguments.folder, name) for name in RUNS}
    draw(curves, arguments.picture)
    results = {}
    for name in COLOURS:
        scores = [score for _, score in curves[name]]
        results[name] = {
            **{"before": scores[0], "lowest": min(scores[1:]), "last": scores[-1]},
            "fall": round(1 - min(scores[1:]) / scores[0], 4),
            "curve": curves[name],
        }
        print(f"{name:12} {', '.join(f'{key} {results[name][key]:.3f}' for key in ('before', 'lowest', 'last'))}")
    fall = results["head first"]["fall"]
    failures = [f"k-NN fell by {fall:.0%}"] if fall > ALLOWED else []
    claim = "given weights stay as good as they were, but for the share that is allowed"
    keys = {name: {**KEYS, **own} for name, own in RUNS.items()}
    common.finish("ssl_continuing", {"keys": keys, "allowed": ALLOWED, "runs": results}, claim, failures)


if __name__ == "__main__":
    main()
