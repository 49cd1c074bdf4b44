"""What the demo promises: its scores as means over three seeds, each the whole demo, its time and its memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
from memory import watched

from synoptic.apps.demo import demo

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)

MINUTES = 12
GIGABYTES = 4

Results = dict[str, Any]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """`results.json` of each seed, with the most memory that was held."""
    folder = tmp_path_factory.mktemp("demos")
    return [_made(folder / str(seed), seed) for seed in SEEDS]


def _made(out: Path, seed: int) -> Results:
    with watched() as peak:
        demo(out, "full", seed)
    found: Results = json.loads((out / "results.json").read_text())
    print(json.dumps({"seed": seed, "bytes": peak.bytes, **found}))  # shown by -s, and when a test fails
    return {**found, "bytes": peak.bytes}


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


def test_a_small_machine_is_enough(results: list[Results]) -> None:
    """On two cores that do nothing else."""
    assert max(found["bytes"] for found in results) < GIGABYTES * 1e9
    assert median(found["seconds"] for found in results) < MINUTES * 60


def test_seeds_differ(results: list[Results]) -> None:
    """Else three seeds would be one."""
    assert len({json.dumps(found["student"]) for found in results}) == len(SEEDS)
