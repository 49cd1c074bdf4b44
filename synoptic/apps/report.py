"""One self-contained HTML page about a run, several runs side by side, or a demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from synoptic.apps import report_demo, report_page
from synoptic.apps.demo_journal import is_demo
from synoptic.apps.report_page import Cell, Facts, Gallery, Page, Picture, Section, Table
from synoptic.apps.report_parts import (
    DRAWN_ALONE,
    NOTHING,
    PATCH_NOTE,
    SCORES,
    Run,
    configurations,
    duration,
    patch_columns,
    patch_gallery,
    read_run,
    score,
    shown,
    squares,
    training_curves,
)
from synoptic.apps.report_resolution import named_sections, resolution_sections
from synoptic.apps.report_words import words_sections
from synoptic.data.sources import Source, open_source
from synoptic.evaluation.features import embed
from synoptic.evaluation.recognition import nearest
from synoptic.files import check_file
from synoptic.methods.teachers import named_teachers
from synoptic.predict import VisionModel, load

PICTURES = 6  # whose patches are shown
QUERIES, BANK, NEAREST = 4, 1000, 5  # pictures whose neighbours are shown, pictures searched, neighbours


def report(runs: Sequence[Path | str], out: Path | str | None = None) -> Path:
    """Writes a report.

    Args:
        runs: run folders of `synoptic train`, finished or not; or the folder of one demo.
        out: the page; None writes `report.html` into the first folder.
    Returns:
        The page.
    Raises:
        ValueError: a folder is no run, or a demo that is not finished.
    """
    folders = [Path(run) for run in runs]
    if not folders:
        raise ValueError("report: name a run folder")
    path = Path(out) if out is not None else folders[0] / "report.html"
    check_file(path)
    demos = [folder for folder in folders if is_demo(folder)]
    if demos and len(folders) > 1:
        raise ValueError(f"report: {demos[0]} is a demo, which has a page of its own; name it alone")
    page = report_demo.story(folders[0]) if demos else runs_page(folders)
    report_page.write(page, path)
    return path


def runs_page(folders: Sequence[Path]) -> Page:
    """The page about runs, the first one deciding which pictures are shown."""
    names = [folder.resolve().name for folder in folders]
    unique = len(set(names)) == len(names)
    runs = [read_run(folder, name if unique else str(folder)) for folder, name in zip(folders, names, strict=True)]
    tones = list(range(len(runs)))
    sections = [
        Section("Scores", [], [_scores(runs)]),
        Section("While training", [], [training_curves(runs, tones)]),
        *_seen(runs),
        Section("How it was made", [], [_facts(run) for run in runs] + list(configurations(runs))),
    ]
    lead = [] if len(runs) > 1 else [f"{runs[0].title}, trained on {runs[0].config['data']}."]
    title = names[0] if len(runs) == 1 else f"{len(runs)} runs side by side"
    notices = [notice for run in runs for notice in run.notices()]
    return Page("synoptic report", title, lead, sections, "Written by “synoptic report”.", notices)


def _scores(runs: Sequence[Run]) -> Table:
    """The validation scores of each run's model, or the last ones of a run that has none yet."""
    known = list(SCORES)
    found = {name for run in runs for _, scores in run.scores() for name in scores} - DRAWN_ALONE
    names = sorted(found, key=lambda name: (known.index(name) if name in known else len(known), name))
    rows: list[list[Cell | str]] = []
    for run in runs:
        at, judged = run.judged()
        cells = [Cell(score(name, judged[name])) if judged.get(name) is not None else Cell(NOTHING) for name in names]
        loss = next((line["loss"] for line in reversed(run.metrics) if line.get("loss") is not None), None)
        steps = run.metrics[-1]["step"] if run.metrics else 0
        done = Cell(f"{steps} of {run.config['steps']}", "" if run.is_finished else "not finished")
        rows.append([run.name, done, Cell(NOTHING if loss is None else f"{loss:.3f}"), Cell(at), *cells])
    note = "Scores of validation pictures, which decide what checkpoint is kept; “synoptic evaluate” takes a test part."
    return Table(["run", "steps", "loss", "model of step", *(SCORES.get(name, name) for name in names)], rows, note)


def _facts(run: Run) -> Facts:
    machine = run.environment
    facts = {
        "run": run.name,
        "trained": run.title,
        "data": str(run.config["data"]),
        "time": duration(run.trained["seconds"]) if "seconds" in run.trained else "not finished",
        "steps, batch": f"{run.config['steps']}, {run.config['batch']}",
        "machine": ", ".join(f"{machine[key]} {key}" for key in ("cores", "gpu") if machine.get(key)),
    }
    return Facts(list(facts.items()))


def _seen(runs: Sequence[Run]) -> list[Section]:
    """What the finished runs' models make of validation pictures."""
    models = {run.name: load(run.folder, "cpu") for run in runs if run.is_finished}
    if not models:
        return resolution_sections(runs, {}, {}, None)
    first = next(run for run in runs if run.is_finished)
    bands = models[first.name].preprocess.bands
    models = {name: model for name, model in models.items() if model.preprocess.bands == bands}  # which see the same
    share = first.config["loader"]["validation"]
    try:
        data, images = first.config["data"], first.config.get("images")
        train, validation = (
            open_source(data, part, validation=share, images=images) for part in ("train", "validation")
        )
    except ValueError as error:  # a run outlives its pictures
        unseen = Section("Pictures", [f"None can be shown: {error}"], [])
        return [unseen, *resolution_sections(runs, {}, {}, None)]
    teachers = {run.name: _teachers(run) for run in runs if run.name in models}
    sections = [_patches(models, teachers, validation), *resolution_sections(runs, models, teachers, validation)]
    sections.append(_neighbours(models, train, validation))
    for name, model in models.items():
        sections += [*words_sections(name, model, validation), *named_sections(name, model, validation)]
    return sections


def _patches(
    models: Mapping[str, VisionModel], teachers: Mapping[str, Mapping[str, VisionModel]], validation: Source
) -> Section:
    bands = next(iter(models.values())).preprocess.bands
    pictures = squares(validation, _spread(validation, PICTURES), bands)
    columns: dict[str, Sequence[np.ndarray]] = {}
    for name, model in models.items():
        found = patch_columns(pictures, model, teachers[name])
        columns |= {f"{name}: {title}" if len(found) > 1 else name: found[title] for title in found}
    return Section("Patches as colours", [], [patch_gallery(pictures, columns, PATCH_NOTE)])


def _teachers(run: Run) -> dict[str, VisionModel]:
    """A student's teachers, as far as they are still there."""
    found = {}
    told = run.config.get("teacher") or {}
    for name, model in named_teachers(run.config["teachers"]).items() if run.config.get("teachers") else ():
        try:
            found[name] = load(model, "cpu", **(told.get(name) or {}).get("load", {}))
        except ValueError:
            continue
    return found


def _neighbours(models: Mapping[str, VisionModel], train: Source, validation: Source) -> Section:
    bank = train.select(_spread(train, BANK))
    queries = validation.select(_spread(validation, QUERIES))
    galleries = []
    for name, model in models.items():
        there, asked = embed(model, bank), embed(model, queries)
        (space,) = there.vectors
        found = there.index[nearest(there.vectors[space], asked.vectors[space], NEAREST).index]
        rows = [
            [
                _labelled(queries, query, model),
                *(_labelled(bank, index, model, _class_of(queries, query)) for index in row),
            ]
            for query, row in zip(asked.index.tolist(), found.tolist(), strict=True)
        ]
        head = ["picture", *(f"{name}: nearest" if not place else f"{place + 1}" for place in range(NEAREST))]
        galleries.append(Gallery(head, rows, [1]))
    text = f"Validation pictures, and those among {len(bank)} training pictures whose summaries are the most similar."
    return Section("Nearest neighbours", [text], galleries)


def _labelled(source: Source, index: int, model: VisionModel, wanted: str | None = None) -> Picture:
    label = _class_of(source, index)
    right = None if label is None or wanted is None else label == wanted
    (picture,) = squares(source, [index], model.preprocess.bands)
    return shown(picture, label or source.paths[index].name, label or "", right)


def _class_of(source: Source, index: int) -> str | None:
    return None if source.labels is None else source.classes[source.labels[index]].replace("_", " ")


def _spread(source: Source, count: int) -> list[int]:
    """At most `count` indices, evenly from the whole source."""
    return np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int).tolist()
