"""What each part of a step of distillation costs: data, teachers, student, heads and losses.

    python benchmarks/distillation.py [--repeats 5] [--model vit_b16] [--batch 4]

Two teachers and a student of the same architecture (ViT-B/16, random weights, pictures of 224 pixels), fp32 and
bfloat16, with AM-RADIO's loss and with PHI-S's. Parts are timed one after the other in every repeat, so that what slows
the machine down slows all; each is the median over the repeats. "heads and losses" begins with the student's features,
forward and backward, down to the gradients of these features; "student" is its trunk, forward and backward. Taking the
statistics of teachers, which ends early in a stage, is no part of it.

The claim: heads and losses together take less than a tenth of a step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor

from synoptic.config import from_dict
from synoptic.data.sources import Source
from synoptic.methods import get_method
from synoptic.models.vit import ViT, vit_config
from synoptic.predict import VisionModel
from synoptic.types import Batch, Features, Preprocess

MOST = 0.1  # of a step
LOSSES: dict[str, dict[str, Any]] = {
    "am-radio": {},
    "phi-s": {"standardise": "phi_s", "patch_loss": "mse"},
}


def task_of(folder: Path, model: str, batch: int, losses: dict[str, Any]) -> Any:
    """The task, with teachers of the same architecture."""
    recipe = get_method("radio")
    teachers = f"one:{folder}/one,two:{folder}/two"
    values = {"data": "d", "out": "o", "model": model, "size": 224, "batch": batch, "steps": 100, "teachers": teachers}
    config: Any = from_dict(recipe.config, {**values, **losses}, "radio")
    return recipe.build(recipe.resolve(config, 100), Source(Path("p"), [Path("a.jpg")])).train()


def batch_of(count: int) -> Batch:
    """Photographs' worth of bytes, larger than what networks see."""
    images = torch.randint(0, 256, (count, 3, 320, 320), dtype=torch.uint8)
    return Batch(images=images, index=torch.arange(count), position=torch.arange(count))


class Parts:
    """The parts of a step, each as a call that ends with what the next one needs.

    Args:
        task: of a distillation.
        half: whether networks compute in bfloat16.
    """

    def __init__(self, task: Any, half: bool, batch: int):
        self.task, self.half, self.raw = task, half, batch_of(batch)
        self.prepared: Batch = task.prepare(self.raw, 0)
        self.images = self.prepared.crops[0]
        self.answers: dict[str, Features] = {}
        self.features: Any = None
        self.gradients: tuple[Tensor, Tensor] | None = None

    def data(self) -> None:
        self.prepared = self.task.prepare(self.raw, 0)

    def teachers(self) -> None:
        with self._cast():
            shown = self.task.shown[224]
            self.answers = {
                name: self.task.teachers[name].seen(self.images, view) for name, view in shown.views.items()
            }

    def student(self) -> None:
        """Forward, and backward from the gradients that heads and losses found last."""
        with self._cast():
            self.features = self.task.student.backbone(self.images)
        if self.gradients is not None:
            torch.autograd.backward((self.features.summary, self.features.patches), self.gradients)

    def heads_and_losses(self) -> None:
        summary, patches = (
            tensor.detach().requires_grad_() for tensor in (self.features.summary, self.features.patches)
        )
        student, found = self.task.student, Features(patches, self.features.grid, summary)
        with self._cast():
            for name, theirs in self.answers.items():
                self.task._watch(name, theirs, 0.99)
            answers = {name: each.float() for name, each in student.standard(found, list(self.answers)).items()}
            terms: dict[str, Tensor] = {}
            for name, theirs in self.answers.items():
                singly = self.task._losses_of(name, answers[name], theirs, (0, 0), (0, 0))
                terms |= {term: each.mean() for term, each in singly.items()}
            loss = self.task.balancer(terms)
        loss.backward()
        self.gradients = (summary.grad, patches.grad)  # type: ignore[assignment]

    def _cast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.half)


def timed(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measured(parts: Parts, repeats: int) -> dict[str, float]:
    """Median seconds of each part."""
    calls = {
        "data": parts.data,
        "teachers": parts.teachers,
        "student": parts.student,
        "heads and losses": parts.heads_and_losses,
    }
    for call in (*calls.values(), parts.student):
        call()  # warm, and the student with its gradients
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            found[name].append(timed(call))
        parts.task.zero_grad(set_to_none=True)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default="vit_b16", help="of teachers and student")
    parser.add_argument("--batch", type=int, default=4, help="pictures a step")
    options = parser.parse_args()
    rows, failures = [], []
    with tempfile.TemporaryDirectory() as name:
        for teacher in ("one", "two"):
            VisionModel(ViT(vit_config(options.model)), Preprocess(224), teacher).save(Path(name) / teacher)
        for losses, values in LOSSES.items():
            task = task_of(Path(name), options.model, options.batch, values)
            for precision in ("fp32", "bf16"):
                seconds = measured(Parts(task, precision == "bf16", options.batch), options.repeats)
                whole = sum(seconds.values())
                shares = {part: round(each / whole, 4) for part, each in seconds.items()}
                rows.append({"losses": losses, "precision": precision, "step_seconds": round(whole, 3), **shares})
                print(
                    losses,
                    precision,
                    f"{whole:.2f} s a step:",
                    ", ".join(f"{p} {100 * s:.1f} %" for p, s in shares.items()),
                )
                if shares["heads and losses"] >= MOST:
                    failures.append(f"{shares['heads and losses']:.3f} of a step ({losses}, {precision})")
    common.finish(
        "distillation",
        {"model": options.model, "batch": options.batch, "repeats": options.repeats, "results": rows},
        "heads and losses take less than a tenth of a step",
        failures,
    )


if __name__ == "__main__":
    main()
