"""The verbs whose keys are the fields of one dataclass."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from synoptic.apps.arguments import OptionsVerb
from synoptic.apps.bars import bar, bars
from synoptic.apps.conversion import ConvertOptions, convert
from synoptic.apps.evaluating import EvaluateOptions, evaluate
from synoptic.apps.typed import print_rows, tell_left_out, typed_file, typed_model, typed_path
from synoptic.weights.options import LoadOptions, TeacherFile


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Generates pictures, trains two teachers, merges them into a student and judges all of them.

    Attributes:
        out: folder of the data, the models and the report.
        preset: `quick` takes about a minute and shows that all works; `full` trains for the scores.
    """

    out: str = "runs/demo"
    preset: Literal["full", "quick"] = "full"


def demo(options: DemoOptions) -> None:
    """The whole story on built-in data, ends with a report."""
    from synoptic.apps.demo import demo

    demo(typed_path(options.out), options.preset)


@dataclass(frozen=True, kw_only=True)
class ModelsOptions:
    """Names that stand for a MODEL anywhere.

    Attributes:
        pattern: part of a name, or a glob such as `vit_*`; None lists all.
        task: what they answer with beside patches: a summary, one in a space with words, masks, or boxes of what words
            name.
        licence: of their weights, such as apache-2.0 or mit.
        commercial: whether the licence allows commercial use.
        local: whether they are on this machine; others are fetched when they are first used.
    """

    pattern: str | None = None
    task: Literal["features", "words", "segments", "boxes"] | None = None
    licence: str | None = None
    commercial: bool | None = None
    local: bool | None = None


def models(options: ModelsOptions) -> None:
    """Name, task, parameters, resolution and licence of every known model."""
    from synoptic.weights.zoo import list_models

    asked = asdict(options)
    found = [asdict(record) for record in list_models(asked.pop("pattern") or "", **asked)]
    print_rows(list(found[0]), [list(record.values()) for record in found])


@dataclass(frozen=True, kw_only=True)
class ScenesOptions:
    """A generator of labelled pictures: boxes, masks, captions, depth, normals, all of it exact.

    Attributes:
        out: folder to write, with `train/` and `test/` inside.
        count: pictures in all; a fifth of them are the test part.
        size: side of the square pictures in pixels, 32 to 1024.
        seed: the same seed gives the same bytes.
        objects: how many objects a picture shows, such as 3 or 1..6; with 1 the pictures lie in class folders.
        views: 2 adds a second camera's picture with pixel correspondences.
    """

    out: str
    count: int
    size: int = 96
    seed: int = 0
    objects: str = "1..6"
    views: int = 1


def scenes(options: ScenesOptions) -> None:
    """Built-in pictures with exact truth."""
    from synoptic.data.scenes import SceneConfig, parse_objects, write

    config = SceneConfig(options.count, options.size, options.seed, parse_objects(options.objects), options.views)
    with bar("drawing") as advance:
        out = write(Path(options.out), config, progress=advance)
    print(f"{config.count} pictures in {out}")


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """Embeddings of pictures as a Parquet table, which the same command brings up to date when pictures come and go.

    Attributes:
        images: a file, a folder (any depth), a glob, or a .txt list: all that the table is to hold. What it has already
            is kept, by its content where a file has moved; new and changed files are embedded, those that were deleted
            dropped.
        model: a name from `synoptic models`, a run folder, a weights file or folder, or hf:owner/name.
        out: the .parquet file.
        tokens: one embedding a picture, or one a patch.
        adaptor: the teacher of a student in whose space they lie; None takes the model's own space. To be searched by
            words, take the one that knows words.
        dtype: what they are stored in; float16 takes half the space.
        overwrite: throws away what `out` holds.
        load: what a weights file of other makers does not say itself.
    """

    images: str
    model: str
    out: str
    tokens: Literal["summary", "patches"] = "summary"
    adaptor: str | None = None
    dtype: Literal["float32", "float16"] = "float32"
    overwrite: bool = False
    load: LoadOptions = field(default_factory=LoadOptions)


def embed(options: EmbedOptions) -> None:
    """Embeddings of pictures into a Parquet file."""
    from synoptic.apps.embeddings import embed

    out = typed_path(options.out)
    known = out.exists() and not options.overwrite
    with bar("embedding") as advance:
        tally = embed(
            options.images,
            options.model,
            out,
            options.tokens,
            options.adaptor,
            options.dtype,
            options.overwrite,
            options.load,
            progress=advance,
        )
    print(out)
    if known:
        print(tally, file=sys.stderr)
    tell_left_out(tally.left_out)


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The pictures of a table of embeddings that are nearest to a text or to a picture.

    Attributes:
        index: the .parquet file that `synoptic embed` has written.
        text: what is looked for in words, as in text="a red bus"; None asks with a picture.
        image: the file of a picture to which similar ones are looked for; None asks with words.
        k: how many pictures are wanted.
        model: the model that made the table; None takes it from where it lay then.
        out: a contact sheet (.png) or the answer as a .json or .csv file.
        exact: looks at every row, in seconds; otherwise a table of a million rows or more gets an index beside it, with
            which 98 % of the pictures nearest to a picture are found, and fewer to words perhaps, in milliseconds.
        load: what the weights file of `model` does not say itself.
    """

    index: str
    text: str | None = None
    image: str | None = None
    k: PositiveInt = 10
    model: str | None = None
    out: str | None = None
    exact: bool = False
    load: LoadOptions = field(default_factory=LoadOptions)


def search(options: SearchOptions) -> None:
    """The pictures nearest to words or to a picture."""
    from synoptic.apps.search import search

    with bar("indexing") as advance:
        hits = search(
            options.index,
            options.text,
            options.image,
            options.k,
            options.model,
            typed_file(options.out),
            options.exact,
            options.load,
            progress=advance,
        )
    print_rows(["score", "path", "missing"], [[hit.score, hit.path, hit.missing] for hit in hits])
    if gone := sum(hit.missing for hit in hits):
        what = "picture is" if gone == 1 else "pictures are"
        print(f"{gone} {what} not where embed found them; paths are seen from this folder", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
    """Scores of the labels given in words, for a model with a text tower, or of the classes of a linear classifier.

    Attributes:
        images: a file, a folder (any depth), a glob, or a .txt list.
        model: a name from `synoptic models`, a run folder, a weights file or folder, or hf:owner/name.
        labels: the classes in words, comma-separated, or a .csv or .txt file with a line a class: its name, then its
            prompts with commas between them; one without prompts takes the templates. With load.linear_head, names of
            all its classes in order; None numbers them.
        templates: sentences in which `{}` stands for a label, comma-separated; 7 or 80 for those published with CLIP;
            or a file with one a line.
        adaptor: the teacher of a student whose words are used; needed where several know words.
        k: labels told of each picture, the likeliest first; None tells one, and writes all into `out`.
        out: .json file, picture to its labels and scores, or .csv file with a line for each of them.
        load: what a weights file of other makers does not say itself.
    """

    images: str
    model: str
    labels: tuple[str, ...] | None = None
    templates: tuple[str, ...] = ("a {}",)
    adaptor: str | None = None
    k: PositiveInt | None = None
    out: str | None = None
    load: LoadOptions = field(default_factory=LoadOptions)


def classify(options: ClassifyOptions) -> None:
    """The label that fits each picture best."""
    from synoptic.apps.labelling import classify

    with bars("reading the prompts", "classifying") as (prepare, advance):
        answers, left_out = classify(
            options.images,
            typed_model(options.model, options.load),
            options.labels,
            options.templates,
            options.adaptor,
            typed_file(options.out),
            options.k,
            progress=advance,
            preparing=prepare,
        )
    rows = [[path, answer["label"], answer["score"]] for path, best in answers.items() for answer in best]
    print_rows(["picture", "label", "score"], rows)
    tell_left_out(left_out)


@dataclass(frozen=True, kw_only=True)
class FiguresOptions:
    """What a model sees: a sheet for each picture with patches as colours, attention and words, and a contact sheet.

    Attributes:
        images: a file, a folder (any depth), a glob, or a .txt list.
        model: a name from `synoptic models`, a run folder, a weights file or folder, or hf:owner/name.
        out: folder of the figures; the same command goes on where it was stopped.
        text: words whose likeness to each patch is shown, comma-separated.
        adaptor: the teacher of a student whose words they are; needed where several know words.
        layer: block whose attention is shown, counted from 0 or, if negative, from the end.
        size: side in pixels at which the model sees pictures, a multiple of its patches; None takes its own, enlarged
            to 12 patches across where it has fewer.
        teachers: name:MODEL,name:MODEL, by the names of a student's adaptors: what they see at rising sizes is shown
            beside it, and how well it agrees with them.
        teacher: what the weights files of these do not say themselves, as in teacher.clip.load.heads=12.
        sizes: sides in pixels, such as 64,128,256, at which patches and their artefacts are shown; None takes, with
            teachers, from half to four times the model's own size.
        overwrite: throws away other figures that `out` holds.
        load: what a weights file of other makers does not say itself.
    """

    images: str
    model: str
    out: str
    text: tuple[str, ...] = ()
    adaptor: str | None = None
    layer: int = -1
    size: PositiveInt | None = None
    teachers: str | None = None
    teacher: Mapping[str, TeacherFile] = field(default_factory=dict)
    sizes: tuple[PositiveInt, ...] | None = None
    overwrite: bool = False
    load: LoadOptions = field(default_factory=LoadOptions)


def figures(options: FiguresOptions) -> None:
    """Pictures of what a model sees in pictures."""
    from synoptic.apps.views import figures

    out, model = typed_path(options.out), typed_model(options.model, options.load)
    with bar("drawing") as advance:
        left_out = figures(
            options.images,
            model,
            out,
            options.layer,
            options.size,
            options.overwrite,
            progress=advance,
            texts=options.text,
            adaptor=options.adaptor,
            teachers=options.teachers,
            sizes=options.sizes,
            teacher=options.teacher,
        )
    print(out)
    tell_left_out(left_out)


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """One self-contained HTML page about one run, or several side by side.

    Attributes:
        runs: run folders.
        out: the page; None writes report.html into the first run's folder.
    """

    runs: tuple[str, ...]
    out: str | None = None


def report(options: ReportOptions) -> None:
    """A page with the scores, curves and pictures of one run or several."""
    from synoptic.apps.report import report

    page = report([typed_path(run) for run in options.runs], typed_file(options.out))
    print(page)


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """WebDataset shards of pictures with their captions and classes, none of them encoded anew.

    Attributes:
        data: anything that trains: a folder, a captions file, shards, several of them comma-separated.
        out: the shards, such as `x-{000..009}.tar`; the same command goes on where it was stopped.
        images: the folder that the names in a captions file are relative to.
        split: the part that is packed: all but the test part, or train, validation or test alone. Where there is no
            validation part, a tenth of the training pictures is, as in training.
        seed: decides the order.
        overwrite: replaces other files of these names.
    """

    data: str
    out: str
    images: str | None = None
    split: Literal["all", "train", "validation", "test"] = "all"
    seed: NonNegativeInt = 0
    overwrite: bool = False


def pack(options: PackOptions) -> None:
    """Pictures, captions and classes into WebDataset shards."""
    from synoptic.data.packing import pack
    from synoptic.data.sources import open_source, parts_of

    source = open_source(options.data, options.split, images=options.images)
    if options.split == "all" and "test" in parts_of(options.data):
        print("the test part is left out: split=test packs it", file=sys.stderr)
    if options.split in ("train", "validation") and "validation" not in parts_of(options.data):
        told = "data has no validation part, so a tenth of its training pictures is set apart for one"
        print(f"{told}, as training does: split=all packs both", file=sys.stderr)
    with bar("packing") as advance:
        shards = pack(source, options.out, options.seed, options.overwrite, progress=advance)
    last = f" to {shards[-1].name}, {len(shards)} shards" if len(shards) > 1 else ""
    print(f"{len(source) - len(source.errors)} pictures in {shards[0]}{last}")
    tell_left_out(len(source.errors))


SIMPLE_VERBS = (
    OptionsVerb(demo, DemoOptions),
    OptionsVerb(models, ModelsOptions, "pattern"),
    OptionsVerb(scenes, ScenesOptions),
    OptionsVerb(embed, EmbedOptions, "images"),
    OptionsVerb(search, SearchOptions, "index"),
    OptionsVerb(classify, ClassifyOptions, "images"),
    OptionsVerb(evaluate, EvaluateOptions, "model"),
    OptionsVerb(figures, FiguresOptions, "images"),
    OptionsVerb(pack, PackOptions, "data"),
    OptionsVerb(convert, ConvertOptions, "model"),
    OptionsVerb(report, ReportOptions, "runs"),
)
