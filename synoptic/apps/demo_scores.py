"""The demo's judgement: ``python -m synoptic.apps.demo_scores OUT THREADS SUBJECT ...``, each subject once.

Writes `scores/<subject>.json` with the scores, as `synoptic evaluate` finds them, and `scores/<subject>.npz` with what
they were counted from, so that the report can show it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synoptic.apps.demo_journal import open_demo
from synoptic.apps.demo_steps import TEACHERS, Demo
from synoptic.config import from_dict, load_json
from synoptic.data.sources import open_source
from synoptic.evaluation.dense import Confusion, Segmentation, read_mask, segment
from synoptic.evaluation.features import RawPixels, Space, encode
from synoptic.evaluation.protocols import zeroshot
from synoptic.evaluation.recognition import KNN, Recognised
from synoptic.files import write_atomically
from synoptic.methods import get_method
from synoptic.predict import VisionModel, load
from synoptic.types import EncodesImages, Preprocess
from synoptic.weights.folder import text_towers

EXAMPLES = 6  # test pictures whose segmentation is kept


def main(out: str, threads: str, *subjects: str) -> None:
    """Judges subjects one after the other."""
    torch.set_num_threads(int(threads))
    demo = open_demo(Path(out))
    for subject in subjects:
        begun = time.perf_counter()
        if subject == "untrained":
            untrained(demo).save(demo.run("untrained"))
        scores, evidence = chance(demo) if subject == "chance" else judge(demo, subject)
        _save(demo, subject, scores, evidence, time.perf_counter() - begun)


def judge(demo: Demo, subject: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The scores of a model, by name as `synoptic evaluate` names them, and what they were counted from."""
    model: Any = RawPixels() if subject == "raw_pixels" else load(demo.run(subject), "cpu")
    spaces = (Space(), *(Space(teacher) for teacher in TEACHERS if subject == "student"))
    test = open_source(str(demo.data("single")), "test")
    scores: dict[str, float] = {}
    evidence: dict[str, np.ndarray] = {}
    for name, recognised in KNN(open_source(str(demo.data("single")), "train"), test, spaces=spaces).judge(model):
        scores[name] = recognised.accuracy()
        evidence |= _kept(name, recognised)
    if isinstance(model, VisionModel) and text_towers(model.model):
        recognised = zeroshot(test).judge(model)
        scores["zeroshot"] = recognised.accuracy()
        evidence |= _kept("zeroshot", recognised)
    confusion, masks = _segmented(demo, model)
    scores["segmentation_miou"] = confusion.miou
    return scores, evidence | {"segmentation_iou": confusion.iou, "segmentation_masks": masks}


def _segmented(demo: Demo, model: EncodesImages) -> tuple[Confusion, np.ndarray]:
    """How well a linear probe does, and (EXAMPLES, H, W) uint8, what it says of the first test pictures."""
    train, test = (open_source(str(demo.data("multi")), part) for part in ("train", "test"))
    segmentation = Segmentation(train, test)
    probe = segmentation.fit(model)
    first = range(min(EXAMPLES, len(test)))
    logits = [probe.logits(batch.features) for batch in encode(model, test, first, mode="squash")]
    size = (demo.recipe.size, demo.recipe.size)
    masks = [segment(each, size) for part in logits for each in part]
    return segmentation.judge(model, probe), np.stack(masks).astype(np.uint8)


def _kept(name: str, recognised: Recognised) -> dict[str, np.ndarray]:
    kept = {f"{name}_{part}": getattr(recognised, part) for part in ("index", "truth", "predicted")}
    if recognised.neighbours is not None:
        kept[f"{name}_neighbours"] = recognised.neighbours.index.astype(np.int32)
    return kept


def untrained(demo: Demo) -> VisionModel:
    """The student as it was before its first step: its network and the teachers' words, all else random."""
    path = demo.run("student") / "config.json"
    recipe = get_method("radio")
    config = from_dict(recipe.config, load_json(path), str(path))
    source = open_source(config.data, "train", validation=config.loader.validation)
    torch.manual_seed(config.seed)
    assert config.size is not None
    facts = {"method": "none: random weights", "architecture": config.model, "seed": config.seed}
    return VisionModel(recipe.build(config, source).exported(), Preprocess(config.size), "untrained", facts)


def chance(demo: Demo) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """What guessing gets: one of the classes at random, and for pixels the commonest class everywhere."""
    single, multi = (open_source(str(demo.data(name)), "test") for name in ("single", "multi"))
    assert multi.masks is not None
    pixels = np.bincount(np.concatenate([read_mask(path).ravel() for path in multi.masks]))
    scores = {
        "knn": 1 / len(single.classes),
        "zeroshot": 1 / zeroshot(single).seen,
        "segmentation_miou": float(pixels.max() / pixels.sum() / np.count_nonzero(pixels)),
    }
    return scores, {}


def _save(
    demo: Demo, subject: str, scores: Mapping[str, float], evidence: Mapping[str, np.ndarray], seconds: float
) -> None:
    path = demo.scores(subject)
    path.parent.mkdir(exist_ok=True)
    if evidence:
        write_atomically(
            path.with_suffix(".npz"), lambda file: np.savez_compressed(file, allow_pickle=False, **evidence)
        )
    counts = {name: len(evidence[f"{name}_truth"]) for name in scores if f"{name}_truth" in evidence}
    record = {"scores": scores, "pictures": counts, "weights": demo.weights_hash(subject), "seconds": round(seconds, 1)}
    write_atomically(path, lambda file: file.write((json.dumps(record, indent=2) + "\n").encode()))


if __name__ == "__main__":
    main(*sys.argv[1:])
