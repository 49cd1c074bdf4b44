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

MINUTES = 12  # the one claim about time that a test judges; benchmarks judge the others
GIGABYTES = 4

Results = dict[str, Any]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> list[Results]:
    """`results.json` of each seed, with the most memory that was held; each told as a line of JSON."""
    folder = tmp_path_factory.mktemp("demos")
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    found = []
    for seed in SEEDS:
        found.append(_made(folder / str(seed), seed))
        with capture.global_and_fixture_disabled():
            print(f"\n{json.dumps(found[-1])}", flush=True)
    return found


def _made(out: Path, seed: int) -> Results:
    with watched() as peak:
        demo(out, "full", seed)
    return {"seed": seed, "bytes": peak.bytes, **json.loads((out / "results.json").read_text())}


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


@pytest.mark.parametrize(("teacher", "measure"), [("clip", "zeroshot"), ("dino", "knn")])
def test_the_student_keeps_what_each_teacher_is_good_at(of: Of, teacher: str, measure: str) -> None:
    chance = of("chance", measure)
    assert (of("student", measure) - chance) / (of(teacher, measure) - chance) >= 0.9


def test_the_students_neighbours_are_alike(of: Of) -> None:
    assert of("student", "knn") >= of("clip", "knn") - 0.10


def test_the_student_sees_where_things_are(of: Of) -> None:
    miou = {name: of(name, "segmentation_miou") for name in ("student", "clip", "dino", "untrained")}
    assert miou["student"] > miou["untrained"]
    assert miou["student"] >= max(miou["clip"], miou["dino"]) - 0.05


def test_little_memory_is_enough(results: list[Results]) -> None:
    peaks = [found["bytes"] for found in results]
    if None in peaks:
        pytest.skip("this system does not tell what its processes hold: it has no /proc")
    assert max(peaks) < GIGABYTES * 1e9


def test_two_cores_are_enough(results: list[Results]) -> None:
    """On two cores that do nothing else; one run of three may be disturbed."""
    assert median(found["seconds"] for found in results) < MINUTES * 60


def test_seeds_differ(results: list[Results]) -> None:
    """Else three seeds would be one."""
    assert len({json.dumps(found["student"]) for found in results}) == len(SEEDS)
