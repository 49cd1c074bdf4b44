"""Parts that every report has: what runs left behind, their curves, what their models see."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from synoptic.apps.figures import Line, Mark, PatchColours, curves, data_uri, proper_name
from synoptic.apps.report_page import Bar, Card, Code, Curve, Curves, Details, Facts, Gallery, Notice, Picture
from synoptic.config import load_json
from synoptic.data.bands import as_rgb
from synoptic.data.inputs import read_batches
from synoptic.data.sources import Source
from synoptic.engine.observe import read_metrics
from synoptic.evaluation.captions import WITHIN
from synoptic.predict import VisionModel
from synoptic.types import Features

SIDE = 144  # pixels of a picture on the page: sharp on screens with two dots a pixel
FINEST = 12  # patches across, which a picture needs for its objects to show
SHOWN_LABELS = 4  # of those that a picture was compared with


@dataclass(frozen=True)
class Run:
    """What a run folder tells.

    Attributes:
        name: short, unlike those of the runs beside it.
        folder: where it is.
        config: as resolved.
        environment: versions and hardware.
        metrics: lines of `metrics.jsonl`.
        trained: facts about the finished training; empty before its end.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    trained: Mapping[str, Any]

    @property
    def is_finished(self) -> bool:
        return bool(self.trained) and bool(self.metrics) and self.metrics[-1]["step"] == self.config["steps"]

    @property
    def title(self) -> str:
        """What was trained, and how."""
        method = proper_name(self.trained.get("method") or self.environment.get("method", "run"))
        init = self.config.get("init")
        begun = self.config["model"] if init is None else f"begun with {init}"
        return f"{method}, {begun}"

    def notices(self) -> list[Notice]:
        """What went wrong with the learning, and why the run stopped itself, as it said both."""
        found = [self._diagnosed(line) for line in self.metrics if "diagnosis" in line]
        last = self.metrics[-1] if self.metrics else {}
        if "stopped" in last:  # a run that went on since has lines after it
            text, _, mend = last["stopped"].rpartition("; try ")
            found.append(Notice(f"{self.name}: stopped at step {last['step']}", text or mend, mend if text else ""))
        return found

    def _diagnosed(self, line: Mapping[str, Any]) -> Notice:
        """A line of the guard: name, cause and mend, as a `Diagnosis` is written."""
        name, _, rest = line["diagnosis"].partition(": ")
        cause, _, mend = rest.partition("; try ")
        return Notice(f"{self.name}: {name}, at step {line['step']} of {self.config['steps']}", cause, mend)

    def scores(self) -> list[tuple[int, Mapping[str, float]]]:
        """(step, scores by name) of every validation."""
        return [(line["step"], line["evaluation"]) for line in self.metrics if "evaluation" in line]

    def judged(self) -> tuple[str, Mapping[str, float]]:
        """The step of the model that was exported, with its validation scores; of a run without one the last scores."""
        if self.trained:
            return str(self.trained["steps"]), self.trained.get("scores", {})
        step, scores = self.scores()[-1] if self.scores() else (NOTHING, {})
        return str(step), scores


def read_run(folder: Path, name: str = "") -> Run:
    """Reads a run folder.

    Raises:
        ValueError: it is none.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: is no run folder, since it has no config.json")
    environment, weights = folder / "environment.json", folder / "weights" / "config.json"
    return Run(
        name or folder.name,
        folder,
        load_json(folder / "config.json"),
        load_json(environment) if environment.is_file() else {},
        read_metrics(folder / "metrics.jsonl"),
        load_json(weights).get("trained", {}) if weights.is_file() else {},
    )


def percent(share: float, digits: int = 1) -> str:
    """78.3 %"""
    return f"{100 * share:.{digits}f} %"


def score(name: str, value: float) -> str:
    """A score of a validation, as it is read: all are shares but the effective rank."""
    return f"{value:.1f}" if name == RANK else percent(value)


def duration(seconds: float) -> str:
    """In the two largest units that it has."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def training_curves(runs: Sequence[Run], tones: Sequence[int]) -> Curves:
    """The loss of every run, its parts where it has several, and the validation scores of all."""
    plots = []
    for run, tone in zip(runs, tones, strict=True):
        parts = sorted({name for line in run.metrics for name in line if "." in name and "/" not in name})
        parts = parts or _terms(run)
        lines = [line for line in (_parts(run, parts) if parts else [_line(run, "loss", "", tone)]) if line.x]
        title = f"{run.name}: {'parts of the loss' if parts else 'loss'}"
        plots += [Curve(title, curves(lines, "step"))] if lines else []
        plots += _pulls(run)
    judged = [(run, tone) for run, tone in zip(runs, tones, strict=True) if run.scores()]
    names = sorted({name for run, _ in judged for _, scores in run.scores() for name in scores})
    plots += [_recall_curve(judged, way) for way in WAYS if f"{way}_r{WITHIN[0]}" in names]
    for name in [name for name in names if not name.startswith(tuple(WAYS))]:
        lines = [line for run, tone in judged if (line := _score_line(run, name, tone, len(runs) > 1)).x]
        title = f"{SCORES.get(name, name)}, validation pictures"
        plots.append(Curve(title, curves(lines, "step", percent=name != RANK, from_zero=True)))
    for name, title in HEALTH.items():
        lines = [
            _line(run, name, run.name if len(runs) > 1 else "", tone) for run, tone in zip(runs, tones, strict=True)
        ]
        lines = [line for line in lines if line.x]
        if lines:
            marks = _guessing(runs, name)
            plots.append(Curve(title, curves(lines, "step", name not in ENTROPIES, from_zero=True, marks=marks)))
    return Curves(plots)


TERMS = ("dino", "ibot")
PULL, SPREAD = "gradient/", "spread/"
RANK = "rankme"
WAYS = {"image_to_text": "Image to text", "text_to_image": "Text to image"}
SCORES = {
    "knn": "k-NN",
    "zeroshot": "Zero-shot",
    "segmentation_miou": "Segmentation",
    RANK: "Effective dimensions",
    "r_mean": "Mean recall",
    **{f"{way}_r{k}": f"{title} R@{k}" for way, title in WAYS.items() for k in WITHIN},
}
DRAWN_ALONE = {f"{way}_r{k}" for way in WAYS for k in WITHIN[:-1]}  # in the curves: a page has no room for six columns
HEALTH = {  # what tells learning without labels from collapse
    "target_entropy": "Entropy of the targets, nats",
    "prototypes_used": "Prototypes in use",
    "patch_entropy": "Entropy of the patches' targets, nats",
    "patch_prototypes_used": "Prototypes in use, of patches",
    "agreement": "Student and teacher prefer the same prototype",
}
ENTROPIES = {  # and the keys that hold how many prototypes they are over
    "target_entropy": ("prototypes",),
    "patch_entropy": ("patch_prototypes", "prototypes"),
}
NOTHING = "\N{EN DASH}"  # where a table has no number


def _score_line(run: Run, name: str, tone: int, labelled: bool) -> Line:
    points = [(at, found[name]) for at, found in run.scores() if name in found]
    return Line(run.name if labelled else "", [at for at, _ in points], [score for _, score in points], tone)


def _recall_curve(judged: Sequence[tuple[Run, int]], way: str) -> Curve:
    """Recall at all ranks in one plot; of several runs at the middle one alone, a line for each."""
    several = len(judged) > 1
    lines = [
        replace(_score_line(run, f"{way}_r{k}", tone if several else number, False), label=label)
        for run, tone in judged
        for number, k, label in (
            [(0, WITHIN[1], run.name)] if several else [(n, k, f"R@{k}") for n, k in enumerate(WITHIN)]
        )
    ]
    title = f"{WAYS[way]}{f' R@{WITHIN[1]}' if several else ''}, validation pictures"
    return Curve(title, curves([line for line in lines if line.x], "step", percent=True, from_zero=True))


def _guessing(runs: Sequence[Run], name: str) -> list[Mark]:
    """For an entropy, that of guessing: ln K, for every number of prototypes K that runs which tell it have."""
    counts = set()
    for run in runs:
        keys = [key for key in ENTROPIES.get(name, ()) if run.config.get(key)]
        if keys and any(name in line for line in run.metrics):
            counts.add(run.config[keys[0]])
    return [Mark(math.log(count), f"guessing: ln {count} = {math.log(count):.2f}") for count in sorted(counts)]


def _pulls(run: Run) -> list[Curve]:
    """Whose gradients move a student's trunk, and whether its answers vary as much as its teachers'."""
    names = {name for line in run.metrics for name in line}
    shares = sorted(name.removeprefix(PULL) for name in names if name.startswith(PULL))
    spreads = sorted(name.removeprefix(SPREAD) for name in names if name.startswith(SPREAD))
    plots = []
    if shares:
        lines = _parts(run, shares, PULL)
        plots.append(Curve(f"{run.name}: shares of the gradient at the trunk", curves(lines, "step", percent=True)))
    if spreads:
        lines = [_line(run, SPREAD + name, proper_name(name), tone + 1) for tone, name in enumerate(spreads)]
        title = f"{run.name}: deviation of its patches over that of the teacher's"
        plots.append(Curve(title, curves(lines, "step", from_zero=True, marks=[Mark(1.0, "as the teacher")])))
    return plots


def _terms(run: Run) -> list[str]:
    """The terms of a loss without labels, where there are several."""
    found = [name for name in TERMS if any(name in line for line in run.metrics)]
    return found if len(found) > 1 else []


def _parts(run: Run, names: Sequence[str], kind: str = "") -> list[Line]:
    """The terms of a student's loss, or what `kind` of them: a colour a teacher, solid for summaries, dashed for
    patches."""
    teachers = sorted({name.partition(".")[0] for name in names})
    tones = {teacher: place + 1 for place, teacher in enumerate(teachers)}
    labels = {name: ", ".join(map(proper_name, name.split("."))) for name in names}
    return [
        _line(run, kind + name, labels[name], tones[name.partition(".")[0]], name.endswith("patches")) for name in names
    ]


def _line(run: Run, name: str, label: str, tone: int, dashed: bool = False) -> Line:
    points = [(line["step"], line[name]) for line in run.metrics if line.get(name) is not None]
    return Line(label, [step for step, _ in points], [value for _, value in points], tone, dashed)


def shown(picture: np.ndarray | Image.Image, alt: str, caption: str = "", right: bool | None = None) -> Picture:
    """A picture for the page; small ones are enlarged, so that frames around them look alike.

    Args:
        picture: a Pillow picture, or one as `squares` gives it.
        alt, caption, right: see Picture.
    """
    if isinstance(picture, Image.Image):
        image = picture
    else:
        image = Image.fromarray(picture if picture.dtype == np.uint8 else as_rgb(picture))
    if max(image.size) < SIDE:
        image = image.resize([round(side * SIDE / max(image.size)) for side in image.size], Image.Resampling.BICUBIC)
    return Picture(data_uri(image, SIDE), alt, caption, right)


def squares(
    source: Source, indices: Sequence[int], bands: int | None = None, longest: int | None = 4 * SIDE
) -> list[np.ndarray]:
    """The largest centred squares of pictures, as models see them that crop and read so many bands at full depth.

    Args:
        source, indices: which pictures.
        bands: see `Source.read`.
        longest: their longer side is reduced to so many pixels before; None leaves them as they are.
    """
    return [_square(source.read(index, longest, bands)) for index in indices]


def _square(picture: np.ndarray) -> np.ndarray:
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    return picture[top : top + side, left : left + side]


def patch_columns(
    pictures: Sequence[np.ndarray], model: VisionModel, teachers: Mapping[str, VisionModel]
) -> dict[str, list[np.ndarray]]:
    """Pictures as a model's patches, and as those of its teachers beside its answers in their spaces.

    What a teacher says and what the model says in its space have one set of colours, found from the teacher's patches.
    Networks that see few patches of a picture see it enlarged, all by the same factor.

    Args:
        pictures: (S, S, C), as `squares` gives them.
        model: any; of a student, every adaptor is shown.
        teachers: by the adaptors' names, as far as they are there.
    Returns:
        title -> pictures, the teachers first.
    """
    factor = max(-(-FINEST * each.stride // each.preprocess.size) for each in (model, *teachers.values()))
    features = _enlarged(model, pictures, factor)
    columns: dict[str, list[np.ndarray]] = {}
    for name in model.adaptors:
        answer, title = features.adaptors[name], proper_name(name)
        spaces = {f"student as {title}": answer}
        if name in teachers:
            spaces = {f"{title} teacher": _enlarged(teachers[name], pictures, factor), **spaces}
        columns |= _painted(spaces)
    return columns | _painted({"its own space" if model.adaptors else model.name: features})


def _enlarged(model: VisionModel, pictures: Sequence[np.ndarray], factor: int) -> Features:
    """A model's features of pictures of `factor` times the side that it was trained for."""
    preprocess = replace(model.preprocess, size=factor * model.preprocess.size)
    (batch,) = read_batches(list(pictures), preprocess)
    return model(batch.images)


def _painted(spaces: Mapping[str, Features]) -> dict[str, list[np.ndarray]]:
    """Features of one space in the colours of the first."""
    arrays = {title: features.patches.float().cpu().numpy() for title, features in spaces.items()}
    colours = PatchColours.of(next(iter(arrays.values())))
    return {title: list(colours.paint(array, spaces[title].grid, (SIDE, SIDE))) for title, array in arrays.items()}


PATCH_NOTE = (
    "The colours are the first three principal components of the patch features, found from all the pictures shown and "
    "drawn smoothly between the centres of the patches. They mean nothing by themselves: parts of equal colour are "
    "parts that the model takes for alike. Small pictures are enlarged first, so that there are enough patches to see."
)


def patch_gallery(pictures: Sequence[np.ndarray], columns: Mapping[str, Sequence[np.ndarray]], note: str) -> Gallery:
    """Pictures, and beside them their patches as colours."""
    titles = ["picture", *columns]
    rows = [
        [shown(picture, "picture"), *(shown(column[row], f"its patches, {title}") for title, column in columns.items())]
        for row, picture in enumerate(pictures)
    ]
    pairs = [place for place, title in enumerate(titles) if place and "student as" not in title]
    return Gallery(titles, rows, pairs, note=note)


def words_cards(
    model: VisionModel,
    pictures: Sequence[np.ndarray],
    truths: Sequence[str],
    labels: Sequence[str],
    templates: Sequence[str],
) -> list[Card]:
    """Pictures with the labels that a model takes for likeliest, and the true one of each among them."""
    ranked: Any = model.classify(list(pictures), labels, templates)  # a list a picture, since a list was given
    return [_words_card(*each) for each in zip(pictures, truths, ranked, strict=True)]


def _words_card(picture: np.ndarray, truth: str, ranked: Sequence[Mapping[str, Any]]) -> Card:
    likeliest = list(ranked[:SHOWN_LABELS])
    if truth not in [answer["label"] for answer in likeliest]:
        likeliest += [answer for answer in ranked if answer["label"] == truth]
    right = ranked[0]["label"] == truth
    bars = [
        Bar(answer["label"], answer["score"], 2 if answer["label"] == truth else 3, percent(answer["score"]))
        for answer in likeliest
    ]
    return Card(shown(picture, truth, "right" if right else "wrong", right), truth, bars)


def configurations(runs: Sequence[Run]) -> list[Details]:
    """Everything that decided a run, folded away."""
    folded = []
    for run in runs:
        facts = [(name, _plain(value)) for name, value in run.environment.items()]
        config = Code(json.dumps(run.config, indent=2, ensure_ascii=False))
        folded.append(Details(f"{run.name}: configuration as resolved, versions, hardware", [config, Facts(facts)]))
    return folded


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "none" if value is None else str(value)
