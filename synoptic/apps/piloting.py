"""The verb `pilot`: which data to distil on, as a table, a picture and a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from synoptic.apps.arguments import OptionsVerb
from synoptic.apps.typed import print_rows, typed_file
from synoptic.config import to_dict
from synoptic.weights.options import TeacherFile

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
        teacher: what the weights files of these do not say themselves, as in teacher.clip.load.heads=12.
        on: what the student is to be good at, comma-separated: data sets, on which it is to agree with its teachers,
            and evaluations (knn, zeroshot, segmentation, ...), each judged on all of these sets. The score is the mean
            of all: of agreement the mean cosine of patches and summaries over the teachers.
        out: folder for the runs, pilot.json and pilot.png.
        steps: of each training.
        seeds: trainings on each candidate; the ranking is as sure as they agree.
        model: architecture of the student; None takes that of `config`, or vit_mini16.
        size: side of its pictures in pixels; None takes that of `config`, or the method's.
        batch: pictures a step; None takes that of `config`, or 64.
        preset: recipe of `synoptic train radio`.
        config: JSON file with further keys of `synoptic train radio`, such as the config.json of a run.
    """

    data: tuple[str, ...]
    teachers: str
    teacher: Mapping[str, TeacherFile] = field(default_factory=dict)
    on: tuple[str, ...]
    out: str
    steps: PositiveInt = 200
    seeds: PositiveInt = 3
    model: str | None = None
    size: PositiveInt | None = None
    batch: PositiveInt | None = None
    preset: str | None = None
    config: str | None = None


def pilot(options: PilotOptions) -> None:
    """Which of several data sets to distil on."""
    from synoptic.data.listing import expand
    from synoptic.piloting import pilot

    given = {"model": options.model, "size": options.size, "batch": options.batch}
    keys: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if options.teacher:
        keys["teacher"] = {name: to_dict(each) for name, each in options.teacher.items()}
    out = expand(options.out)
    found = pilot(
        options.data,
        options.teachers,
        options.on,
        out,
        steps=options.steps,
        seeds=options.seeds,
        config=typed_file(options.config),
        preset=options.preset,
        keys=keys,
        progress=lambda what: print(f"pilot: {what}", flush=True),
    )
    print_rows(*_table(found))
    draw(found, out / "pilot.png")
    print(f"written: {out / 'pilot.json'}, {out / 'pilot.png'}")


LEAST_SPAN = 0.05  # of scores, that the picture shows

PILOT = OptionsVerb(pilot, PilotOptions)


def _table(found: Sequence[Candidate]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: each score by itself, and how sets lie to each other in each teacher's space."""
    judged, spaces = list(found[0].scores), _spaces(found)
    of_spaces = [f"{what}, {_told(*space)}" for space in spaces for what in ("coverage", "leakage")]
    asked = [f"{name} on {_short(data)}" for name, _, data in (each.partition(" on ") for each in judged)]
    head = ["rank", "data", *asked, *(["mean"] if len(judged) > 1 else []), "90 % of seeds", "first in", *of_spaces]
    return head, [_row(each, spaces) for each in found]


def _row(each: Candidate, spaces: Sequence[tuple[str, str]]) -> list[str]:
    scores = [f"{sum(values) / len(values):.4f}" for values in each.scores.values()]
    lies = [each.overlaps[asked][teacher] for asked, teacher in spaces]
    shares = [f"{share:.2f}" for lie in lies for share in (lie.coverage, lie.leakage)]
    mean, span = [f"{each.mean:.4f}"] if len(scores) > 1 else [], f"{each.low:.4f} to {each.high:.4f}"
    return [str(each.rank), each.data, *scores, *mean, span, f"{each.best:.0%}", *shares]


def _spaces(found: Sequence[Candidate]) -> list[tuple[str, str]]:
    """Asked sets, and teachers in whose spaces they are compared."""
    return [(asked, teacher) for asked, each in found[0].overlaps.items() for teacher in each]


def _told(asked: str, teacher: str) -> str:
    return f"{_short(asked)} as {teacher} sees it"


def _short(data: str) -> str:
    return Path(data).name or data


def draw(found: Sequence[Candidate], path: Path) -> None:
    """Scores with their uncertainty, and beside them coverage and leakage in each teacher's space."""
    from matplotlib.figure import Figure

    spaces = _spaces(found)
    figure = Figure(figsize=(11, 1.8 + 0.5 * len(found) + 0.2 * len(spaces)), layout="constrained")
    left, right = figure.subplots(1, 2)
    names, places = [each.data for each in found], range(len(found))
    spans = [[each.mean - each.low for each in found], [each.high - each.mean for each in found]]
    left.errorbar([each.mean for each in found], places, xerr=spans, fmt="o", capsize=4)
    left.set_yticks(places, labels=names)
    left.set_xlabel("mean score, and 90 % of it over seeds")
    lowest, highest = min(each.low for each in found), max(each.high for each in found)
    room = max(LEAST_SPAN - (highest - lowest), 0.1 * (highest - lowest)) / 2  # what varies less looks alike
    left.set_xlim(lowest - room, highest + room)
    high = 0.8 / max(len(spaces), 1)
    for number, (asked, teacher) in enumerate(spaces):
        lies = [each.overlaps[asked][teacher] for each in found]
        at = [place + (number - (len(spaces) - 1) / 2) * high for place in places]
        (bars, *_) = right.barh(at, [each.coverage for each in lies], high)
        right.barh(at, [each.leakage for each in lies], high / 2, color="crimson")
        bars.set_label(_told(asked, teacher))
    right.set_yticks(places, labels=[""] * len(found))
    right.set_xlim(0, 1)
    right.set_xlabel("share of the asked pictures that is covered; red: given away")
    if spaces:
        figure.legend(fontsize="small", loc="outside lower right", frameon=False)
    for axes in (left, right):
        axes.set_ylim(len(found) - 0.4, -0.6)  # the best on top, and a line a candidate through both
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
