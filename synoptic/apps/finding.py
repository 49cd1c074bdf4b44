"""The verb `detect`: what words name in pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt

from synoptic.apps.arguments import OptionsVerb
from synoptic.apps.bars import bar
from synoptic.apps.typed import tell_left_out, typed_file, typed_path
from synoptic.weights.options import LoadOptions

if TYPE_CHECKING:
    from synoptic.apps.detection_files import Journal
    from synoptic.detection.detections import Detections
    from synoptic.detection.finder import DetectOptions, Finder
    from synoptic.predict import VisionModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DetectVerbOptions:
    """Finds what words name in pictures, for a Grounding DINO; without out= it tells a line an object.

    Attributes:
        images: a file, folder (any depth), glob or `.txt` list.
        model: a name from `synoptic models`, or a weights file or folder.
        text: what to look for: names with full stops between them, as in "a cat. a remote control."; or a .txt file
            with a name a line; with phrases=true a sentence, or a .txt file with one.
        threshold: lowest score of an object, from 0 to 1.
        thresholds: lowest scores of single classes, as in thresholds.cat=0.5 or thresholds.a_cat=0.5.
        limit: most objects of a picture.
        nms: share of their union that two boxes of one class have in common at most, lest the less sure one go; None
            keeps all, but of a picture in parts 0.5.
        phrases: takes the text as a sentence, and tells which of its words each object fits.
        text_threshold: lowest probability of words beside the surest, with phrases=true.
        tile: side in pixels of parts that a larger picture is cut into, each looked at by itself, beside the whole.
        overlap: share of a part that the next one shows, too.
        names_per_prompt: most names that share a prompt, and so compete; None takes as many as the model reads.
        batch: pictures that are looked at together.
        precision: of the computation; bf16 is faster where the machine multiplies in it, and less exact.
        compile: whether PyTorch compiles how points are read: the first picture takes a quarter of a minute longer,
            other large ones up to a tenth less; without a compiler it says so and goes on.
        out: what was found in all pictures, in one .json or .csv file; with form=yolo a folder of .txt files. The same
            command goes on where it was stopped.
        form: of `out`: json holds all, coco is a data set as COCO's tools read it; None goes by the ending.
        draw: folder for the pictures with boxes and names drawn on them.
        overwrite: throws away what another command has begun in `out`.
        load: what a weights file of other makers does not say itself.
    """

    images: str
    model: str
    text: str
    threshold: float = 0.3
    thresholds: dict[str, float] = field(default_factory=dict)
    limit: PositiveInt = 300
    nms: float | None = None
    phrases: bool = False
    text_threshold: float = 0.25
    tile: PositiveInt | None = None
    overlap: float = 0.2
    names_per_prompt: PositiveInt | None = None
    batch: PositiveInt = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    out: str | None = None
    form: Literal["json", "coco", "csv", "yolo"] | None = None
    draw: str | None = None
    overwrite: bool = False
    load: LoadOptions = field(default_factory=LoadOptions)


def detect(options: DetectVerbOptions) -> None:
    """What words name in pictures: boxes, classes, scores."""
    from synoptic.apps.detection_files import Journal, check_labels, form_of
    from synoptic.data.listing import list_images
    from synoptic.files import check_folder
    from synoptic.weights.folder import model_hash

    out = typed_file(options.out)
    if out is None and options.form is not None:
        raise ValueError(f"form={options.form} decides nothing without out=; leave it out, or say out=FILE")
    form = None if out is None else form_of(out, options.form)
    paths = list_images(options.images)
    if form == "yolo" and out is not None:
        check_labels(out, paths, options.overwrite)
    if options.draw is not None:
        check_folder(typed_path(options.draw), "draw")
    text = _text(options)
    vision = _loaded(options)
    finder, names = _finder(vision, options, text)
    if out is None:
        left_out = _look(finder, text, paths, options, None)
        if left_out == len(paths):
            raise _none_read(options)
        return tell_left_out(left_out)
    facts = {key: value for key, value in asdict(options).items() if key not in _WITHOUT_EFFECT}
    decisive = {**facts, "text": text, "weights": model_hash(vision.model, vision.preprocess)}
    with Journal(out, decisive, options.overwrite) as journal:
        left_out = _look(finder, text, paths, options, journal)
        if left_out == len(paths):
            journal.remove()
            raise _none_read(options)
        assert form is not None
        _write(out, form, paths, names, facts, journal)
        print(out)
    tell_left_out(left_out)


# Options that change nothing of what is found.
_WITHOUT_EFFECT = ("out", "form", "draw", "overwrite", "batch", "compile")

_OTHER_LISTS = (".csv", ".tsv", ".json", ".yaml", ".yml")
_MOST = 65_500  # pixels of a side that JPEG can hold

DETECT = OptionsVerb(detect, DetectVerbOptions, "images")


def _none_read(options: DetectVerbOptions) -> ValueError:
    return ValueError(f"{options.images}: no picture of it can be read")


def _text(options: DetectVerbOptions) -> str | list[str]:
    """A text, or names from a file."""
    from synoptic.data.listing import expand

    path = expand(options.text)
    if path.suffix.lower() in _OTHER_LISTS:
        raise ValueError(f"text={options.text}: is no .txt file; give one with a name a line, or the names")
    if path.suffix.lower() != ".txt":
        return options.text
    if not path.is_file():
        raise ValueError(f"text={options.text}: no such file; give a .txt file with a name a line, or the names")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"text={options.text}: is no UTF-8 text; save it as such") from None
    if not any(line.strip() for line in lines):
        raise ValueError(f"text={options.text}: is empty; give a .txt file with a name a line")
    return " ".join(lines) if options.phrases else [line.strip() for line in lines if line.strip()]


def _look_options(options: DetectVerbOptions) -> DetectOptions:
    from synoptic.config import from_dict
    from synoptic.detection.finder import DetectOptions

    given = {each.name: getattr(options, each.name) for each in fields(DetectOptions)}
    return from_dict(DetectOptions, given, "detect")


def _loaded(options: DetectVerbOptions) -> VisionModel:
    """The model, in the asked precision; mistakes in how it is to look show before it is loaded."""
    import torch

    from synoptic.predict import load

    _look_options(options)
    vision = load(options.model, **asdict(options.load))
    if options.precision == "bf16":
        vision.model.to(torch.bfloat16)
    return vision


def _finder(vision: VisionModel, options: DetectVerbOptions, text: str | list[str]) -> tuple[Finder, tuple[str, ...]]:
    """What looks for the text, and the names of its classes."""
    finder = vision.finder(_look_options(options))
    if options.compile:
        vision.model.look_by("compiled")
    return finder, finder.names(text)


def _look(
    finder: Finder, text: str | list[str], paths: Sequence[Path], options: DetectVerbOptions, journal: Journal | None
) -> int:
    """Looks at what is not in the journal; says how many pictures of all could not be read."""
    from synoptic.apps.detection_files import beneath

    drawings = {}
    if options.draw is not None:
        into = typed_path(options.draw)
        drawings = {str(path): into / place for path, place in zip(paths, beneath(paths, ".jpg"), strict=True)}
    left = [path for path in paths if journal is None or path not in journal]
    broken = {} if journal is None else _looked_at(paths, journal, finder.names(text), drawings)
    before = len(paths) - len(left) - len(broken)

    for path, reason in broken.items():
        log.warning("left out %s: %s", path, reason)

    def skip(path: str, reason: str) -> None:
        log.warning("left out %s: %s", path, reason)
        broken[path] = reason
        if journal is not None:
            journal.skip(path, reason)

    with bar("detecting") as advance:
        done = before
        for found in finder.find(left, [text], options.batch, skip) if left else ():
            if found.path in drawings:
                _draw(found, drawings[found.path])
            if journal is None:
                _tell(found)
            else:
                journal.add(found)
            done += 1
            advance(done + len(broken), len(paths))
    return len(broken)


def _looked_at(
    paths: Sequence[Path], journal: Journal, names: Sequence[str], drawings: dict[str, Path]
) -> dict[str, str]:
    """Of pictures that a stopped command has looked at, draws those that have no drawing; tells which could not be
    read, and why."""
    from synoptic.detection.detections import Detections

    broken = {}
    for path in paths:
        entry = journal.entry(path)
        if entry is not None and "error" in entry:
            broken[str(path)] = entry["error"]
        elif entry is not None and str(path) in drawings and not drawings[str(path)].exists():
            own = dict.fromkeys(each["name"] for each in entry["objects"])
            _draw(Detections.from_dict(entry, names or tuple(own)), drawings[str(path)])
    return broken


def _write(
    out: Path, form: Any, paths: Sequence[Path], names: Sequence[str], facts: dict[str, Any], journal: Journal
) -> None:
    """What the journal holds of all pictures, as it was asked for."""
    from synoptic.apps.detection_files import write
    from synoptic.detection.detections import Detections

    every_entry = (journal.entry(path) for path in paths)
    entries = [entry for entry in every_entry if entry is not None and "error" not in entry]
    phrases = dict.fromkeys(each["name"] for entry in entries for each in entry["objects"])
    every = names or tuple(phrases)
    write(out, form, paths, [Detections.from_dict(entry, every) for entry in entries], every, facts)
    journal.remove()


def _draw(found: Detections, place: Path) -> None:
    """Draws what was found, smaller where no JPEG is as large."""
    from synoptic.files import write_atomically

    picture = found.draw()
    picture.thumbnail((_MOST, _MOST))
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, lambda file: picture.save(file, "JPEG", quality=92))


def _tell(found: Detections) -> None:
    """A line an object, and one for a picture in which there is none."""
    for name, score, box in zip(found.found, found.scores, found.boxes, strict=True):
        print(f"{found.path}\t{name}\t{score:.3f}\t{' '.join(f'{side:.0f}' for side in box)}")
    if not len(found):
        print(f"{found.path}\tnothing found")
