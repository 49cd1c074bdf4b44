"""What a detector found, and the forms in which others read it: COCO, YOLO, CSV, JSON, supervision, pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

_DIGITS = 2  # of pixels, behind the point, in files


@dataclass(frozen=True)
class Detections:
    """The objects in one picture, the surest first.

    Attributes:
        boxes: (n, 4) float32 left, top, right, bottom in pixels of the original.
        scores: (n,) float32 in [0, 1].
        labels: (n,) int64, places in `names`.
        names: of the classes that were asked for, in their order; of a sentence the phrases that were found.
        size: height and width of the picture in pixels.
        path: the picture's file, or "".
        spans: of a sentence, for each object between which characters the words lie that name it.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    size: tuple[int, int]
    path: str = ""
    spans: tuple[tuple[tuple[int, int], ...], ...] = field(default=())

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: np.ndarray | slice) -> Detections:
        """Some of the objects: a mask, places, or a slice of them, as in `found[found.scores > 0.5]`."""
        places = np.atleast_1d(np.arange(len(self))[chosen])
        spans = tuple(self.spans[place] for place in places) if self.spans else ()
        return replace(
            self, boxes=self.boxes[places], scores=self.scores[places], labels=self.labels[places], spans=spans
        )

    @property
    def found(self) -> list[str]:
        """The name of each object."""
        return [self.names[label] for label in self.labels]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], names: Sequence[str]) -> Detections:
        """The way back of `to_dict`, whose labels are places in the names of one picture.

        Args:
            values: as `to_dict` gives them.
            names: of all classes; those that were found are among them.
        """
        objects, place = values["objects"], {name: number for number, name in enumerate(names)}
        return cls(
            np.array([each["box"] for each in objects], np.float32).reshape(-1, 4),
            np.array([each["score"] for each in objects], np.float32),
            np.array([place[each["name"]] for each in objects], np.int64),
            tuple(names),
            (values["height"], values["width"]),
            values["path"],
            tuple(tuple((begin, end) for begin, end in each["spans"]) for each in objects if "spans" in each),
        )

    def to_coco(self, image_id: int = 0, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Results as COCO's evaluation reads them: boxes are left, top, width, height.

        Args:
            image_id: of the picture.
            category_ids: of the names, in their order; None counts them from 1.
        Raises:
            ValueError: they are not as many as the names.
        """
        ids = range(1, len(self.names) + 1) if category_ids is None else category_ids
        if len(ids) != len(self.names):
            raise ValueError(f"{len(ids)} category_ids were given for {len(self.names)} names; give one for each")
        return [
            {
                "image_id": image_id,
                "category_id": int(ids[label]),
                "bbox": [round(float(each), _DIGITS) for each in (left, top, right - left, bottom - top)],
                "score": round(float(score), 5),
            }
            for (left, top, right, bottom), score, label in zip(self.boxes, self.scores, self.labels, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        found = [
            {
                "label": int(label),
                "name": self.names[label],
                "score": round(float(score), 5),
                "box": [round(float(each), _DIGITS) for each in box],
                **({"spans": [list(span) for span in self.spans[place]]} if self.spans else {}),
            }
            for place, (box, score, label) in enumerate(zip(self.boxes, self.scores, self.labels, strict=True))
        ]
        return {"path": self.path, "height": self.size[0], "width": self.size[1], "objects": found}

    def to_yolo(self) -> str:
        """A line an object: label, then centre, width and height as shares of the picture, as YOLO's labels are."""
        high, wide = self.size
        left, top, right, bottom = (self.boxes / np.array([wide, high, wide, high])).T
        columns = (self.labels, (left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return "".join(f"{label} {' '.join(f'{each:.6f}' for each in box)}\n" for label, *box in rows)

    def draw(self, picture: Image.Image | np.ndarray | str | Path | None = None) -> Image.Image:
        """The picture with boxes, names and scores drawn on it.

        Args:
            picture: a Pillow picture, an array (H, W, 3) uint8, or a file; None reads the file that was looked at.
        Raises:
            ValueError: nothing says which file that was, it cannot be read, or it has another size.
        """
        from synoptic.data.pictures import read_picture
        from synoptic.detection.drawing import draw_boxes

        if picture is None and not self.path:
            raise ValueError("these objects are of a picture that was given without a file: give it to draw()")
        shown = self.path if picture is None else picture
        return draw_boxes(read_picture(shown) if isinstance(shown, str | Path) else shown, self)

    def to_supervision(self) -> Any:
        """`supervision.Detections`, with the names as `class_name`.

        Raises:
            ValueError: the package supervision is not installed.
        """
        try:
            theirs = import_module("supervision").Detections
        except ImportError as error:
            raise ValueError(f"supervision cannot be imported ({error}): pip install supervision") from None
        names = np.array(self.found, dtype=str)
        return theirs(xyxy=self.boxes, confidence=self.scores, class_id=self.labels, data={"class_name": names})


def to_json(found: Sequence[Detections], names: Sequence[str], asked: Mapping[str, Any] | None = None) -> str:
    """One JSON of several pictures, a line an object: what was asked, the names, and of each picture what was found."""
    head = json.dumps({"asked": dict(asked or {}), "names": list(names)}, ensure_ascii=False)[1:-1]
    pictures = []
    for each in found:
        values = each.to_dict()
        objects = ",\n".join(f"  {json.dumps(one, ensure_ascii=False)}" for one in values.pop("objects"))
        told = json.dumps(values, ensure_ascii=False)[1:-1]
        pictures.append(f' {{{told}, "objects": [{f"{chr(10)}{objects}{chr(10)} " if objects else ""}]}}')
    return f'{{{head}, "images": [\n{f",{chr(10)}".join(pictures)}\n]}}\n'


def to_coco(found: Iterable[Detections], names: Sequence[str]) -> str:
    """A data set in COCO's form, with scores: pictures and names are counted from 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for each in found:
        number = len(images) + 1
        image = {"id": number, "file_name": each.path, "height": each.size[0], "width": each.size[1]}
        images.append(image)
        for result in each.to_coco(number):
            area = round(result["bbox"][2] * result["bbox"][3], _DIGITS)
            annotations.append({"id": len(annotations) + 1, **result, "area": area, "iscrowd": 0})
    categories = [{"id": place + 1, "name": name} for place, name in enumerate(names)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}, ensure_ascii=False)


def to_csv(found: Iterable[Detections]) -> str:
    """A line an object."""
    content = io.StringIO()
    lines = csv.writer(content, lineterminator="\n")
    lines.writerow(("path", "label", "name", "score", "left", "top", "right", "bottom"))
    for each in found:
        for box, score, label in zip(each.boxes, each.scores, each.labels, strict=True):
            sides = [f"{side:.{_DIGITS}f}" for side in box]
            lines.writerow((each.path, int(label), each.names[label], f"{score:.5f}", *sides))
    return content.getvalue()
