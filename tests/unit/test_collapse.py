"""The guard names each way to collapse from what is logged, after some looks that agree, and stops if asked."""

import math
from pathlib import Path

import pytest
from small_tasks import config_of, source_of

from synoptic.methods import get_method
from synoptic.methods.base import Collapsed
from synoptic.methods.collapse import ALIKE, AWAY, FLAT, PATIENCE, SAME, WINS, CollapseWatch

PROTOTYPES = 64
SOUND = {"loss": 3.0, "dino": 3.0, "target_entropy": 1.5, "prototypes_used": 0.7}
ILL = {
    "wins": (WINS, {"target_entropy": 0.1, "prototypes_used": 1.1 / PROTOTYPES}, {}),
    "alike": (ALIKE, {"loss": 4.2, "target_entropy": 0.995 * math.log(PROTOTYPES), "prototypes_used": 1.0}, {}),
    "same": (SAME, {"target_entropy": 2.999}, {}),
    "flat": (FLAT, {}, {"rankme": 1.5}),
    "away": (AWAY, {"loss": 2 * math.log(PROTOTYPES)}, {}),
}


@pytest.mark.parametrize("name", ILL)
def test_each_collapse_has_its_name_its_cause_and_its_mend(name: str) -> None:
    expected, terms, scores = ILL[name]
    watch = CollapseWatch(PROTOTYPES)
    assert watch.look(SOUND, {"rankme": 30.0}, 0.0) is None
    looks = [watch.look(SOUND | terms, {"rankme": 30.0} | scores | {"knn": at}, 0.5) for at in range(PATIENCE)]
    assert looks == [None] * (PATIENCE - 1) + [expected]
    assert str(expected).startswith(f"{expected.name}: ") and "; try " in str(expected)


def test_a_sound_run_is_left_alone() -> None:
    watch = CollapseWatch(PROTOTYPES)
    assert not any(watch.look(SOUND, {"rankme": 30.0}, look / 50) for look in range(50))


def test_one_bad_look_is_no_collapse() -> None:
    watch = CollapseWatch(PROTOTYPES)
    bad = SOUND | ILL["wins"][1]
    assert not any(watch.look(bad if look % PATIENCE else SOUND, {}, 0.5) for look in range(20))


def test_a_diagnosis_is_told_once_and_a_restored_watch_says_the_same() -> None:
    bad = SOUND | ILL["wins"][1]
    watch = CollapseWatch(PROTOTYPES)
    told = []
    for look in range(12):
        again = CollapseWatch(PROTOTYPES)
        again.load(watch.state())  # as after an interruption
        watch = again
        told.append(watch.look(SOUND if look == 6 else bad, {}, 0.5))
    assert [look for look, found in enumerate(told) if found is WINS] == [PATIENCE - 1, 6 + PATIENCE]


def test_scores_count_once_however_often_is_looked() -> None:
    """One evaluation in ten looks: the rank must be low in as many evaluations as other signs in looks."""
    watch = CollapseWatch(PROTOTYPES)
    found = []
    for _ in range(PATIENCE):
        scores = {"rankme": 1.5 + len(found) / 10}
        found.append([watch.look(SOUND, scores, 0.5) for _ in range(10)])
    assert not any(found[0]) and not any(found[1]) and FLAT in found[2]


def test_a_loss_that_begins_high_and_falls_does_not_diverge() -> None:
    watch = CollapseWatch(PROTOTYPES)
    falling = [{**SOUND, "loss": (2.0 - look / 50) * math.log(PROTOTYPES)} for look in range(20)]
    assert not any(watch.look(terms, {}, look / 20) for look, terms in enumerate(falling))


def test_a_start_may_be_soft() -> None:
    """Random networks say nearly the same of all pictures, and have no rank."""
    watch = CollapseWatch(PROTOTYPES)
    soft = SOUND | ILL["alike"][1]
    assert not any(watch.look(soft, {"rankme": 1.0}, 0.05) for _ in range(10))


@pytest.mark.parametrize("guard", ["warn", "stop", "off"])
def test_a_task_warns_stops_or_does_not_look(guard: str, tmp_path: Path) -> None:
    config = config_of("dino", prototypes=PROTOTYPES, guard=guard)
    task = get_method("dino").build(config, source_of())
    bad = SOUND | ILL["wins"][1]
    for _ in range(PATIENCE - 1):
        assert task.diagnose(bad, {}, 0.5) is None
    if guard == "stop":
        with pytest.raises(Collapsed, match=r"stopped, since the learning collapsed, one prototype wins: .*; try "):
            task.diagnose(bad, {}, 0.5)
    else:
        assert task.diagnose(bad, {}, 0.5) == (WINS if guard == "warn" else None)


def test_the_guard_looks_at_patches_as_well() -> None:
    config = config_of("dinov2")
    task = get_method("dinov2").build(config, source_of())
    crops = SOUND | {"prototypes_used": 1.0, "ibot": 0.5 * SOUND["dino"], "patch_entropy": 1.5}
    ill = crops | {"patch_prototypes_used": 1.0 / config.patch_prototypes}
    found = [task.diagnose(ill, {}, 0.5) for _ in range(PATIENCE)]
    assert found[:-1] == [None] * (PATIENCE - 1)
    assert found[-1] is not None and str(found[-1]).startswith("one prototype wins, of patches: ")
    again = get_method("dinov2").build(config, source_of())
    again.recall(task.memory())
    assert again.diagnose(ill, {}, 0.5) is None, "told before the interruption"
