"""The guard names each way to collapse from what is logged, after some looks that agree, and stops if asked."""

import math
from pathlib import Path

import pytest
from small_tasks import config_of, source_of

from synoptic.methods import get_method
from synoptic.methods.base import Collapsed, Diagnosis
from synoptic.methods.collapse import ALIKE, AWAY, FLAT, PATIENCE, SAME, WINS, CollapseWatch, fitted

PROTOTYPES = 64
CONFIG = config_of("dino", prototypes=PROTOTYPES)
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
    watch = CollapseWatch(CONFIG)
    assert watch.look(SOUND, {"rankme": 30.0}, 0.0) is None
    looks = [watch.look(SOUND | terms, {"rankme": 30.0} | scores | {"knn": at}, 0.5) for at in range(PATIENCE)]
    assert looks == [None] * (PATIENCE - 1) + [fitted(expected, CONFIG)]
    assert str(looks[-1]).startswith(f"{expected.name}: ") and "; try " in str(looks[-1])


def test_a_sound_run_is_left_alone() -> None:
    watch = CollapseWatch(CONFIG)
    assert not any(watch.look(SOUND, {"rankme": 30.0}, look / 50) for look in range(50))


def test_one_bad_look_is_no_collapse() -> None:
    watch = CollapseWatch(CONFIG)
    bad = SOUND | ILL["wins"][1]
    assert not any(watch.look(bad if look % PATIENCE else SOUND, {}, 0.5) for look in range(20))


def test_a_diagnosis_is_told_once_and_a_restored_watch_says_the_same() -> None:
    bad = SOUND | ILL["wins"][1]
    watch = CollapseWatch(CONFIG)
    told = []
    for look in range(30):
        again = CollapseWatch(CONFIG)
        again.load(watch.state())  # as after an interruption
        watch = again
        told.append(watch.look(SOUND if look in (6, 20, 21, 22) else bad, {}, 0.5))
    assert [look for look, found in enumerate(told) if found] == [PATIENCE - 1, 22 + PATIENCE], "one sound look is none"


def test_scores_count_once_however_often_is_looked() -> None:
    """One evaluation in ten looks: the rank must be low in as many evaluations as other signs in looks."""
    watch = CollapseWatch(CONFIG)
    found = []
    for _ in range(PATIENCE):
        scores = {"rankme": 1.5 + len(found) / 10}
        found.append([watch.look(SOUND, scores, 0.5) for _ in range(10)])
    assert not any(found[0]) and not any(found[1]) and any(found[2])


def test_a_loss_that_begins_high_and_falls_does_not_diverge() -> None:
    watch = CollapseWatch(CONFIG)
    falling = [{**SOUND, "loss": (2.0 - look / 50) * math.log(PROTOTYPES)} for look in range(20)]
    assert not any(watch.look(terms, {}, look / 20) for look, terms in enumerate(falling))


def test_a_start_may_be_soft() -> None:
    """Random networks say nearly the same of all pictures, and have no rank."""
    watch = CollapseWatch(CONFIG)
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
        assert task.diagnose(bad, {}, 0.5) == (fitted(WINS, config) if guard == "warn" else None)


def test_the_guard_looks_at_patches_as_well() -> None:
    config = config_of("dinov2")
    task = get_method("dinov2").build(config, source_of())
    crops = SOUND | {"prototypes_used": 1.0, "ibot": 0.1, "patch_loss": SOUND["dino"], "patch_entropy": 1.5}
    ill = crops | {"patch_prototypes_used": 1.0 / config.patch_prototypes}
    found = [task.diagnose(ill, {}, 0.5) for _ in range(PATIENCE)]
    assert found[:-1] == [None] * (PATIENCE - 1)
    assert found[-1] is not None and str(found[-1]).startswith("one prototype wins, of patches: ")
    again = get_method("dinov2").build(config, source_of())
    again.recall(task.memory())
    assert again.diagnose(ill, {}, 0.5) is None, "told before the interruption"
    nothing = crops | {"patch_loss": 0.0, "patch_entropy": 0.0, "patch_prototypes_used": 0.0}
    assert not any(again.diagnose(nothing, {}, 0.5) for _ in range(2 * PATIENCE)), "where nothing is hidden"


@pytest.mark.parametrize("ill", [WINS, ALIKE, SAME, FLAT, AWAY])
def test_advice_begins_where_the_run_is(ill: Diagnosis) -> None:
    """Nothing is advised that is set so already; what is to change is told with what it is now."""
    config = config_of("dinov2", precision="fp32", centring="sinkhorn", patch_prototypes=32, batch=6)
    mend = fitted(ill, config, "patch_prototypes").mend
    assert mend and "=" not in mend
    now = {"optim.lr": f"{config.optim.lr:.3g}", "patch_prototypes": "32", "batch": "6", "koleo": "0.1"}
    assert all(f" {key} (now {now[key]})" in mend for key in now if f" {key} " in mend)


def test_advice_names_what_is_missing() -> None:
    assert fitted(ALIKE, config_of("dino", sharpening=False)).mend.startswith("sharpening=true, a lower teacher_temp")
    assert fitted(AWAY, config_of("dino", precision="bf16")).mend.startswith("precision=fp32, a lower optim.lr (now ")
