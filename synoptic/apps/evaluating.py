"""The verb `evaluate`: scores of a model on a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from synoptic.apps.bars import bar
from synoptic.apps.typed import print_rows, typed_file, typed_model, typed_path
from synoptic.weights.options import LoadOptions, TeacherFile

Evaluation = Literal[
    "knn",
    "linear",
    "logistic",
    "retrieval",
    "zeroshot",
    "segmentation",
    "zeroshot_segmentation",
    "attention",
    "agreement",
    "artefacts",
    "detection",
]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Scores of a model on the test part of a labelled data set, as fractions.

    Attributes:
        model: a name from `synoptic models`, a run folder, a weights file or folder, or hf:owner/name.
        on: evaluations, comma-separated: knn asks the nearest training pictures, linear and logistic classifiers of
            the features, retrieval the nearest test pictures of classes, and captions and pictures for each other,
            zeroshot words, segmentation a linear probe of the patches, zeroshot_segmentation words for each pixel,
            attention whether the foreground is looked at, agreement whether a student says what its teachers say, at
            rising sizes, artefacts how much patches say of their place alone, likewise, and detection how well a
            detector finds what the names of the categories name (COCO's average precision).
        data: a folder with `train/` and `test/` inside, or anything else that trains; what needs no training part
            judges those without parts whole. For detection a JSON of COCO's form, as instances_val2017.json.
        images: the folder that the names in a JSON of captions or boxes are relative to.
        adaptor: the teacher of a student in whose space it is judged; None takes the model's own space.
        labels: for zeroshot and zeroshot_segmentation, a .csv or .txt file with a line a class: the name of its folder,
            or of the class in the masks, then its prompts with commas between them; None asks by the names of the
            folders, or by those that the data set tells (classes.json; a file here names them in their order).
        templates: for these two, sentences as `synoptic classify` takes them; None takes this library's own.
        teachers: for agreement, name:MODEL,name:MODEL, by the names of the student's adaptors.
        teacher: what the weights files of these do not say themselves, as in teacher.clip.load.heads=12.
        sizes: for agreement and artefacts, sides in pixels at which the model is asked, such as 128,256,512; None takes
            from half to four times its own size.
        names_per_prompt: for detection, most names that share a prompt, and so compete; None takes as many as the model
            reads.
        out: JSON file for the scores.
        report: for detection alone, an HTML page with categories, precision over recall and the worst mistakes.
        load: what a weights file of other makers does not say itself.
    """

    model: str
    on: tuple[Evaluation, ...]
    data: str
    images: str | None = None
    adaptor: str | None = None
    labels: str | None = None
    templates: tuple[str, ...] | None = None
    teachers: str | None = None
    teacher: Mapping[str, TeacherFile] = field(default_factory=dict)
    sizes: tuple[PositiveInt, ...] | None = None
    names_per_prompt: PositiveInt | None = None
    out: str | None = None
    report: str | None = None
    load: LoadOptions = field(default_factory=LoadOptions)


def evaluate(options: EvaluateOptions) -> None:
    """Scores of a model on a data set."""
    from synoptic.apps.labelling import typed_templates
    from synoptic.judging import evaluate

    if options.report is not None:
        return _report(options, typed_path(options.report))
    with bar("detecting") as advance:
        scores = evaluate(
            typed_model(options.model, options.load),
            options.on,
            options.data,
            typed_file(options.out),
            options.adaptor,
            options.images,
            typed_file(options.labels),
            None if options.templates is None else typed_templates(options.templates),
            options.teachers,
            options.sizes,
            options.teacher,
            advance,
            options.names_per_prompt,
        )
    print_rows(*_scored(scores))


def _report(options: EvaluateOptions, page: Path) -> None:
    """Judges a detector and writes a page about it."""
    from synoptic.apps.report_detection import detection_report
    from synoptic.evaluation.protocols import images_at
    from synoptic.files import check_file
    from synoptic.judging import write_scores
    from synoptic.predict import load

    if set(options.on) != {"detection"}:
        raise ValueError("report= is for on=detection alone; synoptic report writes pages about runs")
    idle = ("labels", "templates", "teachers", "sizes", "adaptor")
    if given := next((name for name in idle if getattr(options, name) is not None), None):
        raise ValueError(f"{given}= decides nothing for on=detection; leave it out")
    out = typed_file(options.out)
    for file in (page, out):
        if file is not None:
            check_file(file)
    vision = load(options.model, **asdict(options.load))
    with bar("detecting") as advance:
        images = images_at(options.images)
        scores = detection_report(vision, options.data, images, page, advance, options.names_per_prompt)
    if out is not None:
        write_scores(out, vision.name, options.data, scores)
    print_rows(*_scored(scores))
    print(page)


def _scored(scores: Mapping[str, float]) -> tuple[list[str], list[list[Any]]]:
    """Head and rows of a table of scores; what is told of one, its interval and chance, stands in its line."""
    about = ("low", "high", "chance")
    mine = [name for name in scores if not name.endswith(tuple(f"_{each}" for each in about))]
    if len(mine) == len(scores):
        return ["score", "value"], [[name, scores[name]] for name in mine]
    rows = [[name, scores[name], *(scores.get(f"{name}_{each}", "") for each in about)] for name in mine]
    return ["score", "value", "95 % from", "to", "chance"], rows
