"""Pictures of built-in scenes as files: JPEG, PNG, NumPy and COCO JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from synoptic.data.scene_description import Camera
from synoptic.data.scene_picture import Picture
from synoptic.data.solids import SOLIDS

CATEGORY = {shape: number for number, shape in enumerate(SOLIDS, start=1)}
JPEG: dict[str, Any] = {"quality": 92, "subsampling": 0}  # chroma at full resolution: at 96 px colour edges matter
PNG: dict[str, Any] = {"compress_level": 1}
Record = dict[str, Any]


def save_picture(picture: Picture, split: Path, name: str) -> Record:
    """Writes one picture's files and returns what the split's JSON files say of it.

    Args:
        split: folder whose images/, masks/, ... and their class folders exist.
        name: file name without ending, relative to images/.
    """
    Image.fromarray(picture.image).save(split / "images" / f"{name}.jpg", **JPEG)
    Image.fromarray(_categories(picture)).save(split / "masks" / f"{name}.png", **PNG)
    millimetres = np.round(1000 * picture.depth)
    # Beyond what 16 bits hold is as good as infinitely far.
    millimetres = np.where(millimetres < 2**16, millimetres, 0).astype(np.uint16)
    Image.fromarray(millimetres).save(split / "depth" / f"{name}.png", **PNG)
    normals = np.round(127.5 * (picture.normals + 1)).astype(np.uint8)
    Image.fromarray(normals).save(split / "normals" / f"{name}.png", **PNG)
    if picture.second is not None:
        Image.fromarray(picture.second.image).save(split / "views" / f"{name}.jpg", **JPEG)
        np.save(split / "correspondences" / f"{name}.npy", picture.second.correspondences)
    return {"image": _image(picture, name), "annotations": _annotations(picture), "captions": _captions(picture)}


def write_annotations(split: Path, records: Sequence[Record]) -> None:
    """Writes instances.json and captions.json of a split from the records of its pictures, in their order."""
    images: list[Record] = []
    instances: list[Record] = []
    captions: list[Record] = []
    for number, record in enumerate(records, start=1):
        image = {"id": number, **record["image"]}
        ids = list(range(len(instances) + 1, len(instances) + 1 + len(record["annotations"])))
        instances += [
            {"id": i, "image_id": number, **annotation}
            for i, annotation in zip(ids, record["annotations"], strict=True)
        ]
        for caption in record["captions"]:
            phrases = [
                {**phrase, "annotations": [ids[body] for body in phrase["annotations"]]}
                for phrase in caption["phrases"]
            ]
            captions.append({"id": len(captions) + 1, "image_id": number, **caption, "phrases": phrases})
        images.append(image)
    categories = [{"id": number, "name": shape} for shape, number in CATEGORY.items()]
    _write_json(split / "instances.json", {"images": images, "annotations": instances, "categories": categories})
    plain = [{key: image[key] for key in ("id", "file_name", "width", "height")} for image in images]
    _write_json(split / "captions.json", {"images": plain, "annotations": captions})


def _write_json(path: Path, content: Record) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def _categories(picture: Picture) -> NDArray[np.uint8]:
    """(H, W) the category of each pixel, 0 where no body is seen."""
    numbers = [0, *(CATEGORY[instance.kind.shape] for instance in picture.instances)]
    return np.array(numbers, np.uint8)[picture.index_map]


def _image(picture: Picture, name: str) -> Record:
    height, width, _ = picture.image.shape
    record = {
        "file_name": f"{name}.jpg",
        "width": width,
        "height": height,
        "camera": _camera(picture.camera),
        "light": {"direction": _numbers(picture.light.direction), "shadows": picture.light.shadows},
    }
    if picture.second is not None:
        record["second_camera"] = _camera(picture.second.camera)
    return record


def _camera(camera: Camera) -> Record:
    centre = camera.size / 2
    return {
        "fx": camera.focal,
        "fy": camera.focal,
        "cx": centre,
        "cy": centre,
        "rotation": _numbers(camera.rotation),
        "position": _numbers(camera.position),
    }


def _numbers(array: NDArray[np.floating]) -> Any:
    return np.round(array.astype(np.float64), 7).tolist()


def _annotations(picture: Picture) -> list[Record]:
    codes = rle.encode(np.asfortranarray(picture.masks.transpose(1, 2, 0).astype(np.uint8)))
    return [
        {
            "category_id": CATEGORY[instance.kind.shape],
            "bbox": list(instance.box),
            "area": instance.area,
            "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
            "iscrowd": 0,
            "attributes": {
                "colour": instance.kind.colour,
                "texture": instance.kind.texture,
                "size": instance.kind.size,
                "floating": instance.floating,
                "occlusion": round(instance.occlusion, 4),
                "position": _numbers(instance.position),
            },
        }
        for instance, code in zip(picture.instances, codes, strict=True)
    ]


def _captions(picture: Picture) -> list[Record]:
    """Captions whose phrases name bodies by their index in the picture; the split's JSON turns it into an id."""
    boxes = [list(instance.box) for instance in picture.instances]
    return [
        {
            "caption": caption.text,
            "phrases": [
                {
                    "span": [phrase.start, phrase.end],
                    "annotations": list(phrase.bodies),
                    "boxes": [boxes[body] for body in phrase.bodies],
                }
                for phrase in caption.phrases
            ],
        }
        for caption in picture.captions
    ]
