"""Which data to distil on: short distillations on each of several sets, and how they lie to what will be asked.

A long run on the wrong pictures is the most expensive mistake of a distillation. A pilot trains the same student on
each candidate for some hundred steps, several seeds each, judges all alike, and says which is best and how sure that
is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synoptic.data.sources import Source, open_source
from synoptic.evaluation.features import Space, embed
from synoptic.evaluation.overlap import Overlap, overlap
from synoptic.evaluation.protocols import EVALUATIONS, judged_part
from synoptic.files import write_text
from synoptic.judging import evaluate
from synoptic.methods.teachers import named_teachers
from synoptic.predict import VisionModel, load
from synoptic.run import train

log = logging.getLogger(__name__)

PICTURES = 2000  # of a set, whose features are compared
DRAWS = 2000  # of seeds, for the uncertainty of the ranking
MEANWHILE = {"evaluate_every": 10**9, "log_every": 50}  # a pilot is judged in the end
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """A set of pictures to learn from, and how it did.

    Attributes:
        data: as it was given.
        scores: what was judged -> a score for each seed; higher is better.
        overlaps: asked set -> teacher -> how the pictures lie to it in the teacher's space.
        mean: of all scores.
        low, high: the middle nine tenths of that mean, over which seeds were drawn.
        best: how often it came out first, over the same draws.
        rank: 1 is the best.
    """

    data: str
    scores: Mapping[str, Sequence[float]]
    overlaps: Mapping[str, Mapping[str, Overlap]]
    mean: float
    low: float
    high: float
    best: float
    rank: int


def pilot(
    data: Sequence[str],
    teachers: str,
    on: Sequence[str],
    out: str | Path,
    *,
    steps: int = 200,
    seeds: int = 3,
    keys: Mapping[str, Any] | None = None,
    progress: Progress = lambda what: None,
) -> list[Candidate]:
    """Ranks sets of pictures by what a student learns from them, the best first; goes on where a call was stopped.

    Args:
        data: the candidates, each a DIR.
        teachers: `name:MODEL,name:MODEL`.
        on: what the student is to be good at: data sets, on which it is to agree with its teachers, and names of
            evaluations, each judged on all of these data sets. `knn` and the like need labels there.
        out: folder for the runs and `pilot.json`.
        steps: of each distillation.
        seeds: distillations of each candidate; more than one, or the ranking has no uncertainty.
        keys: of `synoptic.train`, such as model, size, preset and config.
        progress: told what is done next.
    Raises:
        ValueError: for fewer than two candidates, for no set to ask about, and what `train` and `evaluate` refuse.
    """
    names, asked = _asked(on)
    if len(set(data)) < max(len(data), 2):
        raise ValueError(f"data={','.join(data)}: give two or more different sets to choose from")
    if seeds < 1:
        raise ValueError(f"seeds={seeds} should be 1 or more")
    folder = Path(out).expanduser()
    known = {name: load(model) for name, model in named_teachers(teachers).items()}
    scores = {
        each: _learned(each, place, folder, teachers, known, names, asked, steps, seeds, dict(keys or {}), progress)
        for place, each in enumerate(data)
    }
    progress("overlap")
    overlaps = _overlaps(data, asked, known)
    found = ranked(scores, overlaps)
    write_text(folder / "pilot.json", json.dumps([asdict(each) for each in found], indent=2) + "\n")
    return found


def ranked(
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    overlaps: Mapping[str, Mapping[str, Mapping[str, Overlap]]],
) -> list[Candidate]:
    """Candidates by their mean score over all that was judged, the best first.

    Seeds are drawn with replacement, for each candidate by itself (bootstrap): how much the means vary over the draws
    is the uncertainty of the ranking.

    Args:
        scores: candidate -> what was judged -> a score for each seed.
        overlaps: see `Candidate`.
    """
    draws = np.random.default_rng(0)
    means: dict[str, np.ndarray] = {}
    for name, judged in scores.items():
        table = np.array(list(judged.values()))  # (judged, seeds)
        seeds = draws.integers(table.shape[1], size=(DRAWS, table.shape[1]))
        means[name] = table.mean(0)[seeds].mean(1)
    order = sorted(scores, key=lambda name: -float(np.mean(list(scores[name].values()))))
    all_means = np.stack([means[name] for name in order])
    first = np.bincount(all_means.argmax(0), minlength=len(order)) / DRAWS
    return [
        Candidate(
            name,
            {what: list(values) for what, values in scores[name].items()},
            overlaps.get(name, {}),
            float(np.mean(list(scores[name].values()))),
            float(np.quantile(means[name], 0.05)),
            float(np.quantile(means[name], 0.95)),
            float(first[place]),
            place + 1,
        )
        for place, name in enumerate(order)
    ]


def _asked(on: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of evaluations, agreement among them, and data sets."""
    names = [each for each in on if each in EVALUATIONS]
    asked = [each for each in on if each not in EVALUATIONS]
    if not asked:
        raise ValueError(f"on={','.join(on)}: names no data set that the student is to be good on; give some")
    return list(dict.fromkeys(["agreement", *names])), asked


def _learned(
    data: str,
    place: int,
    folder: Path,
    teachers: str,
    known: Mapping[str, VisionModel],
    names: Sequence[str],
    asked: Sequence[str],
    steps: int,
    seeds: int,
    keys: dict[str, Any],
    progress: Progress,
) -> dict[str, list[float]]:
    """What students of a candidate score: "EVALUATION on DIR" -> a score for each seed."""
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        run = folder / f"{place}-{seed}"
        progress(f"{data}, seed {seed}")
        train("radio", data=data, teachers=teachers, out=str(run), steps=steps, seed=seed, **{**MEANWHILE, **keys})
        student = load(run)
        for each in asked:
            for name in names:
                found.setdefault(f"{name} on {each}", []).append(_score(student, name, each, known))
    return found


def _score(student: VisionModel, name: str, data: str, teachers: Mapping[str, VisionModel]) -> float:
    """One number: of agreement the mean cosine over the teachers, of others the score that they yield first."""
    if name != "agreement":
        return next(iter(evaluate(student, on=[name], data=data).values()))
    size = student.preprocess.size
    scores = evaluate(student, on=[name], data=data, teachers=dict(teachers), sizes=(size,))
    return float(np.mean([scores[f"agreement_{teacher}_cosine@{size}"] for teacher in teachers]))


def _overlaps(
    data: Sequence[str], asked: Sequence[str], teachers: Mapping[str, VisionModel]
) -> dict[str, dict[str, dict[str, Overlap]]]:
    """Candidate -> asked set -> teacher -> how they lie to each other."""
    learned = {each: open_source(each, "train").sample(PICTURES) for each in data}
    judged = {each: open_source(each, judged_part(each)).sample(PICTURES) for each in asked}
    found: dict[str, dict[str, dict[str, Overlap]]] = {each: {other: {} for other in asked} for each in data}
    for name, teacher in teachers.items():
        ours = {each: _vectors(teacher, source) for each, source in learned.items()}
        theirs = {each: _vectors(teacher, source) for each, source in judged.items()}
        for each in data:
            for other in asked:
                found[each][other][name] = overlap(ours[each], theirs[other])
    return found


def _vectors(teacher: VisionModel, source: Source) -> torch.Tensor:
    space = Space()
    return embed(teacher, source, (space,)).vectors[space].cpu()
