"""Which data to distil on: short distillations on each of several sets, and how they lie to what will be asked.

A long run on the wrong pictures is the most expensive mistake of a distillation. A pilot trains the same student on
each candidate for some hundred steps, several seeds each, judges all alike, and says which is best and how sure that
is.
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synoptic.config import load_json, nearest
from synoptic.data.sources import Source, open_source
from synoptic.evaluation.features import Space, embed
from synoptic.evaluation.overlap import FEW, FEWEST, Overlap, overlap
from synoptic.evaluation.protocols import EVALUATIONS, Asked, Part, build_evaluators, judged_part
from synoptic.files import write_text
from synoptic.methods import get_method
from synoptic.methods.radio import RadioConfig
from synoptic.methods.teachers import named_teachers, open_teachers
from synoptic.predict import VisionModel, load
from synoptic.run import train

log = logging.getLogger(__name__)

PICTURES = 2000  # of a set, whose features are compared
DRAWS = 2000  # of seeds, for the uncertainty of the ranking
USUAL: dict[str, Any] = {"model": "vit_mini16", "batch": 64}  # of a pilot, where neither keys nor a file say otherwise
MEANWHILE: dict[str, Any] = {"evaluate_every": 10**9, "log_every": 50}  # a pilot is judged in the end
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


@dataclass(frozen=True)
class Question:
    """A set of pictures on which all students are judged alike.

    Attributes:
        data: as it was given.
        part: of it.
        names: of the evaluations.
    """

    data: str
    part: Part
    names: Sequence[str]

    def scores(self, student: VisionModel | None, teachers: Mapping[str, VisionModel]) -> dict[str, float]:
        """ "EVALUATION on DIR" -> one number: of agreement the mean cosine of patches and summaries over the teachers,
        of others the score that they yield first. Without a student it is only seen whether the pictures will do."""
        found = {}
        for name in self.names:
            asked = Asked(teachers=teachers, sizes=None if student is None else (student.preprocess.size,))
            (evaluator, *_) = build_evaluators([name], self.data, self.part, asked)
            if student is not None:
                scores = dict(evaluator.run(student))
                alike = [value for key, value in scores.items() if "_error@" not in key]
                found[f"{name} on {self.data}"] = float(np.mean(alike)) if name == "agreement" else alike[0]
        return found

    def pictures(self) -> Source:
        """Those whose features are compared with the candidates'.

        Raises:
            ValueError: they are too few.
        """
        source = open_source(self.data, self.part).sample(PICTURES)
        if len(source) < FEWEST:
            told = f"has {len(source)} pictures to ask about, which are too few; give at least {FEWEST}"
            raise ValueError(f"on={self.data}: {told}, best in a test part")
        return source


def pilot(
    data: Sequence[str],
    teachers: str,
    on: Sequence[str],
    out: str | Path,
    *,
    steps: int = 200,
    seeds: int = 3,
    config: str | Path | None = None,
    preset: str | None = None,
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
        config, preset, keys: as of `synoptic.train("radio", ...)`; a pilot's own are `USUAL`.
        progress: told what is done next.
    Raises:
        ValueError: for fewer than two candidates, for no set to ask about, and what `train` and `evaluate` refuse,
            before anything is trained.
    """
    if len(set(data)) < max(len(data), 2):
        raise ValueError(f"data={','.join(data)}: give two or more different sets to choose from")
    if seeds < 1:
        raise ValueError(f"seeds={seeds} should be 1 or more")
    if seeds == 1:
        log.warning("seeds=1: of one training the ranking has no uncertainty")
    folder = Path(out).expanduser()
    asked = _asked(on)
    recipe = _recipe({**(keys or {}), "teachers": teachers, "steps": steps}, config, preset)
    for each in data:
        open_source(each, "train")
    known = open_teachers(named_teachers(teachers), recipe.teacher)
    for question in asked:
        question.scores(None, known)
        if len(question.pictures()) < FEW:
            log.warning("on=%s: few pictures, so coverage and leakage are rough", question.data)
    scores = {each: _learned(each, replace(recipe, data=each), folder, known, asked, seeds, progress) for each in data}
    progress("overlap")
    found = ranked(scores, _overlaps(data, asked, known))
    facts = {"teachers": teachers, "on": list(on), "steps": steps, "seeds": seeds, "model": recipe.model}
    record = {**facts, "candidates": [asdict(each) for each in found]}
    write_text(folder / "pilot.json", json.dumps(record, indent=2) + "\n")
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


def _asked(on: Sequence[str]) -> list[Question]:
    """The data sets to ask about, each with all evaluations, agreement among them."""
    names = list(dict.fromkeys(["agreement", *(each for each in on if each in EVALUATIONS)]))
    asked = [each for each in on if each not in EVALUATIONS]
    if not asked:
        raise ValueError(f"on={','.join(on)}: names no data set that the student is to be good on; give some")
    found = []
    for each in asked:
        try:
            found.append(Question(each, judged_part(each, names=names), names))
        except ValueError as error:
            raise ValueError(f"on={each}: is no evaluation{nearest(each, EVALUATIONS)}, and as data: {error}") from None
    return found


def _recipe(keys: Mapping[str, Any], file: str | Path | None, preset: str | None) -> RadioConfig:
    """The configuration of all trainings, but for their data, folders and seeds."""
    method = get_method("radio")
    given = {"data": "", "out": "", **keys}
    config: Any = method.configure(given, "pilot", file=file, preset=preset)
    told = keys if file is None else {**load_json(Path(file)), **keys}
    return replace(config, **{key: value for key, value in USUAL.items() if key not in told}, **MEANWHILE)


def _learned(
    data: str,
    config: RadioConfig,
    folder: Path,
    teachers: Mapping[str, VisionModel],
    asked: Sequence[Question],
    seeds: int,
    progress: Progress,
) -> dict[str, list[float]]:
    """What students of a candidate score: "EVALUATION on DIR" -> a score for each seed."""
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        progress(f"{data}, seed {seed}")
        run = train("radio", replace(config, out=str(folder / f"{_short(data)}-{seed}"), seed=seed))
        student = load(run)
        for question in asked:
            for what, score in question.scores(student, teachers).items():
                found.setdefault(what, []).append(score)
    return found


def _short(data: str) -> str:
    """A name for the folders of a candidate, the same wherever it stands among others."""
    readable = re.sub(r"\W+", "_", data).strip("_")[-40:]
    return f"{readable}-{zlib.crc32(data.encode()):08x}"


def _overlaps(
    data: Sequence[str], asked: Sequence[Question], teachers: Mapping[str, VisionModel]
) -> dict[str, dict[str, dict[str, Overlap]]]:
    """Candidate -> asked set -> teacher -> how they lie to each other."""
    learned = {each: open_source(each, "train").sample(PICTURES) for each in data}
    judged = {each.data: each.pictures() for each in asked}
    found: dict[str, dict[str, dict[str, Overlap]]] = {each: {other: {} for other in judged} for each in data}
    for name, teacher in teachers.items():
        ours = {each: _vectors(teacher, source) for each, source in learned.items()}
        theirs = {each: _vectors(teacher, source) for each, source in judged.items()}
        for each in data:
            for other in judged:
                found[each][other][name] = overlap(ours[each], theirs[other])
    return found


def _vectors(teacher: VisionModel, source: Source) -> torch.Tensor:
    space = Space()
    return embed(teacher, source, (space,)).vectors[space].cpu()
