"""Frozen teachers: what each of them is shown, and what it answers with.

Source: AM-RADIO (Ranzinger et al. 2024, arXiv 2312.06709), sec. 3 and 4; RADIOv2.5 (arXiv 2412.07679) for mosaics.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from synoptic.config import nearest
from synoptic.data.mosaic import assemble, cut
from synoptic.losses.precision import wide
from synoptic.methods.start import LoadOptions, tell_if_untrained
from synoptic.models.adaptors import Student
from synoptic.models.hub import HubBackbone
from synoptic.models.layers import Block
from synoptic.models.sam_attention import SamBlock
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, tiled_sizes
from synoptic.predict import VisionModel, load
from synoptic.types import Features
from synoptic.weights.folder import model_hash
from synoptic.weights.options import TeacherFile

_OWN = ("answer", "trunk")  # what a model answers with in a space of its own
log = logging.getLogger(__name__)

ADDED = "+"  # before the name of a teacher that is given to a finished student


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """How one teacher is asked, and how much it counts.

    Attributes:
        size: side in pixels of the pictures that it sees; None takes the one that it was trained with.
        resize: what it sees where the student sees pictures of another size: "fixed" shows it each in its own size;
            "grid" in the size in which it has as many patches as the student; "mosaic" shows it several at once, on a
            canvas of its own size, so that each has about as many patches as the student has (and no summary).
        at: sizes in pixels of the student's pictures at which it takes part; none stands for all.
        features: what it answers with: "answer" is the model's own, "trunk" has the patches of its last block, before
            what comes behind it (AM-RADIO takes SAM before its neck); of a student that teaches the name of an adaptor,
            in whose space it then answers.
        summary_weight: weight of the loss of its summary, where it has one; with 0 the student has none for it.
        patches_weight: weight of the loss of its patches.
        load: what a weights file of another maker does not say itself.
    """

    size: PositiveInt | None = None
    resize: Literal["fixed", "grid", "mosaic"] = "fixed"
    at: tuple[PositiveInt, ...] = ()
    features: str = "answer"
    summary_weight: NonNegativeFloat = 1.0
    patches_weight: PositiveFloat = 1.0
    load: LoadOptions = field(default_factory=LoadOptions)


@dataclass(frozen=True)
class View:
    """How a teacher sees the pictures of a batch.

    Attributes:
        side: of each picture in pixels.
        tiles: pictures down and across a canvas; 1 where each is seen alone.
    """

    side: int
    tiles: int = 1


class Teacher(nn.Module):
    """A model that is asked but never trained; it stays in evaluation mode.

    Args:
        model: answers with Features for pictures in [0, 1]; its normalisation is inside.
        size: side of the pictures it reads, in pixels.
        config: how it is asked.
        adaptor: of a student that teaches, the space in which it is asked; None stands for its own.
    """

    def __init__(self, model: nn.Module, size: int, config: TeacherConfig | None = None, adaptor: str | None = None):
        super().__init__()
        self.model: Any = model.requires_grad_(False).eval()
        self.size, self.adaptor = size, adaptor
        self.config = config or TeacherConfig()
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)

    @property
    def stride(self) -> int:
        """Pixels from one of its patches to the next."""
        stride: int = self.model.stride
        return stride

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """What it answers to (B, C, H, W) pictures, float32 or better."""
        spaces = () if self.adaptor is None else (self.adaptor,)
        asked = {"adaptors": spaces} if isinstance(self.model, Student | Former) else {}
        if self.config.features == "trunk":
            answer = self.model(images, layers=(-1,), **asked)
            return replace(answer.layers[0], summary=answer.summary).float()
        answer = self.model(images, **asked)
        return (answer if self.adaptor is None else answer.adaptors[self.adaptor]).float()

    def seen(self, images: Tensor, view: View) -> Features:
        """What it answers to (B, C, side, side) pictures shown as `view` says; without a summary on a canvas."""
        if view.tiles == 1:
            return self(images)
        answer = self(assemble(images, view.tiles))
        patches, grid = cut(answer.patches, answer.grid, view.tiles, len(images))
        return Features(patches, grid)

    def view(self, grid: int) -> View:
        """How it sees pictures of which the student has `grid` x `grid` patches."""
        if self.config.resize == "grid":
            return View(grid * self.stride)
        if self.config.resize == "fixed":
            return View(self.size)
        across = self.size // self.stride
        tiles = max(
            count for count in range(1, across + 1) if not across % count and (across // count >= grid or count == 1)
        )
        return View(self.size // tiles, tiles)

    @property
    def is_former(self) -> bool:
        """Whether it is the student itself, as it was."""
        return isinstance(self.model, Former)

    def words(self) -> Words | None:
        """The text tower of the space in which it answers; None where it has none, or came without a vocabulary."""
        speaks = self.model if self.adaptor is None else self.model.adaptors[self.adaptor]
        text = getattr(speaks, "text", None)
        if text is None or speaks.tokenizer is None:
            return None
        return Words(text.config, text.state_dict(), speaks.logit_scale.detach(), speaks.tokenizer)

    def blocks(self) -> Iterator[nn.Module]:
        """Its blocks, where it is a transformer of this library."""
        return (part for part in self.modules() if isinstance(part, Block | SamBlock))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:  # n of them -> (n, C) float32 or better
        return wide(self.model.encode_text(self.model.tokenizer(texts)))

    def fingerprint(self) -> str:
        """Tells it from any other model by its weights, its configuration and its tokenizer."""
        return model_hash(self.model.student if self.is_former else self.model)

    @torch.no_grad()
    def probe(self) -> Features:
        """Features of one black picture: tells the widths of summary and patches."""
        device = next(self.model.parameters()).device
        return self(torch.zeros(1, self.model.channels, self.size, self.size, device=device))


class Former(nn.Module):
    """A student as it was, which teaches in the space of each of its adaptors: asked once for all of them.

    Attributes:
        student: frozen.
    """

    def __init__(self, student: Student):
        super().__init__()
        self.student = student
        self.stride, self.channels, self.config = student.stride, student.channels, student.config
        self._last: tuple[Tensor, Features] | None = None

    def forward(self, images: Tensor, adaptors: Sequence[str] = ()) -> Features:
        """As the student, for all of its adaptors, whichever is asked for."""
        if self._last is None or self._last[0] is not images:
            self._last = (images, self.student(images))
        return self._last[1]

    def forget(self) -> None:
        """Lets go of the pictures that it was asked about last, and of its answer."""
        self._last = None


@dataclass(frozen=True)
class Words:
    """What a student keeps of a teacher that knows words."""

    config: TextConfig
    weights: dict[str, Tensor]
    logit_scale: Tensor
    tokenizer: Tokenizer


def parse_teachers(spec: str) -> dict[str, str]:
    """`clip:MODEL,dino:MODEL` as name -> MODEL; names of added ones (`+sam:MODEL`) keep their sign.

    Raises:
        ValueError: for an entry without a name, and for a name that occurs twice.
    """
    teachers: dict[str, str] = {}
    for entry in spec.split(","):
        name, colon, model = entry.strip().partition(":")
        if not (name and colon and model) or not name.removeprefix(ADDED).isidentifier():
            raise ValueError(f"teachers={spec!r}: {entry!r} is not of the form name:MODEL, such as clip:runs/clip")
        if name.removeprefix(ADDED) in {known.removeprefix(ADDED) for known in teachers}:
            raise ValueError(f"teachers={spec!r}: the name {name.removeprefix(ADDED)!r} occurs twice")
        teachers[name] = model
    return teachers


def named_teachers(spec: str) -> dict[str, str]:
    """As `parse_teachers`, added ones by their names alone."""
    return {name.removeprefix(ADDED): model for name, model in parse_teachers(spec).items()}


def load_teachers(spec: str, configs: Mapping[str, TeacherConfig]) -> dict[str, Teacher]:
    """Loads the teachers of `name:MODEL,...`, added ones among them.

    Raises:
        ValueError: there is no such model, or it cannot be asked as its configuration says.
    """
    return {
        name: _loaded(name, model, configs.get(name, TeacherConfig())) for name, model in named_teachers(spec).items()
    }


def open_teacher(name: str, model: str | Path | VisionModel, config: TeacherConfig | TeacherFile) -> VisionModel:
    """The model that teaches under a name; one that is loaded already is taken as it is.

    Raises:
        ValueError: there is no such model, or its file does not say what `teacher.NAME.load` would.
    """
    if isinstance(model, VisionModel):
        return model
    said = {key: value for key, value in vars(config.load).items() if value is not None}
    try:
        return load(model, **said)
    except ValueError as error:  # which tells the keys of a model that is given alone
        raise ValueError(re.sub(r"\bload\.(?=\w+=)", f"teacher.{name}.load.", str(error))) from None


def open_teachers(
    teachers: Mapping[str, str | Path | VisionModel], told: Mapping[str, TeacherConfig | TeacherFile]
) -> dict[str, VisionModel]:
    """The models that teach, by their names.

    Args:
        teachers: name -> MODEL.
        told: what their files do not say, by name; those of whom it says nothing say all.
    Raises:
        ValueError: see `open_teacher`; or something is told of a name that is no teacher.
    """
    for name in told:
        if name not in teachers:
            raise ValueError(f"teacher.{name}: is no teacher{nearest(name, teachers)}")
    return {name: open_teacher(name, each, told.get(name, TeacherFile())) for name, each in teachers.items()}


def _loaded(name: str, model: str, config: TeacherConfig) -> Teacher:
    tell_if_untrained(f"teachers={name}:", model)
    vision = open_teacher(name, model, config)
    size, stride = config.size or vision.preprocess.size, vision.stride
    if size % stride:
        low, high = tiled_sizes(size, stride)
        raise ValueError(
            f"teacher.{name}.size={size}: its patches of {stride} do not tile it; the nearest that work: {low}, {high}"
        )
    _check_sizes(name, vision.model, size, config)
    _check_features(name, model, vision, config.features)
    teacher = Teacher(vision.model, size, config, None if config.features in _OWN else config.features)
    _check_resize(name, teacher)
    return teacher


def _check_resize(name: str, teacher: Teacher) -> None:
    """Refuses what decides nothing beside the way in which a teacher is shown pictures; tells what it is not asked."""
    config = teacher.config
    if config.resize == "grid" and config.size is not None:
        told = "it sees the size in which it has as many patches as the student; leave it out"
        raise ValueError(f"teacher.{name}.size={config.size} decides nothing beside teacher.{name}.resize=grid: {told}")
    if config.resize != "mosaic":
        return
    if config.summary_weight not in (0.0, TeacherConfig.summary_weight):
        told = f"teacher.{name}.summary_weight={config.summary_weight:g} decides nothing"
        raise ValueError(f"{told} beside teacher.{name}.resize=mosaic: of several pictures there is no summary")
    if teacher.probe().summary is not None and config.summary_weight:
        words = " and its words" if teacher.words() is not None else ""
        log.warning("teacher.%s.resize=mosaic: of several pictures its summary%s are not learned", name, words)


def _check_features(name: str, model: str, vision: VisionModel, features: str) -> None:
    """Refuses what a model cannot answer with."""
    told = f"teacher.{name}.features={features}"
    if features not in (*_OWN, *vision.adaptors):
        raise ValueError(f"{told}: {model} has no adaptor of that name{nearest(features, (*_OWN, *vision.adaptors))}")
    if features != "trunk":
        return
    if isinstance(vision.model, ViT | Student):
        raise ValueError(f"{told}: nothing comes behind the last block of {model}, so it decides nothing; leave it out")
    if not vision.depth and not hasattr(vision.model, "encoder"):
        raise ValueError(f"{told}: {model} tells nothing of its blocks; leave it out")


def _check_sizes(name: str, model: nn.Module, size: int, config: TeacherConfig) -> None:
    """Refuses sizes of a model that reads a single one."""
    if not isinstance(model, HubBackbone) or model.layout.any_size:
        return
    if size != model.size:
        raise ValueError(f"teacher.{name}.size={size}: it reads pictures of {model.size} pixels alone; leave it out")
    if config.resize == "grid":
        raise ValueError(
            f"teacher.{name}.resize=grid: it reads pictures of {model.size} pixels alone; take fixed or mosaic"
        )


def load_teacher(model: str, channels: int) -> Teacher:
    """The one teacher of a student that reads so many bands.

    Raises:
        ValueError: there is no such model, or it reads other bands.
    """
    tell_if_untrained("teacher=", model)
    vision = load(model)
    if vision.channels != channels:
        raise ValueError(f"teacher={model}: reads {vision.channels} bands, its student {channels}")
    return Teacher(vision.model, vision.preprocess.size)
