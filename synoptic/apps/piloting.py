"""The verb `pilot`: which data to distil on, as a table, a picture and a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from synoptic.apps.arguments import OptionsVerb
from synoptic.apps.typed import print_rows

if TYPE_CHECKING:
    from synoptic.piloting import Candidate


@dataclass(frozen=True, kw_only=True)
class PilotOptions:
    """Trains a student for some hundred steps on each of several sets of pictures, and ranks them by what it learned.

    It also tells, in each teacher's space, which share of the pictures that will be asked about lies near pictures of a
    candidate (coverage: more is better), and which share is as good as shown by it (leakage: then its scores say
    little). Stopped, it goes on by the same command.

    Attributes:
        data: the candidates, comma-separated: anything that trains.
        teachers: name:MODEL,name:MODEL.
        on: what the student is to be good at, comma-separated: data sets, on which it is to agree with its teachers,
            and evaluations (knn, zeroshot, segmentation, ...), each judged on all of these sets.
        out: folder for the runs, pilot.json and pilot.png.
        steps: of each training.
        seeds: trainings on each candidate; the ranking is as sure as they agree.
        model: architecture of the student.
        size: side of its pictures in pixels; None takes that of `config`, or the method's.
        batch: pictures a step.
        preset: recipe of `synoptic train radio`.
        config: JSON file with further keys of `synoptic train radio`, such as the config.json of a run.
    """

    data: tuple[str, ...]
    teachers: str
    on: tuple[str, ...]
    out: str
    steps: PositiveInt = 200
    seeds: PositiveInt = 3
    model: str = "vit_mini16"
    size: PositiveInt | None = None
    batch: PositiveInt = 64
    preset: str | None = None
    config: str | None = None


def pilot(options: PilotOptions) -> None:
    """Which of several data sets to distil on."""
    from synoptic.data.listing import expand
    from synoptic.piloting import pilot

    given = {"size": options.size, "preset": options.preset, "config": options.config}
    keys: dict[str, Any] = {"model": options.model, "batch": options.batch}
    keys |= {key: value for key, value in given.items() if value is not None}
    out = expand(options.out)
    found = pilot(
        options.data,
        options.teachers,
        options.on,
        out,
        steps=options.steps,
        seeds=options.seeds,
        keys=keys,
        progress=lambda what: print(f"pilot: {what}", flush=True),
    )
    print_rows(_HEAD, [_row(each) for each in found])
    draw(found, out / "pilot.png")
    print(f"written: {out / 'pilot.json'}, {out / 'pilot.png'}")


PILOT = OptionsVerb(pilot, PilotOptions)

_HEAD = ("rank", "data", "score", "90 % of seeds", "first in", "coverage", "leakage")


def _row(each: Candidate) -> tuple[str, ...]:
    coverage, leakage = (
        " / ".join(f"{getattr(lies, what):.2f}" for spaces in each.overlaps.values() for lies in spaces.values())
        for what in ("coverage", "leakage")
    )
    span = f"{each.low:.4f} to {each.high:.4f}"
    return str(each.rank), each.data, f"{each.mean:.4f}", span, f"{each.best:.0%}", coverage, leakage


def draw(found: Sequence[Candidate], path: Path) -> None:
    """Scores with their uncertainty, and beside them coverage and leakage in each teacher's space."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.6 + 0.5 * len(found)), layout="constrained")
    left, right = figure.subplots(1, 2)
    names, places = [each.data for each in found], range(len(found))
    spans = [[each.mean - each.low for each in found], [each.high - each.mean for each in found]]
    left.errorbar([each.mean for each in found], places, xerr=spans, fmt="o", capsize=4)
    left.set_yticks(places, labels=names)
    left.invert_yaxis()
    left.set_xlabel("mean score, and 90 % of it over seeds")
    spaces = [(asked, teacher) for asked, each in found[0].overlaps.items() for teacher in each]
    high = 0.8 / max(len(spaces), 1)
    for number, (asked, teacher) in enumerate(spaces):
        lies = [each.overlaps[asked][teacher] for each in found]
        at = [place + (number - (len(spaces) - 1) / 2) * high for place in places]
        (bars, *_), label = (right.barh(at, [each.coverage for each in lies], high), f"{asked}, as {teacher} sees it")
        right.barh(at, [each.leakage for each in lies], high, color="crimson")
        bars.set_label(label)
    right.set_yticks(places, labels=[""] * len(found))
    right.invert_yaxis()
    right.set_xlim(0, 1)
    right.set_xlabel("share of the asked pictures that is covered; red: given away")
    if spaces:
        right.legend(fontsize="small")
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
