"""A page about what a detector finds: scores, categories, precision over recall, and its worst mistakes as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from synoptic.apps import report_page
from synoptic.apps.figures import Line, curves, data_uri
from synoptic.apps.report_page import Cell, Curve, Curves, Gallery, Page, Picture, Section, Table
from synoptic.apps.report_parts import NOTHING, percent
from synoptic.data.pictures import PictureError, read_picture
from synoptic.detection.detections import Detections
from synoptic.detection.drawing import draw_boxes
from synoptic.evaluation.detection import OVERLAPS, CocoDetection, Judged, Mistake, read_annotated
from synoptic.evaluation.protocols import Progress
from synoptic.predict import VisionModel

MISTAKES, ACROSS = 12, 4  # pictures, and how many stand beside each other
LONGEST = 360  # pixels of a picture on the page
CURVES = ((0, "half of their union shared"), (5, "three quarters"), (9, "nearly all (0.95)"))
THERE = (255, 255, 255)  # frames of what a picture shows

_TOLD = {
    "ap": "average precision, mean over ten overlaps",
    "ap_50": "at an overlap of half",
    "ap_75": "at three quarters",
    "ap_small": "of small objects (below 32 x 32 pixels)",
    "ap_medium": "of medium ones",
    "ap_large": "of large ones (above 96 x 96)",
    "ar_100": "recall with a hundred boxes a picture, mean over ten overlaps",
}


def detection_report(
    model: VisionModel,
    data: str,
    images: Path | None,
    page: Path,
    progress: Progress | None = None,
    names_per_prompt: int | None = None,
) -> dict[str, float]:
    """Judges a detector and writes a page about it.

    Args:
        model: that finds objects.
        data, images: see `evaluation.detection.read_annotated`.
        page: the HTML file.
        progress: told how many of how many pictures are done.
        names_per_prompt: see `DetectOptions`.
    Returns:
        The scores by name.
    Raises:
        ValueError: see `read_annotated` and `CocoDetection.run`.
    """
    annotated = read_annotated(Path(data).expanduser(), images)
    judged = CocoDetection(annotated, progress, names_per_prompt).judge(model)
    report_page.write(_page(model.name, data, judged), page)
    return dict(judged.scores())


def _page(name: str, data: str, judged: Judged) -> Page:
    scores = dict(judged.scores())
    pictures, objects = len(judged.annotated.paths), sum(judged.counts())
    lead = f"Average precision {percent(scores['ap'])} on {pictures} pictures of {data} with {objects} objects."
    if judged.unread:
        lead += f" {judged.unread} of the pictures could not be read, and all of their objects count as missed."
    sections = [
        Section("Scores", [], [_scores(scores)]),
        Section("Precision over recall", [_ABOUT_CURVES], [_curves(judged)]),
        Section("Worst mistakes", [_ABOUT_MISTAKES], [_mistakes(judged.mistakes(MISTAKES))]),
        Section("Categories", [], [_categories(judged)]),
    ]
    return Page("synoptic report", name, [lead], sections, "Written by “synoptic evaluate on=detection”.")


_ABOUT_CURVES = (
    "The surest boxes first: how many of them are right, against how many of the objects are found by then; the mean "
    "over categories, for three overlaps from which a box counts as right."
)
_ABOUT_MISTAKES = (
    "The surest boxes that are wrong, one a picture: in colour what was found, with its score, in white what the "
    "picture shows."
)


def _scores(scores: dict[str, float]) -> Table:
    rows: list[Sequence[Cell | str]] = [
        [told, Cell(percent(scores[name]) if name in scores else NOTHING)] for name, told in _TOLD.items()
    ]
    return Table(["COCO", ""], rows)


def _curves(judged: Judged) -> Curves:
    lines = []
    for tone, (overlap, told) in enumerate(CURVES):
        recall, precision = judged.curve(overlap)
        lines.append(Line(told, (100 * recall).tolist(), precision.tolist(), tone))
    return Curves([Curve("precision over recall", curves(lines, "recall in percent", percent=True))])


def _categories(judged: Judged) -> Table:
    """Those with objects, the best first."""
    columns = (judged.annotated.names, judged.counts(), judged.of_categories(), judged.of_categories(0))
    found = [row for row in zip(*columns, strict=True) if row[2] is not None]
    found.sort(key=lambda row: -(row[2] or 0))
    rows: list[Sequence[Cell | str]] = [
        [name, Cell(str(count)), Cell(percent(mean or 0)), Cell(percent(half or 0))]
        for name, count, mean, half in found
    ]
    note = f"{len(OVERLAPS)} overlaps from {OVERLAPS[0]} to {OVERLAPS[-1]}; categories without objects are left out."
    return Table(["category", "objects", "average precision", "at an overlap of half"], rows, note)


def _mistakes(mistakes: Sequence[Mistake]) -> Gallery:
    pictures = [_shown(each) for each in mistakes]
    rows = [pictures[start : start + ACROSS] for start in range(0, len(pictures), ACROSS)]
    return Gallery([""] * min(ACROSS, max(len(pictures), 1)), rows, note="" if pictures else "There are none.")


def _shown(mistake: Mistake) -> Picture:
    caption = f"{mistake.name} {mistake.score:.2f}: {mistake.kind}"
    try:
        pixels = read_picture(mistake.path)
    except PictureError:
        return Picture(data_uri(np.full((8, 8, 3), 200, np.uint8)), mistake.path.name, caption, False)
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    for _, box in mistake.there:
        pen.rectangle(tuple(box.tolist()), outline=THERE, width=max(1, max(image.size) // 320))
    one = Detections(
        mistake.box[None].astype(np.float32),
        np.array([mistake.score], np.float32),
        np.zeros(1, np.int64),
        (mistake.name,),
        (image.height, image.width),
    )
    return Picture(data_uri(draw_boxes(image, one), LONGEST), mistake.path.name, caption, False)
