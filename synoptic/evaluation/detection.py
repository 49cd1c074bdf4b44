"""Average precision of detections, as COCO measures it.

Source: Lin et al. 2014 (arXiv 1405.0312) and cocoeval.py of pycocotools, which counts here.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synoptic.types import Detects

log = logging.getLogger(__name__)

LIMIT = 300  # objects that a picture is answered with, of which COCO counts the surest hundred
SCORES = (  # in the order of COCOeval.stats
    *("ap", "ap_50", "ap_75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)


@dataclass(frozen=True)
class Annotated:
    """Pictures with boxes, of COCO's form.

    Attributes:
        content: of the JSON file.
        paths: of the pictures, in its order.
        names: of the categories, in its order.
    """

    content: dict[str, Any]
    paths: tuple[Path, ...]
    names: tuple[str, ...]


def read_annotated(file: Path, images: Path | None = None) -> Annotated:
    """Pictures with boxes from a JSON file of COCO's form.

    Args:
        file: as `instances_val2017.json` is.
        images: the folder that file names are relative to; None takes `images/` beside the file.
    Raises:
        ValueError: it is no such file, names a picture or category twice, or boxes of pictures or categories that it
            does not name; or none of its pictures is there.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        pictures = [(each["id"], str(each["file_name"])) for each in content["images"]]
        categories = [(each["id"], str(each["name"])) for each in content["categories"]]
        boxes = [(each["image_id"], each["category_id"], len(each["bbox"])) for each in content["annotations"]]
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: is no JSON of COCO's form with images, categories and boxes ({error!r})") from None
    for what, rows in (("picture", pictures), ("category", categories)):
        known = [each for each, _ in rows]
        if len(set(known)) < len(known):
            raise ValueError(f"{file}: has two of one {what}'s id")
    known_pictures, known_categories = dict(pictures), dict(categories)
    for picture, category, sides in boxes:
        if picture not in known_pictures or category not in known_categories or sides != 4:
            raise ValueError(
                f"{file}: a box is of the picture {picture!r} and category {category!r}, which it does not name"
            )
    if len(set(known_categories.values())) < len(categories) or not categories:
        raise ValueError(f"{file}: its categories have no different names, by which they are looked for")
    root = images or file.parent / "images"
    paths = tuple(root / name for _, name in pictures)
    if not any(path.is_file() for path in paths):
        raise ValueError(
            f"{root}: holds none of the {len(paths)} pictures that {file} names; say where they are, images=DIR"
        )
    return Annotated(content, paths, tuple(name for _, name in categories))


class CocoDetection:
    """Judges what a detector finds of all categories at once; a picture that cannot be read counts as not there."""

    def __init__(self, annotated: Annotated):
        self.annotated = annotated

    def run(self, model: Detects) -> Iterator[tuple[str, float]]:
        """COCO's twelve scores, and the average precision of every category as `ap/NAME`, where it has boxes.

        Raises:
            ValueError: the model finds no objects.
        """
        counted = self.counted(self.results(model))
        yield from ((name, float(score)) for name, score in zip(SCORES, counted.stats, strict=True) if score >= 0)
        for name, precision in zip(self.annotated.names, _of_categories(counted), strict=True):
            if precision is not None:
                yield f"ap/{name}", precision

    def results(self, model: Detects) -> list[dict[str, Any]]:
        """What the model finds, in COCO's form."""
        content = self.annotated.content
        ids = [each["id"] for each in content["categories"]]
        found: list[dict[str, Any]] = []
        answers = model.objects(self.annotated.paths, self.annotated.names, LIMIT)
        for picture, answer in zip(content["images"], answers, strict=True):
            if answer is None:
                log.warning("left out %s: cannot be read", picture["file_name"])
                continue
            for (left, top, right, bottom), score, label in zip(
                answer.boxes, answer.scores, answer.labels, strict=True
            ):
                box = [float(left), float(top), float(right - left), float(bottom - top)]
                found.append({"image_id": picture["id"], "category_id": ids[label], "bbox": box, "score": float(score)})
        return found

    def counted(self, results: Sequence[dict[str, Any]]) -> Any:
        """COCOeval after it has counted; its `stats` are COCO's twelve scores, -1 where there is nothing to find."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        with redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = {**self.annotated.content, "annotations": _whole(self.annotated.content["annotations"])}
            truth.createIndex()
            found = COCO()
            found.dataset = {**truth.dataset, "annotations": _whole(results)}
            found.createIndex()
            counting = COCOeval(truth, found, "bbox")
            counting.params.catIds = [each["id"] for each in self.annotated.content["categories"]]
            counting.evaluate()
            counting.accumulate()
            counting.summarize()
        return counting


def _whole(boxes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Boxes with all that COCOeval reads of them, counted from 1."""
    usual = ({"area": each["bbox"][2] * each["bbox"][3], "iscrowd": 0} for each in boxes)
    return [{**least, **each, "id": number} for number, (least, each) in enumerate(zip(usual, boxes, strict=True), 1)]


def _of_categories(counted: Any) -> list[float | None]:
    """The average precision of each category over all ten overlaps; None of those without boxes."""
    precision = counted.eval["precision"][:, :, :, 0, -1]  # (overlaps, recalls, categories), of any size, 100 a picture
    means = [precision[:, :, place] for place in range(precision.shape[2])]
    return [float(np.mean(each)) if (each > -1).all() else None for each in means]
