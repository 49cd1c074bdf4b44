"""What DINO and DINOv2 learn from 5,000 photographs in less than half an hour on two cores, from random weights.

    python benchmarks/ssl_photographs.py [--data DIR] [--folder runs/ssl_photographs] [--device cpu]

DIR is `imagenette96` below the folder that SYNOPTIC_DATA names. Each is trained by its `preset=photos` on 4,500
pictures of `train/`; the 500 others choose the checkpoint. Then the test pictures are asked about, once: 10-NN among
all training pictures, as in imagenette_floors.py, whose floors stand beside it. What lies in FOLDER already is not
trained again.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

import common
import imagenette_floors as floors

import synoptic
from synoptic.data.sources import Source, open_source
from synoptic.engine.observe import read_metrics

METHODS = ("dino", "dinov2")
NEIGHBOURS = 10
MINUTES = 30  # that a training may take
MARGIN = 0.08  # by which the untrained network is to be beaten


def trained(method: str, data: Path, folder: Path, device: str) -> Path:
    """The run of a method, which is trained unless that was done before."""
    run = folder / method
    if not (run / "weights").is_dir():
        devices = 2 if device == "cpu" else 1
        keys = {"preset": "photos", "data": data / "train", "out": run, "device": device, "devices": devices}
        common.synoptic(f"train {method}", keys)
    return run


def judged(run: Path, train: Source, test: Source) -> dict[str, Any]:
    """Scores of a run, and what it took."""
    model = synoptic.load(run)
    lines = read_metrics(run / "metrics.jsonl")
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return {
        "test": round(floors.score(model, train, test, NEIGHBOURS), 4),
        "minutes": round(model.trained["seconds"] / 60, 1),
        "images_per_second": round(statistics.median(speeds)),
        "chosen_after": model.trained["steps"],
        "validation": {line["step"]: line["evaluation"]["knn"] for line in lines if "evaluation" in line},
    }


def failures(results: dict[str, Any]) -> list[str]:
    """What speaks against the claim."""
    found = []
    for method in METHODS:
        score, minutes = results[method]["test"], results[method]["minutes"]
        if score < max(results["hand_made"], results["untrained"] + MARGIN):
            found.append(f"{method}: {score}")
        if minutes > MINUTES:
            found.append(f"{method}: {minutes} minutes")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SYNOPTIC_DATA", "")) / "imagenette96")
    parser.add_argument("--folder", type=Path, default=Path("runs/ssl_photographs"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"left out, since {arguments.data} is not there; give --data, or set SYNOPTIC_DATA")
        return
    runs = {method: trained(method, arguments.data, arguments.folder, arguments.device) for method in METHODS}
    train, test = open_source(str(arguments.data), "all"), open_source(str(arguments.data), "test")
    untrained = [floors.score(floors.untrained("vit_mini16", 64, seed), train, test, NEIGHBOURS) for seed in (0, 1, 2)]
    results: dict[str, Any] = {
        "hand_made": floors.score(floors.HandMade(), train, test, NEIGHBOURS),
        "untrained": round(statistics.mean(untrained), 4),
        **{method: judged(run, train, test) for method, run in runs.items()},
    }
    for name, found in results.items():
        print(f"{name:10} {found}")
    name = "ssl_photographs" if arguments.device == "cpu" else "ssl_photographs_gpu"
    claim = f"above hand-made features, and {MARGIN} above an untrained network, within {MINUTES} minutes"
    common.finish(name, {"device": arguments.device, "knn": NEIGHBOURS, **results}, claim, failures(results))


if __name__ == "__main__":
    main()
