"""What the demo does, as the commands that a user would type, and what each of them leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from synoptic.apps.demo_recipe import Recipe
from synoptic.apps.side_by_side import Job, Progress
from synoptic.engine.observe import read_metrics

TEACHERS = ("clip", "dino")
SUBJECTS = ("student", "untrained", "clip", "dino", "raw_pixels", "chance")  # of judgement, the slowest first
EARLY = ("clip", "raw_pixels", "chance")  # can be judged while DINO still learns
SHOWN = ("loss", "knn")  # of a training's metrics, while it runs


@dataclass(frozen=True)
class Demo:
    """A demo's folder and what belongs into it.

    Attributes:
        out: the folder.
        recipe: what is trained.
        seed: decides everything random, the pictures included.
    """

    out: Path
    recipe: Recipe
    seed: int

    def data(self, name: str) -> Path:
        """The folder of a set of pictures: single or multi."""
        return self.out / "data" / name

    def run(self, name: str) -> Path:
        """The run folder of a training: clip, dino or student; and the weights folder of the untrained student."""
        return self.out / "teachers" / name if name in TEACHERS else self.out / name

    def scores(self, subject: str) -> Path:
        """The scores of one of the SUBJECTS, with its evidence beside it (`.npz`)."""
        return self.out / "scores" / f"{subject}.json"

    @property
    def results(self) -> Path:
        return self.out / "results.json"

    @property
    def report(self) -> Path:
        return self.out / "report.html"

    def drawing(self, name: str) -> list[str]:
        """The command that draws a set of pictures."""
        count, objects = {"single": (self.recipe.single, "1"), "multi": (self.recipe.multi, "1..6")}[name]
        keys = {"count": count, "size": self.recipe.size, "seed": self.seed, "objects": objects}
        return ["scenes", *_typed({"out": self.data(name)} | keys)]

    def training(self, name: str) -> list[str]:
        """The command that trains a teacher or the student."""
        method, keys = {
            "clip": ("clip", self.recipe.clip),
            "dino": ("dino", self.recipe.dino),
            "student": ("radio", self.recipe.radio),
        }[name]
        data = ",".join(str(self.data(part)) for part in str(keys["data"]).split(","))
        taught = {"teachers": ",".join(f"{teacher}:{self.run(teacher)}" for teacher in TEACHERS)}
        own = {"data": data, "out": self.run(name)} | (taught if method == "radio" else {}) | {"seed": self.seed}
        return ["train", method, *_typed(own | {key: value for key, value in keys.items() if key != "data"})]

    def judging(self, name: str) -> list[list[str]]:
        """Commands that find the same scores of a model again."""
        words = "knn" if name == "dino" else "knn,zeroshot"
        on = {words: self.data("single"), "segmentation": self.data("multi")}
        return [["evaluate", str(self.run(name)), f"on={what}", f"data={data}"] for what, data in on.items()]

    def drawing_jobs(self) -> list[Job]:
        counts = {"single": self.recipe.single, "multi": self.recipe.multi}
        lacking = [name for name in counts if not (self.data(name) / "scenes.json").is_file()]
        return [
            Job(name, ("synoptic", *self.drawing(name)), partial(self._drawn, name, counts[name], self._begun(name)))
            for name in lacking
        ]

    def _begun(self, name: str) -> frozenset[Path]:
        """Folders in which a set of pictures is being drawn, or was when its process was killed."""
        return frozenset(self.data(name).parent.glob(f".{name}.*.partial"))

    def _drawn(self, name: str, count: int, left: frozenset[Path]) -> Progress:
        """How many pictures of a set there are, beside those that killed processes had `left` unfinished."""
        folders = [self.data(name), *(self._begun(name) - left)]
        files = chain.from_iterable(names for folder in folders for _, _, names in os.walk(folder))
        return Progress(min(sum(file.endswith(".jpg") for file in files), count), count, "pictures")

    def training_jobs(self, names: Sequence[str], threads: int) -> list[Job]:
        lacking = [name for name in names if not self.is_trained(name)]
        return [
            Job(
                name,
                ("synoptic", *self.training(name), f"threads={threads}"),
                partial(_trained, self.run(name) / "metrics.jsonl", self._steps(name)),
            )
            for name in lacking
        ]

    def _steps(self, name: str) -> int:
        keys = {"clip": self.recipe.clip, "dino": self.recipe.dino, "student": self.recipe.radio}[name]
        return int(keys["steps"])

    def is_trained(self, name: str) -> bool:
        return self._weights(name).is_file()

    def _weights(self, name: str) -> Path:
        folder = self.run(name)
        return (folder if name == "untrained" else folder / "weights") / "model.safetensors"

    def judging_jobs(
        self, subjects: Sequence[str], at_once: int, threads: int, after: tuple[str, ...] = ()
    ) -> list[Job]:
        """One job a process, so that few load their libraries anew; each has its share of what is slow."""
        lacking = [subject for subject in subjects if not self.is_judged(subject)]
        turn = 2 * at_once  # dealt there and back: the first gets the slowest and the quickest of a turn
        hands = [lacking[place::turn] + lacking[turn - 1 - place :: turn] for place in range(at_once)]
        module = "synoptic.apps.demo_scores"
        return [
            Job(
                f"judging {', '.join(hand)}".replace("_", " "),
                (module, str(self.out), str(threads), *hand),
                partial(self._judged, hand),
                after,
            )
            for hand in hands
            if hand
        ]

    def _judged(self, subjects: Sequence[str]) -> Progress:
        return Progress(sum(self.is_judged(subject) for subject in subjects), len(subjects), "judged")

    def is_judged(self, subject: str) -> bool:
        """Whether there are scores of a subject's present weights."""
        path = self.scores(subject)
        return path.is_file() and json.loads(path.read_text())["weights"] == self.weights_hash(subject)

    def weights_hash(self, subject: str) -> str | None:
        """SHA-256 of a subject's weights file; None where it has none."""
        path = self._weights(subject)
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _typed(keys: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in keys.items()]


def _trained(metrics: Path, steps: int) -> Progress:
    """How far a training is, by its metrics."""
    last: dict[str, Any] = {"step": 0}
    for line in read_metrics(metrics):
        last |= line.get("evaluation", {}) | line
    told = [f"{name} {last[name]:.3g}" for name in SHOWN if isinstance(last.get(name), float)]
    if "images_per_second" in last:
        told.append(f"{last['images_per_second']:.0f} images/s")
    return Progress(last["step"], steps, "  ".join(told))
