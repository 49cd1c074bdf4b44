"""What balances teachers of different units: losses of patches, losses of summaries, weights.

    python benchmarks/balance.py [--demo runs/demo] [--folder runs/balance] [--steps 240] [--seeds 0,1,2] [--only PART]

The teachers are the CLIP of the demo and its DINO, whose patches are made a hundred times as large, as those of a SAM
are beside a CLIP's (PHI-S, arXiv 2410.01680, table 7). Students `vit_mini8` of 48 pixels learn on those pictures of the
demo that show one object, three seeds a variant. Judged on test pictures: zero-shot in the CLIP's space (its task),
k-NN in the DINO's (its task), and how well the patches of each are answered (cosine, and the error in standardised
space, of which 1 is that of the mean).

Patches: the plain squared error; AM-RADIO's hybrid loss; the squared error of targets standardised globally, a channel,
and by PHI-S. Summaries: cosine (as in all of the former), L1, L2, smooth L1, angles over dispersion. Weights: fixed (as
in all of the former), learned by uncertainty, AdaLoss.

The claim, as in the paper's ablation: with plain squared errors the small teacher's patches are not learned, with
standardised ones they are, at no cost for the large one's.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import common
import torch

import synoptic

SCALE = 100.0
SHARED = {
    **{"model": "vit_mini8", "size": 48, "batch": 48, "optim.lr": "2e-3", "optim.warmup": 0.2, "summary": "shared"},
    **{"position": "learned", "crop_scale": "0.6,1.0", "head_hidden": 192, "evaluate_every": 10000},
    **{"loader.validation": 0.05, "precision": "fp32", "device": "cpu"},
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "patches": {
        "squared error": {"patch_loss": "mse"},
        "hybrid": {},
        "global": {"patch_loss": "mse", "standardise": "global"},
        "channel": {"patch_loss": "mse", "standardise": "channel"},
        "PHI-S": {"patch_loss": "mse", "standardise": "phi_s"},
    },
    "summaries": {
        "L1": {"summary_loss": "l1"},
        "L2": {"summary_loss": "l2"},
        "smooth L1": {"summary_loss": "smooth_l1"},
        "angle": {"summary_loss": "angle"},
    },
    "weights": {
        "uncertainty": {"balance": "uncertainty", "patch_loss": "mse", "standardise": "phi_s"},
        "AdaLoss": {"balance": "adaloss", "patch_loss": "mse", "standardise": "phi_s"},
    },
}
SIZE = SHARED["size"]


def enlarged(demo: Path, folder: Path) -> Path:
    """The demo's DINO with patches and summaries that are SCALE times as large."""
    if not folder.is_dir():
        model = synoptic.load(demo / "teachers" / "dino", "cpu")
        with torch.no_grad():
            model.model.norm.weight.mul_(SCALE)
            model.model.norm.bias.mul_(SCALE)
        model.save(folder)
    return folder


def student(run: Path, demo: Path, dino: Path, keys: Mapping[str, Any]) -> Path:
    """A student, which is trained unless that was done before."""
    if not (run / "weights").is_dir():
        data = demo / "data" / "single"
        teachers = f"clip:{demo / 'teachers' / 'clip'},dino:{dino}"
        common.synoptic("train radio", {**SHARED, **keys, "teachers": teachers, "data": data, "out": run})
    return run


def judged(run: Path, demo: Path, dino: Path) -> dict[str, float]:
    """The tasks of both teachers, and how well each is answered."""
    data, model = str(demo / "data" / "single"), synoptic.load(run, "cpu")
    teachers = {"clip": str(demo / "teachers" / "clip"), "dino": str(dino)}
    agreement = synoptic.evaluate(model, on=["agreement"], data=data, teachers=teachers, sizes=(SIZE,))
    return {
        "clip_zeroshot": synoptic.evaluate(model, on=["zeroshot"], data=data)["zeroshot"],
        "dino_knn": synoptic.evaluate(model, on=["knn"], data=data, adaptor="dino")["knn_dino"],
        **{
            f"{name}_{what}": agreement[f"agreement_{name}_{what}@{SIZE}"]
            for name in teachers
            for what in ("cosine", "error")
        },
    }


def failures(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What speaks against the claim."""
    if not {"squared error", "PHI-S"} <= rows.keys():
        return []
    plain, phi_s, found = rows["squared error"], rows["PHI-S"], []
    if not phi_s["clip_error"] < plain["clip_error"] - 0.1:
        found.append(f"errors of the CLIP's patches: {phi_s['clip_error']:.3f}, plain {plain['clip_error']:.3f}")
    if not phi_s["dino_error"] < plain["dino_error"] + 0.05:
        found.append(f"errors of the DINO's patches: {phi_s['dino_error']:.3f}, plain {plain['dino_error']:.3f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="the demo's folder, made where it is not")
    parser.add_argument("--folder", type=Path, default=Path("runs/balance"))
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", help="patches, summaries or weights")
    options = parser.parse_args()
    common.synoptic("demo", {"out": options.demo})
    dino, seeds = enlarged(options.demo, options.folder / "dino"), [int(seed) for seed in options.seeds.split(",")]
    parts = [part for part in VARIANTS if options.only in (None, part)]
    rows: dict[str, dict[str, float]] = {}
    spreads: dict[str, dict[str, float]] = {}
    for name, keys in ((name, keys) for part in parts for name, keys in VARIANTS[part].items()):
        runs = []
        for seed in seeds:
            run = options.folder / f"{name.replace(' ', '_')}-{seed}"
            run = student(run, options.demo, dino, {**keys, "steps": options.steps, "seed": seed})
            runs.append(judged(run, options.demo, dino))
        rows[name] = {score: round(statistics.mean(run[score] for run in runs), 4) for score in runs[0]}
        if len(runs) > 1:
            spreads[name] = {score: round(statistics.stdev(run[score] for run in runs), 4) for score in runs[0]}
        print(f"{name:14}", ", ".join(f"{score} {value:.3f}" for score, value in rows[name].items()), flush=True)
    common.finish(
        "balance" if options.only is None else f"balance_{options.only}",
        {"steps": options.steps, "seeds": seeds, "scale": SCALE, "results": rows, "deviations": spreads},
        "standardised targets are learned of both teachers, whatever their units",
        failures(rows),
    )


if __name__ == "__main__":
    main()
