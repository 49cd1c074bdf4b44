"""The demo's page: one student against its teachers, an untrained network, raw pixels and chance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from synoptic.apps.demo_journal import NAME, open_demo
from synoptic.apps.demo_steps import SUBJECTS, TEACHERS, Demo
from synoptic.apps.figures import class_colours, paint_classes, proper_name, save_grid
from synoptic.apps.report_page import (
    Bar,
    Cards,
    Cell,
    Chart,
    Charts,
    Code,
    Details,
    Facts,
    Gallery,
    Page,
    Picture,
    Section,
    Table,
)
from synoptic.apps.report_parts import (
    NOTHING,
    PATCH_NOTE,
    SCORES,
    Run,
    configurations,
    duration,
    patch_columns,
    patch_gallery,
    percent,
    read_run,
    shown,
    squares,
    training_curves,
    words_cards,
)
from synoptic.apps.report_resolution import named_sections, resolution_sections
from synoptic.config import load_json
from synoptic.data.sources import Source, open_source
from synoptic.evaluation.dense import read_mask
from synoptic.evaluation.intervals import interval
from synoptic.evaluation.protocols import SCENE_TEMPLATES, prompts
from synoptic.evaluation.scenes import seen_pairs
from synoptic.predict import VisionModel, load

PICTURES = 6  # whose patches and masks are shown
README_ROWS = 4  # of them in the picture for other pages
QUERIES, NEAREST = 5, 5  # pictures whose neighbours are shown, and how many
RIGHT, WRONG = 4, 4  # examples of right and of wrong answers

TITLES = {
    "clip": "CLIP teacher",
    "dino": "DINO teacher",
    "student": "student",
    "untrained": "untrained",
    "raw_pixels": "raw pixels",
    "chance": "chance",
}
TONES = {"student": 0, "clip": 1, "dino": 2, "untrained": 3, "raw_pixels": 4}
MEASURES = {name: SCORES[name] for name in ("zeroshot", "knn", "segmentation_miou")}
PARTS = {
    "pictures": "drawing the pictures",
    "teachers": "training the teachers, side by side",
    "student": "training the student",
    "judgement": "judging all of them",
    "report": "writing this page",
}


@dataclass(frozen=True)
class Judged:
    """A subject's scores and what they were counted from."""

    scores: Mapping[str, float]
    pictures: Mapping[str, int]
    evidence: Mapping[str, np.ndarray]


class Material:
    """All that the page is made from, read once.

    Args:
        demo: finished.
    Raises:
        ValueError: something is missing.
    """

    def __init__(self, demo: Demo):
        lacking = [subject for subject in SUBJECTS if not demo.is_judged(subject)]
        if lacking:
            raise ValueError(f"{demo.out}: this demo is not finished; `synoptic demo out={demo.out}` goes on with it")
        self.demo = demo
        self.record = load_json(demo.out / NAME)
        self.judged = {subject: _read(demo.scores(subject)) for subject in SUBJECTS}
        self.single, self.multi = (open_source(str(demo.data(name)), "test") for name in ("single", "multi"))
        self.bank = open_source(str(demo.data("single")), "train")
        self.models = {name: load(demo.run(name), "cpu") for name in (*TEACHERS, "student", "untrained")}
        self.runs = [read_run(demo.run(name), TITLES[name]) for name in (*TEACHERS, "student")]

    @cached_property
    def student(self) -> VisionModel:
        return self.models["student"]

    def score(self, subject: str, measure: str) -> float | None:
        return self.judged[subject].scores.get(measure)

    def kept(self, measure: str, teacher: str) -> float | None:
        """How much of what a teacher has above chance the student has; None where the teacher has next to nothing."""
        mine, theirs, chance = (self.score(subject, measure) for subject in ("student", teacher, "chance"))
        if mine is None or theirs is None or chance is None or theirs - chance < 0.02:
            return None
        return (mine - chance) / (theirs - chance)


def story(out: Path) -> Page:
    """The page; beside it `figures/patch_pca.png`, a picture of the patches for other pages."""
    material = Material(open_demo(out))
    record = material.record
    brief = record["preset"] != "full"
    over = f"synoptic demo · preset {record['preset']} · seed {record['seed']} · {duration(_total(record))}"
    warning = ["This was the quick preset: it shows that everything works, and is far too short for good scores."]
    return Page(
        over=over,
        title="One student, two teachers that never saw each other",
        lead=[*_lead(material), *(warning if brief else [])],
        sections=[
            _scores(material),
            _patches(material),
            *_resolutions(material),
            _words(material),
            _neighbours(material),
            _segmentation(material),
            *named_sections("student", material.student, material.multi),
            Section("While they learned", [_LEARNING], [training_curves(material.runs, [1, 2, 0])]),
            _making(material),
        ],
        foot=f"Written by “synoptic demo”; “synoptic report {out}” writes it again from the same files.",
        notices=[notice for run in material.runs for notice in run.notices()],
    )


def _total(record: Mapping[str, Any]) -> float:
    return sum(record["seconds"].values())


def _lead(material: Material) -> list[str]:
    """The result in words, all numbers from the files."""
    found = {name: judged.scores for name, judged in material.judged.items()}
    millions = _parameters(material.student) / 1e6
    kept = material.kept("zeroshot", "clip")
    share = f": it keeps {percent(kept, 0)} of what its teacher has above chance" if kept is not None else ""
    pairs = round(1 / found["chance"]["zeroshot"])
    return [
        f"One teacher learned to see with words (CLIP), the other without any labels (DINO). One small network of "
        f"{millions:.1f} M parameters was then merged from both: a single forward pass answers in the space of each.",
        f"Asked in words which of {pairs} colours and shapes a picture shows, the student is right in "
        f"{percent(found['student']['zeroshot'])} of the test pictures, its CLIP teacher in "
        f"{percent(found['clip']['zeroshot'])}{share}. Judged by its nearest neighbours it names the shape in "
        f"{percent(found['student']['knn'])} (CLIP {percent(found['clip']['knn'])}, DINO "
        f"{percent(found['dino']['knn'])}, untrained {percent(found['untrained']['knn'])}).",
    ]


def _scores(material: Material) -> Section:
    charts = [_chart(material, measure) for measure in MEASURES]
    return Section(
        "Student against teachers",
        ["Longer is better. The thin lines are 95 % intervals of the accuracies, given how many pictures were asked."],
        [Charts(charts), _table(material), Details("What is measured, and how", [Facts(_measures(material))])],
    )


def _chart(material: Material, measure: str) -> Chart:
    notes = {
        "zeroshot": "which colour and shape, by words alone",
        "knn": "which of 10 shapes, by the nearest training pictures",
        "segmentation_miou": "which pixel is what: mean IoU of a linear probe of the patches",
    }
    bars = []
    for subject, tone in TONES.items():
        value, count = material.score(subject, measure), material.judged[subject].pictures.get(measure)
        shown_value = NOTHING if value is None else percent(value)
        span = interval(value, count) if value is not None and count else None
        bars.append(Bar(TITLES[subject], value, tone, shown_value, span, subject == "student"))
    chance = material.score("chance", measure)
    assert chance is not None
    return Chart(MEASURES[measure], notes[measure], bars, (chance, TITLES["chance"]))


def _table(material: Material) -> Table:
    rows: list[list[Cell | str]] = []
    for subject, title in TITLES.items():
        rows.append([title, *(_cell(material, subject, measure) for measure in MEASURES)])
        rows += _in_spaces(material) if subject == "student" else []
    for teacher in TEACHERS:
        shares = [material.kept(measure, teacher) for measure in MEASURES]
        cells = [Cell(NOTHING if share is None else percent(share, 0)) for share in shares]
        rows.append([f"kept of the {TITLES[teacher]}", *cells])
    note = (
        "The best of each column stands out. Small: the 95 % interval. Student as CLIP, as DINO: what its adaptors "
        "answer in the spaces of its teachers; its words lie in the space of CLIP. Kept: (student - chance) / "
        "(teacher - chance), where there is such a score and the teacher is more than 2 points above chance."
    )
    return Table(["", *MEASURES.values()], rows, note)


def _in_spaces(material: Material) -> list[list[Cell | str]]:
    """The student's neighbours in the spaces of its teachers."""
    found = {teacher: material.judged["student"].scores[f"knn_{teacher}"] for teacher in TEACHERS}
    return [
        [f"student as {proper_name(teacher)}", *(Cell(percent(knn) if name == "knn" else NOTHING) for name in MEASURES)]
        for teacher, knn in found.items()
    ]


def _cell(material: Material, subject: str, measure: str) -> Cell:
    value = material.score(subject, measure)
    if value is None:
        return Cell(NOTHING)
    others = [material.score(other, measure) for other in TITLES]
    count = material.judged[subject].pictures.get(measure)
    note = "" if not count else " to ".join(f"{100 * end:.1f}" for end in interval(value, count))
    return Cell(percent(value), note, strong=value == max(other for other in others if other is not None))


def _measures(material: Material) -> list[tuple[str, str]]:
    counts, chance = material.judged["student"].pictures, material.judged["chance"].scores
    pairs, shapes = round(1 / chance["zeroshot"]), round(1 / chance["knn"])
    return [
        (
            "zero-shot",
            f"{counts['zeroshot']} test pictures of one object; the answer is the nearest of {pairs} sentences such as "
            f"“a red cube”, one for each pair of colour and shape that training showed. The student answers through "
            f"its CLIP adaptor and keeps the teacher's words. Chance is 1 in {pairs}.",
        ),
        (
            "k-NN",
            f"{counts['knn']} test pictures of one object; the {len(material.bank)} training pictures vote for one of "
            f"{shapes} shapes, the 20 nearest with the weight exp(cosine / 0.07). Chance is 1 in {shapes}.",
        ),
        (
            "segmentation",
            f"{len(material.multi)} test pictures of one to six objects, background and {shapes} shapes at the "
            f"resolution of the pixels. A ridge regression reads the classes off frozen patch features. Chance is the "
            f"commonest class everywhere.",
        ),
        ("untrained", "The student's architecture with the random weights that its training began with."),
        ("raw pixels", "The picture itself, made small; for segmentation each of its pixels."),
    ]


def _patches(material: Material) -> Section:
    pictures = squares(material.multi, range(min(PICTURES, len(material.multi))))
    columns = patch_columns(pictures, material.student, {name: material.models[name] for name in TEACHERS})
    save_grid(material.demo.out / "figures" / "patch_pca.png", _first(README_ROWS, {"picture": pictures, **columns}))
    text = (
        "The first test pictures with up to six objects, as each network's patches. A teacher and the student's answer "
        "in its space share their colours: where two neighbouring columns agree, the student says what that teacher "
        "says. The last column is the student's own space, from which both answers come."
    )
    return Section("The same pictures in every space", [text], [patch_gallery(pictures, columns, PATCH_NOTE)])


def _resolutions(material: Material) -> list[Section]:
    teachers = {name: material.models[name] for name in TEACHERS}
    student = next(run for run in material.runs if run.name == TITLES["student"])
    models = {student.name: material.student}
    return resolution_sections([student], models, {student.name: teachers}, material.multi)


def _first(rows: int, columns: Mapping[str, Sequence[np.ndarray]]) -> dict[str, Sequence[np.ndarray]]:
    return {title: pictures[:rows] for title, pictures in columns.items()}


def _words(material: Material) -> Section:
    evidence = material.judged["student"].evidence
    index, truth, said = (evidence[f"zeroshot_{part}"] for part in ("index", "truth", "predicted"))
    chosen = [*np.flatnonzero(truth == said)[:RIGHT], *np.flatnonzero(truth != said)[:WRONG]]
    names = seen_pairs(material.single)[1]
    labels = [prompts([name], ["{}"])[0][0] for name in names]
    pictures = squares(material.single, [int(index[place]) for place in chosen])
    truths = [labels[truth[place]] for place in chosen]
    cards = words_cards(material.student, pictures, truths, labels, SCENE_TEMPLATES)
    text = (
        f"The first {np.count_nonzero(truth[chosen] == said[chosen])} test pictures that the student names right, and "
        f"the first {np.count_nonzero(truth[chosen] != said[chosen])} that it names wrong, with its likeliest answers "
        f"out of {len(labels)}; above the answers, and in green, the truth."
    )
    return Section("Asked in words", [text], [Cards(cards)])


def _neighbours(material: Material) -> Section:
    names = ("untrained", "student")
    truth = material.judged["student"].evidence["knn_truth"]
    shapes = material.single.classes
    queries = [int(np.flatnonzero(truth == shape)[0]) for shape in range(0, len(shapes), len(shapes) // QUERIES)]
    rows = []
    for query in queries:
        index = int(material.judged["student"].evidence["knn_index"][query])
        row = [shown(squares(material.single, [index])[0], shapes[truth[query]], shapes[truth[query]])]
        for name in names:
            found = material.judged[name].evidence["knn_neighbours"][query, :NEAREST].tolist()
            row += [_neighbour(material.bank, place, int(truth[query])) for place in found]
        rows.append(row)
    head = ["picture"]
    for name in names:
        head += [f"{name}, 1st", *(f"{place}" for place in range(2, NEAREST + 1))]
    text = (
        f"The first test picture of every other shape, and the {NEAREST} training pictures that are nearest to it "
        f"before and after training. The labels below are the truth; the student was never told any."
    )
    return Section("Which pictures look alike", [text], [Gallery(head, rows, [1, 1 + NEAREST])])


def _neighbour(bank: Source, place: int, wanted: int) -> Picture:
    assert bank.labels is not None
    label = bank.classes[bank.labels[place]]
    return shown(squares(bank, [place])[0], label, label, bool(bank.labels[place] == wanted))


def _segmentation(material: Material) -> Section:
    names = ["student", *TEACHERS, "untrained"]
    classes = ["background", *load_json(material.demo.data("multi") / "scenes.json")["shapes"]]
    said = {name: material.judged[name].evidence["segmentation_masks"] for name in names}
    rows = []
    assert material.multi.masks is not None
    for place in range(len(said["student"])):
        masks = [read_mask(material.multi.masks[place]), *(said[name][place] for name in names)]
        picture = shown(squares(material.multi, [place])[0], "picture")
        rows.append([picture, *(_painted(mask, len(classes)) for mask in masks)])
    colours = [f"rgb({', '.join(str(int(part)) for part in colour)})" for colour in class_colours(len(classes))]
    head = ["picture", "truth", *(TITLES[name] for name in names)]
    gallery = Gallery(head, rows, [2], list(zip(colours, classes, strict=True)))
    return Section(
        "Where things are",
        ["What a linear probe reads off each network's patches, for the first test pictures with up to six objects."],
        [gallery, Details("IoU of every class", [_ious(material, classes)])],
    )


def _painted(mask: np.ndarray, classes: int) -> Picture:
    return shown(Image.fromarray(paint_classes(mask, classes)), "classes of its pixels")


def _ious(material: Material, classes: Sequence[str]) -> Table:
    rows: list[list[Cell | str]] = []
    for subject in TONES:
        iou = material.judged[subject].evidence["segmentation_iou"]
        rows.append([TITLES[subject], *(Cell(NOTHING if np.isnan(each) else percent(each, 0)) for each in iou)])
    return Table(["", *classes], rows)


_LEARNING = (
    "Losses are means since the last point. The validation scores are taken on few pictures, to choose the best "
    "checkpoint; they are not the scores above."
)


def _making(material: Material) -> Section:
    demo, record = material.demo, material.record
    commands = [
        *(demo.drawing(name) for name in ("single", "multi")),
        *(demo.training(name) for name in (*TEACHERS, "student")),
        *(command for name in (*TEACHERS, "student", "untrained") for command in demo.judging(name)),
    ]
    code = Code("\n".join(" \\\n    ".join(_wrapped(["synoptic", *words])) for words in commands))
    times = [(PARTS[part], duration(seconds)) for part, seconds in record["seconds"].items()]
    machine = [(name, str(value)) for name, value in record["machine"].items()]
    return Section(
        "How it was made",
        ["The demo ran these commands, the two teachers at the same time. Typed by hand they give the same."],
        [
            code,
            _models(material),
            Facts([*times, ("in all", duration(_total(record))), *machine]),
            *configurations(material.runs),
        ],
    )


def _wrapped(words: Sequence[str], width: int = 100) -> list[str]:
    """A command in lines, broken between words."""
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) >= width:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return lines


def _models(material: Material) -> Table:
    rows: list[list[Cell | str]] = []
    for name, run in zip((*TEACHERS, "student"), material.runs, strict=True):
        rows.append([TITLES[name], *map(Cell, _model_facts(material.models[name], run))])
    return Table(["", "architecture", "parameters", "patch", "sees", "steps", "batch", "time"], rows)


def _model_facts(model: VisionModel, run: Run) -> list[str]:
    config, size = run.config, model.preprocess.size
    millions = f"{_parameters(model) / 1e6:.1f} M"
    steps, batch, time = str(config["steps"]), str(config["batch"]), duration(run.trained["seconds"])
    return [config["model"], millions, f"{model.stride} px", f"{size} px", steps, batch, time]


def _parameters(model: VisionModel) -> int:
    return sum(parameter.numel() for parameter in model.model.parameters())


def _read(path: Path) -> Judged:
    record = json.loads(path.read_text())
    arrays = path.with_suffix(".npz")
    evidence: dict[str, np.ndarray] = {}
    if arrays.is_file():
        with np.load(arrays, allow_pickle=False) as stored:
            evidence = {name: stored[name] for name in stored.files}
    return Judged(record["scores"], record["pictures"], evidence)
