"""Position artefacts: cropped position embeddings against interpolated ones, at sizes that were never trained.

    python benchmarks/positions.py [--demo runs/demo] [--folder runs/positions] [--steps 400]

Two students `vit_mini8` of 48 pixels learn from the teachers of the demo, the same pictures in the same order: one with
a learned table of positions, which is interpolated at other sizes, one with cropped positions (CPE), of which every
training picture sees a part. Judged at rising sizes (`on=artefacts,agreement`): the share of the patches' variance that
is the same for all pictures, being of the place alone, and how well the CLIP's patches are answered. Test pictures have
floors below and objects in the middle, which are of their place, too; so what is judged are quarters of them, cut at
random places, turned and mirrored, in which nothing has a place.

The claim: at three and four times the trained size, CPE has the fewer artefacts.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import common
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image, ImageOps

import synoptic
from synoptic.data.sources import Source, open_source
from synoptic.evaluation.artefacts import PositionArtefacts

SIZES = (32, 48, 64, 96, 144, 192)
SHARED = {
    **{"model": "vit_mini8", "size": 48, "batch": 48, "optim.lr": "2e-3", "optim.warmup": 0.2, "summary": "shared"},
    **{"head_hidden": 192, "crop_scale": "0.6,1.0", "evaluate_every": 10000, "loader.validation": 0.05},
    **{"precision": "fp32", "device": "cpu"},
}
HIGHEST = 0.6  # of the scale of the maps
PICTURES = 500  # that are judged
POSITIONS = {"interpolated": "learned", "CPE": "cpe"}


def placeless(test: Source, folder: Path) -> Path:
    """A folder of quarters of pictures, cut at random places, turned and mirrored."""
    if folder.is_dir():
        return folder
    folder.mkdir(parents=True)
    draws = random.Random(0)
    for number, path in enumerate(test.sample(PICTURES).paths):
        with Image.open(path) as picture:
            side = min(picture.size) // 2
            left, top = (draws.randrange(length - side + 1) for length in picture.size)
            part = picture.convert("RGB").crop((left, top, left + side, top + side)).rotate(90 * draws.randrange(4))
            (ImageOps.mirror(part) if draws.random() < 0.5 else part).save(folder / f"{number:04}.png")
    return folder


def student(run: Path, demo: Path, position: str, steps: int) -> Path:
    """A student, which is trained unless that was done before."""
    data, teachers = demo / "data" / "single", f"clip:{demo / 'teachers' / 'clip'},dino:{demo / 'teachers' / 'dino'}"
    if not (run / "weights").is_dir():
        keys = {**SHARED, "position": position, "steps": steps, "teachers": teachers, "data": data, "out": run}
        common.synoptic("train radio", keys)
    return run


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


def mapped(runs: dict[str, Path], pictures: Path, path: Path) -> None:
    """How far the mean patch of each place lies from that of all places: a line a student, a column a size."""
    source = open_source(str(pictures), "all")
    figure, axes = plt.subplots(len(runs), len(SIZES), figsize=(9, 3.4), layout="constrained")
    for (name, run), line in zip(runs.items(), axes, strict=True):
        maps = PositionArtefacts(source).judge(synoptic.load(run, "cpu"), SIZES)
        for ax, (size, each) in zip(line, maps.items(), strict=True):
            shown = ax.imshow(each.deviation.numpy(), vmin=0.0, vmax=HIGHEST)
            ax.set_title(f"{name}, {size} px" if size == SIZES[0] else f"{size} px", fontsize=9)
            ax.set_xticks([])
            ax.set_yticks([])
    figure.colorbar(shown, ax=axes, label="in units of the patches' spread", shrink=0.8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="the demo's folder, made where it is not")
    parser.add_argument("--folder", type=Path, default=Path("runs/positions"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--picture", type=Path, default=Path("docs/images/positions.png"))
    options = parser.parse_args()
    common.synoptic("demo", {"out": options.demo})
    runs = {
        name: student(options.folder / position, options.demo, position, options.steps)
        for name, position in POSITIONS.items()
    }
    test = open_source(str(options.demo / "data" / "single"), "test")
    pictures, clip = placeless(test, options.folder / "placeless"), f"clip:{options.demo / 'teachers' / 'clip'}"
    curves = {
        name: synoptic.evaluate(run, on=["artefacts", "agreement"], data=str(pictures), teachers=clip, sizes=SIZES)
        for name, run in runs.items()
    }
    drawn(curves, options.picture)
    mapped(runs, pictures, options.picture.with_stem(f"{options.picture.stem}_maps"))
    failures = []
    for size in SIZES:
        first, second = (scores[f"artefacts_unbiased@{size}"] for scores in curves.values())
        print(f"{size:4} px: artefacts {first:.4f} interpolated, {second:.4f} CPE", flush=True)
        if size >= 3 * SHARED["size"] and second >= first:
            failures.append(f"{second:.4f} against {first:.4f} at {size} px")
    common.finish("positions", {"steps": options.steps, "sizes": SIZES, "curves": curves}, "CPE has fewer", failures)


if __name__ == "__main__":
    main()
