"""Two teachers trained here on photographs, and their student: DINO without labels, CLIP from captions.

    python benchmarks/distilled_photographs.py [--data DIR] [--folder runs/distilled_photographs]

DIR is the folder that SYNOPTIC_DATA names. DINO learns from `imagenette96/train` (5,000 photographs) and CLIP from the
captions of `coco_mini` (311 photographs), each by its `preset=photos`, DINO for half of its steps; then a `vit_mini16`
of 96 pixels learns from both on `imagenette96/train`. All are scored once: k-NN among the training pictures and
zero-shot on `imagenette96/test`, recall among ten of the captions of `coco_mini` that nobody learned from, and a linear
probe of the patches on the road scenes of `camvid240` (mean IoU). Beside them the student's network before training.

The claim: above chance, the student keeps 0.9 of the better teacher's neighbours; its patches tell roads apart better
than those of the network with random weights.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import common
import torch

import synoptic

LEAST_KEPT, CHANCE = 0.9, 0.1  # of the classes of photographs
TOLD = ("knn", "segmentation_miou", "zeroshot", "image_to_text_r10", "text_to_image_r10")
STUDENT = {"model": "vit_mini16", "size": 96, "batch": 64, "optim.lr": "2e-3", "optim.warmup": 0.1, "epochs": 12}


def trained(words: str, run: Path, keys: dict[str, Any]) -> Path:
    """A run, which is trained unless that was done before."""
    if not (run / "weights").is_dir():
        common.synoptic(words, {**keys, "out": run, "device": "cpu"})
    return run


def judged(model: synoptic.VisionModel, data: Path) -> dict[str, float]:
    """What it does with photographs that nobody learned from."""
    photographs, captions = str(data / "imagenette96"), str(data / "coco_mini" / "captions_test.json")
    scores = synoptic.evaluate(model, on=["knn"], data=photographs)
    scores |= synoptic.evaluate(model, on=["segmentation"], data=str(data / "camvid240"))
    if model.speaks():
        scores |= synoptic.evaluate(model, on=["zeroshot"], data=photographs)
        scores |= synoptic.evaluate(model, on=["retrieval"], data=captions, adaptor=model.text_space)
    return {name: round(score, 4) for name, score in scores.items()}


def failures(results: dict[str, dict[str, float]]) -> list[str]:
    """What speaks against the claim."""
    student, untrained, found = results["student"], results["untrained"], []
    best = max(results["clip"]["knn"], results["dino"]["knn"])
    kept = (student["knn"] - CHANCE) / (best - CHANCE)
    if kept < LEAST_KEPT:
        found.append(f"of the neighbours {kept:.2f} are kept")
    if student["segmentation_miou"] <= untrained["segmentation_miou"]:
        found.append(
            f"segmentation {student['segmentation_miou']}, with random weights {untrained['segmentation_miou']}"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SYNOPTIC_DATA", "")))
    parser.add_argument("--folder", type=Path, default=Path("runs/distilled_photographs"))
    options = parser.parse_args()
    photographs, captions = options.data / "imagenette96", options.data / "coco_mini" / "captions_train.json"
    if not photographs.is_dir():
        print(f"left out, since {photographs} is not there; give --data, or set SYNOPTIC_DATA")
        return
    short = {"preset": "photos", "data": photographs / "train", "steps": 900, "devices": 2}
    dino = trained("train dino", options.folder / "dino", short)
    clip = trained("train clip", options.folder / "clip", {"preset": "photos", "data": captions})
    keys = {**STUDENT, "data": photographs / "train", "teachers": f"clip:{clip},dino:{dino}"}
    student = trained("train radio", options.folder / "student", keys)
    models = {"clip": clip, "dino": dino, "student": student, "untrained": STUDENT["model"]}
    torch.manual_seed(0)  # of the last
    results = {name: judged(synoptic.load(model, "cpu"), options.data) for name, model in models.items()}
    for name, scores in results.items():
        print(f"{name:10}", ", ".join(f"{score} {scores[score]:.3f}" for score in TOLD if score in scores), flush=True)
    claim = f"the student keeps {LEAST_KEPT} of its teachers' neighbours, and its patches have learned"
    common.finish("distilled_photographs", {"results": results}, claim, failures(results))


if __name__ == "__main__":
    main()
