"""What the demo promises of its scores: means over three seeds, each the whole demo."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from synoptic.apps.demo import demo

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)

Results = dict[str, Any]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """`results.json` of each seed."""
    folder = tmp_path_factory.mktemp("demos")
    return [json.loads(_made(folder / str(seed), seed).read_text()) for seed in SEEDS]


def _made(out: Path, seed: int) -> Path:
    demo(out, "full", seed)
    return out / "results.json"


@pytest.fixture(scope="module")
def of(results: list[Results]) -> Callable[[str, str], float]:
    """The mean score of a subject ("student", "clip", ...) by a measure."""

    def score(subject: str, measure: str) -> float:
        return mean({**found, **found["teachers"]}[subject][measure] for found in results)

    return score


Of = Callable[[str, str], float]


def test_the_clip_teacher_knows_words(of: Of) -> None:
    assert of("clip", "zeroshot") >= 0.75


def test_the_dino_teacher_learned_to_see(of: Of) -> None:
    assert of("dino", "knn") >= of("untrained", "knn") + 0.10
    assert of("dino", "knn") > of("raw_pixels", "knn")


def test_the_student_keeps_the_words_of_its_teacher(of: Of) -> None:
    chance = of("chance", "zeroshot")
    assert (of("student", "zeroshot") - chance) / (of("clip", "zeroshot") - chance) >= 0.8


def test_the_students_neighbours_are_alike(of: Of) -> None:
    assert of("student", "knn") > of("dino", "knn")
    assert of("student", "knn") >= of("clip", "knn") - 0.10


def test_the_student_sees_where_things_are(of: Of) -> None:
    miou = {name: of(name, "segmentation_miou") for name in ("student", "clip", "dino", "untrained")}
    assert miou["student"] > miou["untrained"]
    assert miou["student"] >= max(miou["clip"], miou["dino"]) - 0.05


def test_seeds_differ(results: list[Results]) -> None:
    """Else three seeds would be one."""
    assert len({json.dumps(found["student"]) for found in results}) == len(SEEDS)
