"""What CLIP learns from random weights: pairs of colour and shape in words, and captions of photographs.

    python benchmarks/clip_training.py [--data DIR] [--folder runs/clip_training] [--seeds 0,1,2]

Scenes: 6,000 drawn pictures of one object, by the demo's recipe. Its test pictures are classified by words among all 80
pairs of colour and shape; 64 of them were in the training pictures and their captions, 16 never, though each colour and
each shape was.

Photographs: the captioned training pictures of `coco_mini` (311, five captions each) by `preset=photos`, but for 3 that
are looked at meanwhile. DIR is the folder that SYNOPTIC_DATA names. The 102 test pictures and their captions are asked
about, once: recall both ways among all of them, with a 95 % interval (Wilson's, for as many trials as there are
pictures).

What lies in FOLDER already is not trained again. The claims: pairs that were never shown are told apart, too; recall
among ten is at least twice what guessing gives, both ways in the mean of the seeds, with the whole interval of every
seed above guessing.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common

import synoptic
from synoptic.apps.demo_recipe import FULL

PAIRS = 80
LEAST_UNSEEN = 10 / PAIRS  # ten times what guessing gives
LEAST_SEEN = 0.8
OVER_CHANCE = 2.0
WAYS = ("image_to_text_r10", "text_to_image_r10")


def trained(run: Path, keys: Mapping[str, Any]) -> Path:
    """A run of CLIP, which is trained unless that was done before."""
    if not (run / "weights").is_dir():
        common.synoptic("train clip", {**keys, "out": run, "device": "cpu"})
    return run


def scenes(folder: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Scores of each seed on scenes."""
    data = folder / "scenes"
    if not data.is_dir():
        common.synoptic("scenes", {"out": data, "count": FULL.single, "size": FULL.size, "objects": "1"})
    keys = {**FULL.clip, "data": data}
    return [judged(trained(folder / f"scenes-{seed}", {**keys, "seed": seed}), "zeroshot", data) for seed in seeds]


def photographs(folder: Path, data: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Scores of each seed on photographs."""
    keys = {"preset": "photos", "data": data / "captions_train.json", "loader.validation": 0.01}  # 3 of the 311
    test = data / "captions_test.json"
    return [judged(trained(folder / f"photos-{seed}", {**keys, "seed": seed}), "retrieval", test) for seed in seeds]


def judged(run: Path, on: str, data: Path) -> dict[str, Any]:
    """Scores of a run, and the minutes that it took."""
    model = synoptic.load(run)
    scores = {name: round(score, 4) for name, score in synoptic.evaluate(model, on=[on], data=str(data)).items()}
    return {**scores, "minutes": round(model.trained["seconds"] / 60, 1)}


def failures(results: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """What speaks against the claims."""
    found = []
    for seed, scores in enumerate(results["scenes"]):
        if scores["zeroshot_seen"] < LEAST_SEEN or scores["zeroshot_unseen"] < LEAST_UNSEEN:
            found.append(f"scenes {seed}: {scores['zeroshot_seen']} seen, {scores['zeroshot_unseen']} unseen")
    for way in WAYS:
        runs = results["photographs"]
        chance, mean = runs[0][f"{way}_chance"], statistics.mean(scores[way] for scores in runs)
        if mean < OVER_CHANCE * chance:
            found.append(f"photographs: {way} {mean:.4f}, guessing {chance}")
        found += [
            f"photographs {seed}: {way} might be {scores[f'{way}_low']}, guessing {chance}"
            for seed, scores in enumerate(runs)
            if scores[f"{way}_low"] <= chance
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SYNOPTIC_DATA", "")) / "coco_mini")
    parser.add_argument("--folder", type=Path, default=Path("runs/clip_training"))
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"left out, since {arguments.data} is not there; give --data, or set SYNOPTIC_DATA")
        return
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    results = {
        "scenes": scenes(arguments.folder, seeds),
        "photographs": photographs(arguments.folder, arguments.data, seeds),
    }
    for name, runs in results.items():
        for score in runs[0]:
            values = [run[score] for run in runs]
            print(
                f"{name:12} {score:28} {statistics.mean(values):.4f}  {', '.join(f'{value:.4f}' for value in values)}"
            )
    claim = (
        f"scenes: {LEAST_SEEN} of the seen pairs and {LEAST_UNSEEN} of the unseen ones among {PAIRS}; photographs: "
        f"recall among ten {OVER_CHANCE:g} times that of guessing"
    )
    common.finish("clip_training", {"seeds": seeds, **results}, claim, failures(results))


if __name__ == "__main__":
    main()
