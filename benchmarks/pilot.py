"""Whether a pilot's ranking of four sets of pictures is that of runs four times as long.

    python benchmarks/pilot.py [--demo runs/demo] [--folder runs/pilot] [--steps 60] [--seeds 3]

`synoptic pilot` with the demo's CLIP and DINO as teachers, asked about the demo's test pictures of one object
(agreement with both teachers, and zero-shot), chooses from: training pictures of the same kind; pictures of several
objects; those of the first kind without their colours; and `imagenette96` below the folder that SYNOPTIC_DATA names,
photographs.
Then the same command with four times the steps.

The claim: the same set comes first, and of all pairs at most one neighbouring pair is in the other order (Spearman's
correlation of the ranks at least 0.8).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import common
from PIL import Image
from scipy.stats import spearmanr

LONGER = 4
LEAST = 0.8  # of the ranks' correlation
CONFIG = {
    **{"summary": "shared", "position": "learned", "crop_scale": [0.6, 1.0], "head_hidden": 192},
    **{"optim": {"lr": 2e-3, "warmup": 0.2}, "loader": {"validation": 0.05}, "precision": "fp32", "device": "cpu"},
}


def grey(source: Path, folder: Path) -> Path:
    """The pictures of a folder without their colours."""
    if not folder.is_dir():
        for path in sorted(source.rglob("*.png")) + sorted(source.rglob("*.jpg")):
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as picture:
                picture.convert("L").convert("RGB").save(target)
    return folder


def piloted(sets: dict[str, Path], demo: Path, folder: Path, steps: int, seeds: int) -> dict[str, Any]:
    """What a pilot says of each set, by its name, the best first; it is run unless it was before, of all of them."""
    names, record = {str(path): name for name, path in sets.items()}, folder / str(steps) / "pilot.json"
    if record.is_file():
        found = {each["data"]: each for each in json.loads(record.read_text())["candidates"]}
        if found.keys() == names.keys():
            return {names[data]: each for data, each in found.items()}
    config = folder / "config.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(CONFIG))
    keys = {
        "data": ",".join(map(str, sets.values())),
        "teachers": f"clip:{demo / 'teachers' / 'clip'},dino:{demo / 'teachers' / 'dino'}",
        "on": f"zeroshot,{demo / 'data' / 'single'}",
        "out": folder / str(steps),
        **{"model": "vit_mini8", "size": 48, "batch": 48, "config": config, "steps": steps, "seeds": seeds},
    }
    common.synoptic("pilot", keys)
    return {names[each["data"]]: each for each in json.loads(record.read_text())["candidates"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="the demo's folder, made where it is not")
    parser.add_argument("--folder", type=Path, default=Path("runs/pilot"))
    parser.add_argument("--photographs", type=Path, default=Path(os.environ.get("SYNOPTIC_DATA", "")) / "imagenette96")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if not options.photographs.is_dir():
        print(f"left out, since {options.photographs} is not there; give --photographs, or set SYNOPTIC_DATA")
        return
    common.synoptic("demo", {"out": options.demo})
    data = options.demo / "data"
    sets = {
        "same kind": data / "single",
        "several objects": data / "multi",
        "without colours": grey(data / "single" / "train", options.folder / "grey"),
        "photographs": options.photographs,
    }
    rivals = (options.steps, LONGER * options.steps)
    short, long = (piloted(sets, options.demo, options.folder, steps, options.seeds) for steps in rivals)
    correlation = float(spearmanr([short[name]["rank"] for name in sets], [long[name]["rank"] for name in sets])[0])
    for name, each in short.items():
        other = long[name]
        print(f"{name:16} {each['rank']} with {each['mean']:.4f}, longer {other['rank']} with {other['mean']:.4f}")
    failures = [] if next(iter(short)) == next(iter(long)) else [f"{next(iter(long))} comes first in longer runs"]
    failures += [f"the ranks' correlation is {correlation:.2f}"] if correlation < LEAST else []
    results = {"steps": rivals, "seeds": options.seeds, "correlation": correlation, "short": short, "long": long}
    common.finish("pilot", results, "a pilot ranks as longer runs do", failures)


if __name__ == "__main__":
    main()
