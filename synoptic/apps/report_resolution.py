"""What a report shows of a student at other resolutions than its own, and of its patches under words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from synoptic.apps.figures import class_colours, curves, paint_named
from synoptic.apps.report_page import Block, Curve, Gallery, Picture, Section
from synoptic.apps.report_page import Curves as CurveBlock
from synoptic.apps.report_parts import SIDE, Run, percent, shown, squares
from synoptic.apps.resolutions import Curves, Rising, agreement_plots, at_sizes, curves_of, ticks_of
from synoptic.data.bands import as_rgb
from synoptic.data.sources import Source
from synoptic.evaluation.dense import IGNORE, Confusion, read_masks, segment
from synoptic.evaluation.features import show
from synoptic.evaluation.mask_classes import mask_classes
from synoptic.evaluation.protocols import zeroshot_segmentation
from synoptic.evaluation.sizes import rising_sizes
from synoptic.evaluation.zeroshot_segmentation import ZeroShotSegmentation, similarities, without
from synoptic.predict import VisionModel

PICTURES, NAMED = 2, 5  # whose patches are shown at rising sizes; and whose patches are named by words
JUDGED = 100  # pictures that words are judged by
FACTORS = (1 / 2, 1, 2, 4)  # of a model's own size, at which its patches are shown
_OTHERS = ("config.json", "environment.json")  # of a run folder, which are no scores


def read_curves(run: Run) -> Curves:
    """The curves over sizes in the scores that `synoptic evaluate` wrote into a run folder, or a folder in it.

    Of several files about the same, the newest holds.
    """
    files = [path for pattern in ("*.json", "*/*.json") for path in run.folder.glob(pattern)]
    found: Curves = {}
    for path in sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name)):
        try:
            scores = json.loads(path.read_text(encoding="utf-8")) if path.name not in _OTHERS else None
        except (OSError, ValueError):
            continue  # whatever else lies there
        for kind, lines in curves_of(scores if isinstance(scores, dict) else {}).items():
            found.setdefault(kind, {}).update(lines)
    return found


def resolution_sections(
    runs: Sequence[Run],
    models: Mapping[str, VisionModel],
    teachers: Mapping[str, Mapping[str, VisionModel]],
    validation: Source | None,
) -> list[Section]:
    """Curves of all runs that have some, and the patches of each student at rising sizes.

    Args:
        runs: all of them.
        models: those of the finished runs, by the runs' names.
        teachers: of each run, as far as they are there.
        validation: pictures; None shows none.
    """
    blocks: list[Block] = []
    known = {run.name: found for run in runs if (found := read_curves(run))}
    if known:
        plots = agreement_plots(known)
        ticks = ticks_of(plots)
        drawn = [curves(plot.lines, "size of the picture in pixels", marks=plot.marks, ticks=ticks) for plot in plots]
        blocks.append(CurveBlock([Curve(plot.title, svg) for plot, svg in zip(plots, drawn, strict=True)]))
    text = [_CURVES] if known else []
    for name, model in models.items():
        if validation is not None and model.adaptors:
            blocks.append(_patches(name, model, teachers.get(name, {}), validation))
            text += [_PATCHES] if _PATCHES not in text else []
    return [Section("At other resolutions", text, blocks)] if blocks else []


_CURVES = (
    "How alike student and teacher answer when the student sees the same pictures at other sizes, each teacher at its "
    "own; a sudden fall between two sizes is a change of mode. What patches say of their place alone is best at 0."
)
_PATCHES = (
    "Patches as colours at rising sizes of the picture: first a teacher, then the student in its space in the same "
    "colours, last the student's own space. Where a line keeps its colours from left to right, size changes nothing."
)


def _patches(name: str, model: VisionModel, teachers: Mapping[str, VisionModel], validation: Source) -> Gallery:
    chosen = np.linspace(0, len(validation) - 1, min(PICTURES, len(validation))).round().astype(int).tolist()
    pictures = squares(validation, chosen, model.preprocess.bands, longest=None)
    sizes = rising_sizes(model, factors=FACTORS)
    found = at_sizes(pictures, Rising(model, teachers, sizes), SIDE)
    blank = Image.new("RGB", (SIDE, SIDE), "white")
    rows = [
        [
            shown(picture, "picture", title),
            *(shown(line[size][number] if size in line else blank, f"{title}, {size} pixels") for size in sizes),
        ]
        for number, picture in enumerate(pictures)
        for title, line in found.items()
    ]
    return Gallery([name, *(f"{size} px" for size in sizes)], rows, [1])


def named_sections(name: str, model: VisionModel, validation: Source) -> list[Section]:
    """Which class each pixel is by words alone; nothing of a model or of pictures that do not allow it."""
    names = mask_classes(validation) if validation.masks is not None else ()
    if not names or not model.speaks():
        return []
    judged = validation.sample(JUDGED)
    evaluator = zeroshot_segmentation(judged, model.text_space)
    every, foreground = evaluator.judge(model, evaluator.classes(model))
    colours = class_colours(len(names))
    swatches = [f"rgb({', '.join(str(int(part)) for part in colour)})" for colour in colours]
    head = ["picture", "truth", "by words", *(["beside the background"] if evaluator.background is not None else [])]
    gallery = Gallery(head, _named(evaluator, model, colours), [2], list(zip(swatches, names, strict=True)))
    return [Section(f"Named by words alone: {name}", [_told(every, foreground, len(judged))], [gallery])]


def _told(every: Confusion, foreground: Confusion | None, count: int) -> str:
    told = f"Every pixel of {count} pictures as the class whose words its patches are likest to: mean IoU "
    told += percent(every.miou)
    if foreground is None:
        return f"{told}."
    return f"{told}, and {percent(foreground.miou)} among the classes beside the background, which no word says well."


def _named(evaluator: ZeroShotSegmentation, model: VisionModel, colours: np.ndarray) -> list[list[Picture]]:
    """Some pictures under the colours of their classes: the truth, by words, and by words beside the background."""
    source, classes = evaluator.source, evaluator.classes(model)
    places = np.linspace(0, len(source) - 1, min(NAMED, len(source))).round().astype(int).tolist()
    size, rows = (SIDE, SIDE), []
    for batch in show(model.preprocess, source, places, mode="squash"):
        maps = similarities(model.encode_patches(batch.images, evaluator.adaptor), classes)
        for image, mask, each in zip(batch.images, read_masks(source, batch), maps, strict=True):
            picture = _picture(image, size)
            truth = _resized(mask, size)
            said = [truth, segment(each, size)]
            if evaluator.background is not None:
                beside = segment(without(each, evaluator.background), size)
                said.append(np.where(truth == evaluator.background, IGNORE, beside))
            painted = [shown(paint_named(picture, classes, colours), "classes of its pixels") for classes in said]
            rows.append([shown(picture, "picture"), *painted])
    return rows


def _picture(image: Tensor, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 of a picture as the model sees it."""
    bands = image.permute(1, 2, 0).numpy()
    rgb = (bands * 255).round().astype(np.uint8) if bands.shape[2] == 3 and bands.max() <= 1 else as_rgb(bands)
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))


def _resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
