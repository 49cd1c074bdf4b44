"""Average precision of detections, as COCO measures it.

Source: Lin et al. 2014 (arXiv 1405.0312) and cocoeval.py of pycocotools, which counts here.
"""

from __future__ import annotations

import io
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synoptic.types import Detects

log = logging.getLogger(__name__)

OVERLAPS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)  # at which boxes count as found, each in turn
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
        boxes = [(each["image_id"], each["category_id"], each["bbox"]) for each in content["annotations"]]
        known_pictures, known_categories = dict(pictures), dict(categories)  # whose ids may be no keys
        strangers = [box for box in boxes if box[0] not in known_pictures or box[1] not in known_categories]
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: is no JSON of COCO's form with images, categories and boxes ({error!r})") from None
    for what, rows in (("picture", pictures), ("category", categories)):
        known = [each for each, _ in rows]
        if len(set(known)) < len(known):
            raise ValueError(f"{file}: has two of one {what}'s id")
    for picture, category, _ in strangers:
        raise ValueError(
            f"{file}: a box is of the picture {picture!r} and category {category!r}, which it does not name"
        )
    for picture, _, sides in boxes:
        if not _is_box(sides):
            raise ValueError(f"{file}: of the picture {picture!r} bbox={sides!r} is no left, top, width and height")
    if all(each.get("iscrowd") for each in content["annotations"]):
        raise ValueError(f"{file}: has no object to be found")
    if len(set(known_categories.values())) < len(categories) or not categories:
        raise ValueError(f"{file}: its categories have no different names, by which they are looked for")
    root = images or file.parent / "images"
    paths = tuple(root / name for _, name in pictures)
    if not any(path.is_file() for path in paths):
        raise ValueError(
            f"{root}: holds none of the {len(paths)} pictures that {file} names; say where they are, images=DIR"
        )
    return Annotated(content, paths, tuple(name for _, name in categories))


def _is_box(sides: Any) -> bool:
    """Whether it is left, top, width and height."""
    if not isinstance(sides, list) or len(sides) != 4 or not all(isinstance(side, int | float) for side in sides):
        return False
    return all(map(math.isfinite, sides)) and min(sides[2:]) >= 0


@dataclass(frozen=True)
class Mistake:
    """A surely found object that is none, or is found twice.

    Attributes:
        path: of the picture.
        box: (4,) left, top, right, bottom.
        name: of the category that it was taken for.
        score: how sure it was.
        kind: what is wrong.
        there: what the picture shows, as (name, (4,) box) of each annotated object.
    """

    path: Path
    box: np.ndarray
    name: str
    score: float
    kind: str
    there: tuple[tuple[str, np.ndarray], ...]


@dataclass(frozen=True)
class Judged:
    """What a detector found, and what of it is right.

    Attributes:
        annotated: what was to be found.
        results: what was found, in COCO's form.
        counting: COCOeval, after it has counted.
        unread: pictures that could not be read, of which all objects count as missed.
    """

    annotated: Annotated
    results: Sequence[dict[str, Any]]
    counting: Any
    unread: int = 0

    def scores(self) -> Iterator[tuple[str, float]]:
        """COCO's twelve scores, and the average precision of every category as `ap/NAME`, where it has boxes; before
        them as `unread` how many pictures could not be read, if any."""
        if self.unread:
            yield "unread", float(self.unread)
        stats = zip(SCORES, self.counting.stats, strict=True)
        yield from ((name, float(score)) for name, score in stats if score >= 0)
        for name, precision in zip(self.annotated.names, self.of_categories(), strict=True):
            if precision is not None:
                yield f"ap/{name}", precision

    def of_categories(self, overlap: int | None = None) -> list[float | None]:
        """The average precision of each category, None of those without boxes.

        Args:
            overlap: place in `OVERLAPS`; None takes the mean over all.
        """
        precision = self.counting.eval["precision"][:, :, :, 0, -1]  # (overlaps, recalls, categories)
        chosen = precision if overlap is None else precision[overlap : overlap + 1]
        means = [chosen[:, :, place] for place in range(precision.shape[2])]
        return [float(np.mean(each)) if (each > -1).all() else None for each in means]

    def curve(self, overlap: int, category: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Recall and precision (101,) at one of `OVERLAPS`, of a category, or the mean of all that have boxes."""
        precision = self.counting.eval["precision"][overlap, :, :, 0, -1]
        there = precision[:, (precision > -1).all(0)] if category is None else precision[:, [category]]
        return self.counting.params.recThrs, there.mean(1)

    def counts(self) -> list[int]:
        """How many objects of each category are to be found, crowds aside."""
        annotations = self.annotated.content["annotations"]
        counts = Counter(each["category_id"] for each in annotations if not each.get("iscrowd"))
        return [counts[each["id"]] for each in self.annotated.content["categories"]]

    def mistakes(self, count: int) -> list[Mistake]:
        """The surest of what is wrong at an overlap of half, one a picture."""
        names = {each["id"]: each["name"] for each in self.annotated.content["categories"]}
        found = {each["id"]: each for each in self.counting.cocoDt.dataset["annotations"]}
        wrong: dict[int, tuple[float, int]] = {}  # picture -> score and number of the surest
        everything = self.counting.params.areaRng[0]
        for each in self.counting.evalImgs:
            if each is None or each["aRng"] != everything:
                continue
            rows = zip(each["dtIds"], each["dtScores"], each["dtMatches"][0], each["dtIgnore"][0], strict=True)
            for number, score, match, ignored in rows:
                if not match and not ignored and score > wrong.get(each["image_id"], (0.0, 0))[0]:
                    wrong[each["image_id"]] = (score, number)
        paths = dict(zip((each["id"] for each in self.annotated.content["images"]), self.annotated.paths, strict=True))
        surest = sorted(wrong.items(), key=lambda item: -item[1][0])[:count]
        return [self._mistake(paths[picture], found[number], names) for picture, (_, number) in surest]

    def _mistake(self, path: Path, result: dict[str, Any], names: dict[Any, str]) -> Mistake:
        near = [each for each in self.annotated.content["annotations"] if each["image_id"] == result["image_id"]]
        there = tuple((names[each["category_id"]], _corners(each["bbox"])) for each in near)
        box, name = _corners(result["bbox"]), names[result["category_id"]]
        overlaps = [(_overlap(box, other), label) for label, other in there]
        best = max(overlaps, default=(0.0, ""))
        own = max((share for share, label in overlaps if label == name), default=0.0)
        if own >= 0.5:
            kind = "found twice"
        elif best[0] >= 0.5:
            kind = f"is {best[1]}"
        else:
            kind = "badly placed" if own >= 0.1 else "nothing there"
        return Mistake(path, box, name, float(result["score"]), kind, there)


class CocoDetection:
    """Judges what a detector finds of all categories at once; a picture that cannot be read counts as not answered.

    Args:
        annotated: what is to be found.
        progress: told how many of how many pictures are done.
        names_per_prompt: see `DetectOptions`.
    """

    def __init__(
        self,
        annotated: Annotated,
        progress: Callable[[int, int], None] | None = None,
        names_per_prompt: int | None = None,
    ):
        self.annotated, self._progress, self._together = annotated, progress, names_per_prompt

    def run(self, model: Detects) -> Iterator[tuple[str, float]]:
        """See `Judged.scores`.

        Raises:
            ValueError: the model finds no objects.
        """
        yield from self.judge(model).scores()

    def judge(self, model: Detects) -> Judged:
        """What the model finds, counted as COCO does; raises as `run`."""
        results, unread = self.results(model)
        return Judged(self.annotated, results, self._counted(results), unread)

    def results(self, model: Detects) -> tuple[list[dict[str, Any]], int]:
        """What the model finds, in COCO's form, and how many pictures could not be read."""
        content = self.annotated.content
        ids = [each["id"] for each in content["categories"]]
        found: list[dict[str, Any]] = []
        unread = 0
        answers = model.objects(self.annotated.paths, self.annotated.names, LIMIT, self._together)
        for done, (picture, answer) in enumerate(zip(content["images"], answers, strict=True), 1):
            if self._progress is not None:
                self._progress(done, len(content["images"]))
            if answer is None:
                log.warning("left out %s: cannot be read", picture["file_name"])
                unread += 1
                continue
            for (left, top, right, bottom), score, label in zip(
                answer.boxes, answer.scores, answer.labels, strict=True
            ):
                box = [float(left), float(top), float(right - left), float(bottom - top)]
                found.append({"image_id": picture["id"], "category_id": ids[label], "bbox": box, "score": float(score)})
        return found, unread

    def _counted(self, results: Sequence[dict[str, Any]]) -> Any:
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


def _corners(box: Sequence[float]) -> np.ndarray:
    left, top, width, height = box
    return np.array((left, top, left + width, top + height))


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Share of their union that two boxes have in common."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    common = float(sides.clip(0).prod())
    return common / max(float((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod()) - common, 1e-9)
