"""What a model and its teachers see in pictures at rising sizes: patches as colours, agreement, and artefacts.

The verb `figures` draws them, with `sizes=` or `teachers=`; the report has them on its page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from synoptic.apps.figures import Line, Mark, PatchColours, Plot, Scale, proper_name, save_plots
from synoptic.apps.report_parts import squares
from synoptic.apps.sheets import Legend, Panel, Strip, sheet, worded
from synoptic.data.bands import as_rgb
from synoptic.data.inputs import at_once, read_batches
from synoptic.data.sources import Source
from synoptic.evaluation.agreement import Agreement, check_names, taught
from synoptic.evaluation.artefacts import MeanMap, PositionArtefacts
from synoptic.evaluation.sizes import rising_sizes
from synoptic.files import write_atomically
from synoptic.methods.teachers import named_teachers, open_teachers
from synoptic.predict import VisionModel
from synoptic.types import Features, present
from synoptic.weights.folder import model_hash
from synoptic.weights.options import TeacherFile

PICTURES = 3  # whose patches are shown
JUDGED = 200  # pictures that curves and mean maps are taken over, evenly chosen from more
PANEL = 112  # pixels
SHEET, CURVES, MAPS = "resolutions.png", "agreement.png", "artefacts.png"

# What of each score of a curve is drawn: its kind, whose it is, and the size.
_CURVE = re.compile(r"(?:agreement_(\w+)_(cosine|error|summary)|(artefacts)_unbiased(?:_(\w+))?)@(\d+)")
TITLES = {
    "cosine": "patches and the teacher's: cosine",
    "error": "their error, in the teacher's variance",
    "summary": "summaries and the teacher's: cosine",
    "artefacts": "variance of patches that is their place's",
}
_TONES = (0, 1, 2, 5, 6, 7, 3, 4)  # greys last
_MEAN = Mark(1.0, "answering the mean")

Shown = dict[str, dict[int, list[np.ndarray]]]  # title -> size -> a picture (side, side, 3) uint8 for each picture
Curves = dict[str, dict[str, list[tuple[int, float]]]]  # kind -> name -> (size, value)


@dataclass(frozen=True)
class Rising:
    """A model at rising sizes, beside its teachers.

    Attributes:
        vision: the model.
        teachers: by the names of its adaptors.
        sizes: sides in pixels.
    """

    vision: VisionModel
    teachers: Mapping[str, VisionModel]
    sizes: tuple[int, ...]

    @classmethod
    def of(
        cls,
        vision: VisionModel,
        teachers: Mapping[str, str | VisionModel] | str | None,
        sizes: Sequence[int] | None,
        told: Mapping[str, TeacherFile],
    ) -> Rising | None:
        """What is to be drawn; None where neither teachers nor sizes are given.

        Raises:
            ValueError: a name is no adaptor of the model, there is no such teacher, or patches do not tile a size.
        """
        if teachers is None and told:
            raise ValueError(f"teacher.{next(iter(told))} decides nothing without teachers=; leave it out")
        if teachers is None and sizes is None:
            return None
        by_name = named_teachers(teachers) if isinstance(teachers, str) else dict(teachers or {})
        if teachers is not None:
            check_names(by_name, vision.adaptors)
        rising = rising_sizes(vision, sizes)
        loaded = open_teachers(by_name, told)
        _check(vision, loaded)  # before anything is drawn
        return cls(vision, loaded, rising)

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the figures."""
        hashes = {name: model_hash(each.model, each.preprocess) for name, each in self.teachers.items()}
        return {"sizes": list(self.sizes), "teachers": hashes}

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the figures."""
        return (SHEET, CURVES, MAPS) if self.teachers else (SHEET, MAPS)

    def draw(self, out: Path, paths: Sequence[Path]) -> None:
        """Writes those that are not there, of pictures that can be read."""
        source = Source(Path(paths[0]).parent, paths)
        source.allow_unreadable(1.0)  # they are told of where the sheets are drawn
        judged = source.sample(JUDGED)
        name, count = self.vision.name, f"{len(judged)} pictures"
        if not (out / SHEET).is_file():
            chosen = [place * len(source) // min(PICTURES, len(source)) for place in range(min(PICTURES, len(source)))]
            pictures = squares(source, chosen, self.vision.preprocess.bands, longest=None)
            _save(out / SHEET, resolution_sheet(name, pictures, at_sizes(pictures, self, PANEL)))
        if self.teachers and not (out / CURVES).is_file():
            scores = dict(Agreement(judged, self.teachers, self.sizes).run(self.vision))
            plots = agreement_plots({name: curves_of(scores)})
            save_plots(out / CURVES, f"{name} and its teachers, {count}", plots, self.sizes)
        if not (out / MAPS).is_file():
            spaces = (None, *self.vision.adaptors)
            maps = {space: PositionArtefacts(judged, space).judge(self.vision, self.sizes) for space in spaces}
            _save(out / MAPS, artefact_sheet(name, count, maps))


def at_sizes(pictures: Sequence[np.ndarray], rising: Rising, side: int) -> Shown:
    """Pictures as patches at rising sizes: for each adaptor those of its teacher, where there is one, and of the
    student in its space, in one set of colours; last the model's own space.

    Colours are found at the size at which the teacher, or the model, was trained. A teacher is shown pictures of the
    nearest sizes that its patches tile; one that takes its own size alone, that.

    Args:
        pictures: (S, S, C), as `squares` gives them.
        rising: the model, its teachers and the sizes.
        side: of the results in pixels.
    """
    vision, sizes = rising.vision, rising.sizes
    answers = {size: _seen(vision, vision, pictures, size) for size in dict.fromkeys((*sizes, vision.preprocess.size))}
    shown: Shown = {}
    for name in vision.adaptors:
        student = {size: answer.adaptors[name] for size, answer in answers.items()}
        title, model = proper_name(name), rising.teachers.get(name)
        reference = student[vision.preprocess.size]
        if model is not None:
            asked = partial(taught, name, model, wanted=reference)
            teacher = {size: _seen(model, asked, pictures, taken) for size, taken in _taken(model, sizes).items()}
            reference = _seen(model, asked, pictures, model.preprocess.size)
            shown[f"{title} teacher"] = _painted(teacher, reference, side)
        shown[f"student as {title}"] = _painted({size: student[size] for size in sizes}, reference, side)
    own = _painted({size: answers[size] for size in sizes}, answers[vision.preprocess.size], side)
    return {**shown, "its own space" if vision.adaptors else vision.name: own}


def _check(vision: VisionModel, teachers: Mapping[str, VisionModel]) -> None:
    """Refuses teachers that answer in other channels than the student's adaptors, by a black picture."""
    answer = vision(_black(vision)) if teachers else None
    for name, teacher in teachers.items():
        taught(name, teacher, _black(teacher), present(answer).adaptors[name])


def _black(model: VisionModel) -> Tensor:
    return torch.zeros(1, model.channels, model.preprocess.size, model.preprocess.size)


def _taken(model: VisionModel, sizes: Sequence[int]) -> dict[int, int]:
    """At which size a teacher is shown the pictures that the student sees at each size."""
    own = model.preprocess.size
    if not model.any_size:
        return {min(sizes, key=lambda size: abs(size - own)): own}
    return {size: max(round(size / model.stride), 1) * model.stride for size in sizes}


def _seen(
    model: VisionModel, asked: Callable[[Tensor], Features], pictures: Sequence[np.ndarray], size: int
) -> Features:
    """What a model is `asked` of square pictures at a size: patches without summaries, on the CPU."""
    way = replace(model.preprocess, size=size, mode="crop", share=1.0, fill=())
    answers = [asked(batch.images) for batch in read_batches(list(pictures), way, at_once(size))]
    adaptors = {name: _joined([answer.adaptors[name] for answer in answers]) for name in answers[0].adaptors}
    return replace(_joined(answers), adaptors=adaptors)


def _joined(answers: Sequence[Features]) -> Features:
    """The patches of several batches as one."""
    return Features(torch.cat([answer.patches.float().cpu() for answer in answers]), answers[0].grid)


def _painted(answers: Mapping[int, Features], reference: Features, side: int) -> dict[int, list[np.ndarray]]:
    colours = PatchColours.of(reference.patches.numpy())
    return {
        size: list(colours.paint(answer.patches.numpy(), answer.grid, (side, side))) for size, answer in answers.items()
    }


def resolution_sheet(name: str, pictures: Sequence[np.ndarray], shown: Shown) -> Image.Image:
    """Patches at rising sizes: a line a space, from small to large, picture after picture."""
    sizes = list(next(reversed(shown.values())))  # the model's own space has all of them
    blank = np.full((PANEL, PANEL, 3), 255, np.uint8)
    strips = []
    for number, picture in enumerate(pictures):
        rgb = picture if picture.dtype == np.uint8 else as_rgb(picture)
        for line, (title, columns) in enumerate(shown.items()):
            panels = [Panel(f"{size} px", columns[size][number] if size in columns else blank) for size in sizes]
            words = worded("\n".join(title.rsplit(" ", 1)), PANEL)
            strips.append(Strip([Panel("picture", blank if line else rgb), Panel("", words), *panels]))
    note = "patches as colours, at rising sizes of the picture; a teacher and the student in its space share theirs"
    return sheet(name, note, strips, PANEL, gap=6)


def artefact_sheet(name: str, count: str, maps: Mapping[str | None, Mapping[int, MeanMap]]) -> Image.Image:
    """How far the mean patch of each place lies from that of all places, on one scale: a line a space."""
    every = np.concatenate([each.deviation.numpy().ravel() for line in maps.values() for each in line.values()])
    scale = Scale(0.0, max(float(np.quantile(every, 0.99)), 1e-3))
    strips = []
    for space, line in maps.items():
        panels = []
        for size, each in line.items():
            (painted,) = scale.paint(each.deviation.numpy()[None], (PANEL, PANEL))
            panels.append(Panel(f"{size} px: {100 * each.unbiased:.1f} %", painted))
        strips.append(Strip(panels, "its own space" if space is None else f"as {proper_name(space)}"))
    before = "the mean patch of a place, off the mean of all, in units of the patches' spread: 0"
    note = f"{count}; percentages are the share of the patches' variance that their place alone decides, without chance"
    legend = Legend(before, scale.bar(120, 10), f"{scale.high:.2f}")
    return sheet(f"{name}: what is said of places", note, strips, PANEL, gap=6, legend=legend)


def curves_of(scores: Mapping[str, Any]) -> Curves:
    """The curves over sizes among the scores of an evaluation, each by rising size.

    Args:
        scores: by name, as `synoptic evaluate` writes them, facts beside them.
    """
    found: Curves = {}
    for key, value in scores.items():
        match = _CURVE.fullmatch(key)
        if match and isinstance(value, int | float):
            teacher, kind, artefacts, space, size = match.groups()
            found.setdefault(kind or artefacts, {}).setdefault(teacher or space or "", []).append((int(size), value))
    return {kind: {name: sorted(points) for name, points in lines.items()} for kind, lines in found.items()}


def agreement_plots(models: Mapping[str, Curves]) -> list[Plot]:
    """Plots of how one model, or several side by side, agree with their teachers, and of artefacts.

    Args:
        models: name -> its curves; the name stands in the legend where there are several.
    """
    kinds = [kind for kind in TITLES if any(kind in curves for curves in models.values())]
    tones: dict[str, int] = {}
    plots = []
    for kind in kinds:
        lines = list(_plotted(models, kind, tones))
        plots.append(Plot(TITLES[kind], lines, (_MEAN,) if kind == "error" and _reaches(lines) else ()))
    return plots


def _plotted(models: Mapping[str, Curves], kind: str, tones: dict[str, int]) -> Iterator[Line]:
    """A line for each model and teacher, in a colour of its own; every other model is dashed."""
    for place, (model, curves) in enumerate(models.items()):
        for name, points in curves.get(kind, {}).items():
            space = proper_name(name) if name else "its own space"
            label = f"{model}: {space}" if len(models) > 1 else space
            tone = tones.setdefault(label, _TONES[len(tones) % len(_TONES)])
            sizes, values = zip(*points, strict=True)
            yield Line(label, sizes, values, tone, dashed=place % 2 == 1)


def _reaches(lines: Sequence[Line]) -> bool:
    """Whether an error comes near that of answering the mean, so that its mark belongs into the plot."""
    return max(max(line.y) for line in lines) > 0.8


def ticks_of(plots: Sequence[Plot]) -> list[int]:
    """All sizes of some plots, rising."""
    return sorted({int(size) for plot in plots for line in plot.lines for size in line.x})


def _save(path: Path, image: Image.Image) -> None:
    write_atomically(path, lambda file: image.save(file, "PNG"))
