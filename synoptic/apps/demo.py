"""The whole story on built-in data: pictures, two teachers that never see each other, one student of both, a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from synoptic.apps import side_by_side
from synoptic.apps.demo_journal import Journal, cores
from synoptic.apps.demo_recipe import RECIPES
from synoptic.apps.demo_steps import EARLY, SUBJECTS, TEACHERS, Demo
from synoptic.config import nearest
from synoptic.files import sole_writer, write_atomically

SCORES = ("zeroshot", "knn", "segmentation_miou")


def demo(out: Path | str = "runs/demo", preset: str = "full", seed: int = 0) -> Path:
    """Makes the demo, or goes on with it where it was interrupted; says so where it is done.

    Args:
        out: its folder.
        preset: which of the RECIPES is made.
        seed: decides everything random, the pictures included.
    Returns:
        The report.
    Raises:
        ValueError: for an unknown preset, for a folder that holds something else, and where a part of it fails.
        KeyboardInterrupt: it was interrupted; what was done is saved.
    """
    if preset not in RECIPES:
        raise ValueError(f"unknown preset={preset}{nearest(preset, RECIPES)}")
    if "," in str(out):
        raise ValueError(f"out={out}: has a comma, which separates folders in some keys; choose another name")
    made = Demo(Path(out), RECIPES[preset], seed)
    journal = Journal(made, preset)
    with sole_writer(made.out):
        if is_done(made):
            _say(f"this demo is done; its report: {made.report}")
        else:
            _make(made, journal)
    return made.report


def is_done(demo: Demo) -> bool:
    """Whether everything is there, made from the models that are there."""
    judged = all(demo.is_judged(subject) for subject in SUBJECTS)
    return judged and demo.results.is_file() and demo.report.is_file()


def _make(demo: Demo, journal: Journal) -> None:
    from synoptic.apps.report import report

    threads = max(cores() // len(TEACHERS), 1)
    side = min(cores(), len(TEACHERS))  # one process a core is faster than one process on all of them
    try:
        with journal.part("pictures"):
            _run("1/5  pictures are drawn", demo.drawing_jobs(), 1, journal)
        with journal.part("teachers"):
            learning = demo.training_jobs(TEACHERS, threads)
            judging = demo.judging_jobs(EARLY, 1, threads, after=("clip",)) if learning else []
            _run("2/5  two teachers learn", [*learning, *judging], side, journal)
        with journal.part("student"):
            _run("3/5  a student learns from both", demo.training_jobs(["student"], cores()), 1, journal)
        with journal.part("judgement"):
            _run("4/5  all of them are judged", demo.judging_jobs(SUBJECTS, side, threads), side, journal)
        _write_results(demo, journal)
        _say("5/5  the report is written")
        with journal.part("report"):
            report([demo.out])
        _write_results(demo, journal)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; what was done is saved, and the same command goes on from there") from None
    _conclude(demo)


def _run(title: str, jobs: list[side_by_side.Job], at_once: int, journal: Journal) -> None:
    if jobs:
        _say(title)
        side_by_side.run(jobs, at_once, journal.tick)


def results(demo: Demo, seconds: float) -> dict[str, Any]:
    """What `results.json` holds: every score as a fraction, and the seconds that everything took."""
    found = {subject: json.loads(demo.scores(subject).read_text())["scores"] for subject in SUBJECTS}
    scores = {subject: {name: values[name] for name in SCORES if name in values} for subject, values in found.items()}
    return {
        "seconds": round(seconds, 1),
        "chance": scores["chance"],
        "raw_pixels": scores["raw_pixels"],
        "untrained": scores["untrained"],
        "teachers": {teacher: scores[teacher] for teacher in TEACHERS},
        "student": scores["student"],
    }


def _write_results(demo: Demo, journal: Journal) -> None:
    text = json.dumps(results(demo, sum(journal.seconds.values())), indent=2) + "\n"
    write_atomically(demo.results, lambda file: file.write(text.encode()))


def _conclude(demo: Demo) -> None:
    """The scores, and what to do next."""
    found = json.loads(demo.results.read_text())
    rows = {**found["teachers"], **{name: found[name] for name in ("student", "untrained", "raw_pixels", "chance")}}
    _say(f"\n{'':12}{'zero-shot':>12}{'k-NN':>12}{'segmentation':>14}")
    for name, scores in rows.items():
        zeroshot, knn, miou = (f"{scores[score]:.1%}" if score in scores else "" for score in SCORES)
        _say(f"{name.replace('_', ' '):12}{zeroshot:>12}{knn:>12}{miou:>14}")
    _say(f"\ndone in {found['seconds'] / 60:.1f} minutes; open the report: {demo.report}")


def _say(message: str) -> None:
    Console(stderr=True).print(Text(message), soft_wrap=True)
