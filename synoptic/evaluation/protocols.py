"""The evaluations that users name, and how each is built from the parts of a data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from synoptic.data.prompts import Templates, class_prompts
from synoptic.data.sources import Source, open_source, parts_of
from synoptic.data.words import sentence, with_article
from synoptic.evaluation.agreement import Agreement
from synoptic.evaluation.artefacts import PositionArtefacts
from synoptic.evaluation.attention import AttentionOverlap
from synoptic.evaluation.captions import CaptionRetrieval
from synoptic.evaluation.dense import Segmentation
from synoptic.evaluation.detection import CocoDetection, read_annotated
from synoptic.evaluation.features import Space
from synoptic.evaluation.linear import Linear
from synoptic.evaluation.logistic import Logistic
from synoptic.evaluation.mask_classes import background_of, in_scenes, mask_classes
from synoptic.evaluation.recognition import KNN, Recogniser, Together, ZeroShot
from synoptic.evaluation.retrieval import Retrieval
from synoptic.evaluation.scenes import is_scenes, pairs
from synoptic.evaluation.zeroshot_segmentation import ZeroShotSegmentation
from synoptic.types import EncodesImages, EncodesText, Evaluator

logger = logging.getLogger(__name__)

Part = Literal["test", "validation", "all"]
Built = Sequence[Evaluator[EncodesText]]

SET_APART = 0.1  # of the training pictures, for validation, as runs do unless told otherwise
NEIGHBOURS = (10, 20, 100, 200)  # for which k-NN scores are published (DINO, DINOv2)
TEMPLATES = ("a photo of {}.", "a picture of {}.", "a close-up photo of {}.", "a photo of {}, small.", "{}")
SCENE_TEMPLATES = ("{}", "a picture of {}", "a photo of {}", "there is {}")  # as their captions speak


@dataclass(frozen=True)
class Wording:
    """How classes are asked for in words: those of pictures, or those in their masks.

    Attributes:
        labels: a class file (see `class_prompts`), its names those of the class folders, or of the classes in the
            masks, which in templates have spaces for their underscores; None takes these names.
        templates: see `class_prompts`; None takes this library's own.
    """

    labels: str | Path | None = None
    templates: Templates | None = None

    @property
    def is_given(self) -> bool:
        """Whether it says anything."""
        return self.labels is not None or self.templates is not None

    def prompts(self, names: Sequence[str], root: Path, own: Sequence[str] = TEMPLATES) -> list[list[str]]:
        """What is said of each class of the pictures below `root`.

        Args:
            names: of the classes, as folders are called or in words.
            root: told in errors.
            own: this library's templates for them.
        Raises:
            ValueError: the class file names other classes, and see `class_prompts`.
        """
        if self.labels is None:
            words = list(map(_spoken, names))
            return prompts(words, own) if self.templates is None else self._said(words)
        told = self.told(own)
        lacking = next((name for name in names if name not in told), None)
        if lacking is not None:
            raise ValueError(f"labels={self.labels}: has no line for {lacking!r}, which is a class of {root}")
        return [told[name] for name in names]

    def told(self, own: Sequence[str] = TEMPLATES) -> dict[str, list[str]]:
        """What the class file says, class by class in its order; see `prompts`."""
        assert self.labels is not None, "there is a file"
        return class_prompts(self.labels, own if self.templates is None else self.templates, _spoken)

    def _said(self, words: Sequence[str]) -> list[list[str]]:
        assert self.templates is not None, "there are templates"
        return list(class_prompts(words, self.templates).values())


Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Asked:
    """What evaluations are told beside the pictures.

    Attributes:
        adaptor: the student's teacher in whose space it is judged; None takes the model's own, and for words the only
            space that has them.
        wording: how classes are asked for in words.
        teachers: with whom a student is compared, by the names of its adaptors.
        sizes: sides in pixels at which models are asked for a curve; None takes some around their own, see
            `sizes.rising_sizes`.
        progress: told how many of how many pictures are done, by those that look at one after the other.
        names_per_prompt: of a detector, see `DetectOptions`.
    """

    adaptor: str | None = None
    wording: Wording = Wording()
    teachers: Mapping[str, EncodesImages] = field(default_factory=dict)
    sizes: Sequence[int] | None = None
    progress: Progress | None = None
    names_per_prompt: int | None = None


def zeroshot(source: Source, adaptor: str | None = None, wording: Wording = Wording()) -> ZeroShot:
    """Zero-shot classification of pictures in class folders, whose names are the prompts.

    Scenes of one object are asked about the pairs of colour and shape that their training pictures show, and apart
    about all pairs.

    Args:
        source: the pictures.
        adaptor: see ZeroShot.
        wording: how classes are asked for.
    Raises:
        ValueError: for pictures without labels.
    """
    if is_scenes(source):
        if wording.is_given:
            raise ValueError(f"{source.root}: scenes are asked for in words of their own; leave labels, templates out")
        shown = pairs(source)
        return ZeroShot(source, shown.labels, prompts(shown.names, SCENE_TEMPLATES), adaptor, shown.seen)
    if source.labels is None:
        raise ValueError(f"{source.root} has no labels: put its pictures into folders named after their classes")
    return ZeroShot(source, source.labels, wording.prompts(source.classes, source.root), adaptor)


def zeroshot_segmentation(
    source: Source, adaptor: str | None = None, wording: Wording = Wording()
) -> ZeroShotSegmentation:
    """Segmentation by words of pictures with masks, whose classes the data set names, or a class file in its order.

    Args:
        source: the pictures.
        adaptor: see ZeroShotSegmentation.
        wording: how classes are asked for.
    Raises:
        ValueError: for pictures without masks, and for classes that have no names.
    """
    names = mask_classes(source)
    own = SCENE_TEMPLATES if in_scenes(source) else TEMPLATES
    if names:
        said = wording.prompts(names, source.root, own)
    elif wording.labels is not None:
        told = wording.told(own)
        names, said = tuple(told), list(told.values())
    else:
        raise ValueError(
            f"{source.root}: nothing names the classes in its masks; give labels=FILE with a line a class, from 0 on, "
            "or put a classes.json beside the pictures"
        )
    return ZeroShotSegmentation(source, said, adaptor, background_of(names))


def class_names(source: Source) -> tuple[str, ...]:
    """The classes that `zeroshot` asks about, in words."""
    return pairs(source).names if is_scenes(source) else tuple(map(_spoken, source.classes))


def _spoken(folder: str) -> str:
    """The name of a class folder in words."""
    return folder.replace("_", " ")


def retrieval(source: Source, adaptor: str | None = None) -> Built:
    """Retrieval by what is known of the pictures: those of a class find each other, captions and pictures each other.

    Where there are classes, too, a model that knows no words is not asked about the captions.

    Args:
        source: the pictures.
        adaptor: of a student, the teacher in whose space it is judged.
    Raises:
        ValueError: they have neither classes nor captions, or too few.
    """
    captioned = any(source.captions)
    if not captioned and source.labels is None:
        raise ValueError(f"{source.root} has neither labels nor captions: retrieval needs class folders or captions")
    alike = source.labels is not None and (np.bincount(source.labels).max() > 1 or not captioned)
    pictures = [Retrieval(source, adaptor)] if alike else []
    words = [CaptionRetrieval(source, adaptor, optional=alike)] if captioned else []
    return [*pictures, *words]


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Sentences for each class: `{}` stands for its name with "a" or "an" before it."""
    return [[sentence(template, with_article(name)) for template in templates] for name in names]


# Each is built from the training part, the part to judge by, and what it is told beside them.
EVALUATIONS: dict[str, Callable[[Source, Source, Asked], Built]] = {
    "knn": lambda train, judged, asked: [KNN(train, judged, spaces=(Space(asked.adaptor),), besides=NEIGHBOURS)],
    "linear": lambda train, judged, asked: [Linear(train, judged, asked.adaptor)],
    "logistic": lambda train, judged, asked: [Logistic(train, judged, asked.adaptor)],
    "retrieval": lambda train, judged, asked: retrieval(judged, asked.adaptor),
    "zeroshot": lambda train, judged, asked: [zeroshot(judged, asked.adaptor, asked.wording)],
    "segmentation": lambda train, judged, asked: [Segmentation(train, judged, asked.adaptor)],
    "zeroshot_segmentation": lambda train, judged, asked: [zeroshot_segmentation(judged, asked.adaptor, asked.wording)],
    "attention": lambda train, judged, asked: [AttentionOverlap(judged, asked.adaptor)],
    "agreement": lambda train, judged, asked: [Agreement(judged, asked.teachers, asked.sizes)],
    "artefacts": lambda train, judged, asked: [PositionArtefacts(judged, asked.adaptor, asked.sizes)],
}
# Those that read a file of annotations by themselves, and its folder of pictures.
OF_FILES: dict[str, Callable[[Path, Path | None, Asked], Any]] = {
    "detection": lambda file, images, asked: CocoDetection(
        read_annotated(file, images), asked.progress, asked.names_per_prompt
    ),
}
ALL = (*EVALUATIONS, *OF_FILES)
LEARN = frozenset({"knn", "linear", "logistic", "segmentation"})  # from the training part
WORDED = frozenset({"zeroshot", "zeroshot_segmentation"})  # ask for classes in words
CURVES = frozenset({"agreement", "artefacts"})  # over the size of the pictures


def named(names: Iterable[str] | str) -> list[str]:
    """Evaluations by name, each once.

    Args:
        names: of ALL; a text may name several, with commas between them.
    Raises:
        ValueError: one is unknown, or there is none.
    """
    wanted = list(dict.fromkeys(names.split(",") if isinstance(names, str) else names))
    if not wanted:
        raise ValueError(f"on=: names no evaluation; give some of {', '.join(ALL)}")
    for name in wanted:
        if name not in ALL:
            raise ValueError(f"on={name}: no such evaluation; there are {', '.join(ALL)}")
    return wanted


def judged_part(data: str, validation: float | None = None, names: Iterable[str] = LEARN) -> Part:
    """The part of a data set to judge models by: its test part, or for want of one its validation part.

    Data without any parts are judged as a whole where nothing is learned from them and no run is known to have been
    trained on them. What is judged by in place of a test part, and whether models may have been trained on it, is told
    as a warning.

    Args:
        data: a folder with `train/` and `test/` inside, or any other DIR.
        validation: the share of its training pictures that the model's run set apart, where that is known.
        names: of the evaluations.
    """
    parts = parts_of(data)
    if "test" in parts:
        return "test"
    part: Part = "validation"
    if "validation" in parts:
        by = "its validation part"
    elif validation is not None:
        by = f"the {validation:.3g} of its pictures that the model's run set apart for validation"
    elif LEARN.isdisjoint(names):
        by, part = "all of its pictures, on which the model may have been trained", "all"
    else:
        by = f"{SET_APART:.3g} of its pictures, on which the model may have been trained"
    logger.warning("%s has no test part: judging by %s", data, by)
    return part


def build_evaluator(
    name: str,
    data: str,
    part: Part | None = None,
    *,
    adaptor: str | None = None,
    validation: float | None = None,
) -> Evaluator[EncodesText]:
    """The first evaluator of a data set; see `build_evaluators`."""
    evaluator, *_ = build_evaluators([name], data, part, Asked(adaptor), validation=validation)
    return evaluator


def build_evaluators(
    names: Iterable[str] | str,
    data: str,
    part: Part | None = None,
    asked: Asked = Asked(),
    *,
    validation: float | None = None,
    images: str | None = None,
) -> list[Evaluator[EncodesText]]:
    """Evaluations of a data set; those that read a vector of each picture are joined to one, which looks at each once.

    Args:
        names: of EVALUATIONS; a text may name several, with commas between them.
        data: a folder with `train/` and `test/` inside, or any other DIR.
        part: the part to judge by; None takes `judged_part`.
        asked: what they are told beside the pictures.
        validation: share of the training pictures set apart where the data have no validation part; that of the
            model's run keeps the pictures that it was trained on out of the judged ones.
        images: the folder that the names in a captions file are relative to.
    Raises:
        ValueError: for an unknown name, and for data that lack what an evaluation needs.
    """
    every = named(names)
    of_files = [OF_FILES[name](_file(data, name), images_at(images), asked) for name in every if name in OF_FILES]
    wanted = [name for name in every if name not in OF_FILES]
    if not wanted:
        return of_files
    part = part or judged_part(data, validation, wanted)
    share = SET_APART if validation is None else validation
    judged = open_source(data, part, validation=share, images=images)
    train = judged if LEARN.isdisjoint(wanted) else open_source(data, "train", validation=share, images=images)
    evaluators = [each for name in wanted for each in EVALUATIONS[name](train, judged, asked)]
    recognisers = [each for each in evaluators if isinstance(each, Recogniser)]
    evaluators += of_files
    if len(recognisers) < 2:
        return evaluators
    place = evaluators.index(recognisers[0])
    others = [each for each in evaluators if not isinstance(each, Recogniser)]
    return [*others[:place], Together(recognisers), *others[place:]]


def _file(data: str, name: str) -> Path:
    """The file of annotations that data name."""
    path = Path(data).expanduser()
    if path.suffix.lower() != ".json" or not path.is_file():
        raise ValueError(f"on={name}: data={data} should be a JSON file of COCO's form, with boxes")
    return path


def images_at(images: str | None) -> Path | None:
    """The folder that file names are relative to, where one is said."""
    return None if images is None else Path(images).expanduser()
