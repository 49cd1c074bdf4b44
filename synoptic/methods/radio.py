"""AM-RADIO: several frozen teachers are distilled into one student that answers for all of them (arXiv 2312.06709)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from synoptic.config import AreaSpan, OptimConfig, Share, TrainConfig
from synoptic.data.sources import Source
from synoptic.data.transforms import RandomCrop
from synoptic.losses import distillation
from synoptic.methods.base import (
    Method,
    ParamGroup,
    Task,
    check_tiles,
    facts_of_bands,
    of_bands,
    resolve_common,
    split_by_decay,
)
from synoptic.methods.teachers import Teacher, Words, load_teachers, words_of
from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.vit import vit_config
from synoptic.types import Batch, Features, present


@dataclass(frozen=True, kw_only=True)
class RadioConfig(TrainConfig):
    """Distillation of several teachers into one student.

    Attributes:
        teachers: `name:MODEL,name:MODEL`; the names are those of the student's adaptors.
        teacher_sizes: `name:PIXELS,...`, the side of the pictures that a teacher sees, where it is not the one it was
            trained with.
        loss_weights: `name.summary:W,name.patches:W,...`, the weight of a loss term where it is not 1. A student has no
            summary for a teacher whose `summary` weighs 0.
        head_hidden: width inside the heads; None takes the widest of the teachers' patches and the student.
        crop_scale: share of a picture's area that a training crop keeps, lowest and highest.
        flip: share of the crops that are mirrored (not in the paper; it suits small data).
        summary: "shared" is one summary token that all heads read (the paper); "per_teacher" one token for each, whose
            concatenation is the student's summary (the released models).
        position: "learned" position embeddings, or "cpe", which lets the student see any size.
    """

    teachers: str = ""
    teacher_sizes: str = ""
    loss_weights: str = ""
    head_hidden: PositiveInt | None = None
    crop_scale: AreaSpan = (0.4, 1.0)
    flip: Share = 0.5
    summary: Literal["shared", "per_teacher"] = "per_teacher"
    position: Literal["learned", "cpe"] = "cpe"
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(weight_decay=0.02, clip=1.0))


def parse_sizes(spec: str) -> dict[str, int]:
    """`name:PIXELS,...` as a dictionary.

    Raises:
        ValueError: naming the entry that is wrong.
    """
    sizes = {}
    for name, value in _entries(spec):
        if not value.isdecimal() or not int(value):
            raise ValueError(f"teacher_sizes={spec!r}: {name}:{value} is not of the form name:PIXELS, such as clip:224")
        sizes[name] = int(value)
    return sizes


def parse_loss_weights(spec: str) -> dict[str, float]:
    """`name.term:WEIGHT,...` as a dictionary.

    Raises:
        ValueError: naming the entry that is wrong.
    """
    weights = {}
    for name, value in _entries(spec):
        try:
            weights[name] = float(value)
        except ValueError:
            weights[name] = math.nan
        if not 0.0 <= weights[name] < math.inf:
            raise ValueError(f"loss_weights={spec!r}: {name}:{value} should be a number, 0 or more")
        if not weights[name] and name.endswith(".patches"):
            raise ValueError(f"loss_weights={spec!r}: {name}:{value}: patches are what every adaptor answers with")
    return weights


def _entries(spec: str) -> Iterator[tuple[str, str]]:
    for entry in filter(None, (part.strip() for part in spec.split(","))):
        name, _, value = entry.partition(":")
        yield name.strip(), value.strip()


class RadioTask(Task):
    """A student and its teachers; every teacher sees the same crop of each picture as the student, in its own size.

    Args:
        config: resolved configuration.
        student: one adaptor a teacher.
        teachers: by the adaptors' names.
        loss_weights: `name.summary` and `name.patches` -> weight of that term, 1 where absent.
    """

    def __init__(
        self, config: RadioConfig, student: Student, teachers: Mapping[str, Teacher], loss_weights: Mapping[str, float]
    ):
        super().__init__()
        self.config = config
        self.size = present(config.size)
        self.student = student
        self.teachers = dict(teachers)  # not submodules: they are neither trained nor saved with the run
        self.loss_weights = dict(loss_weights)
        sizes = {self.size, *(teacher.size for teacher in teachers.values())}
        self.crop = RandomCrop(tuple(sorted(sizes)), config.crop_scale, flip=config.flip)

    @property
    def reads(self) -> int:
        return max(self.crop.sizes)

    def facts(self) -> dict[str, str]:
        teachers = {f"teachers.{name}": teacher.fingerprint() for name, teacher in self.teachers.items()}
        return teachers | facts_of_bands(self.config, self.student.config.backbone)

    def _apply(self, *args: Any, **kwargs: Any) -> RadioTask:  # the teachers follow the student to its device
        for teacher in self.teachers.values():
            teacher._apply(*args, **kwargs)
        return super()._apply(*args, **kwargs)

    def prepare(self, batch: Batch, seed: int) -> Batch:
        """Crops each picture once at random, and resamples the crop to every size that student and teachers read."""
        return self.crop(batch, seed)

    def losses(self, batch: Batch, progress: float) -> Iterator[dict[str, Tensor]]:
        views = dict(zip(self.crop.sizes, batch.crops, strict=True))
        answers = self.student(views[self.size]).adaptors
        terms: dict[str, Tensor] = {}
        for name, teacher in self.teachers.items():
            terms.update(self._terms(name, answers[name].float(), teacher(views[teacher.size])))
        loss = torch.stack([self.loss_weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        yield {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def _terms(self, name: str, student: Features, teacher: Features) -> dict[str, Tensor]:
        mine, theirs = distillation.to_larger_grid(student.patches, student.grid, teacher.patches, teacher.grid)
        terms = {f"{name}.patches": distillation.patch_match(mine, theirs)}
        if student.summary is not None:
            terms[f"{name}.summary"] = distillation.summary_match(student.summary, present(teacher.summary))
        return terms

    def parameter_groups(self) -> list[ParamGroup]:
        return split_by_decay(self.student.named_parameters())

    def shard_units(self) -> Iterator[nn.Module]:
        yield from self.student.backbone.blocks

    def exported(self) -> nn.Module:
        return self.student


def resolve(config: RadioConfig, samples: int) -> RadioConfig:
    """Fills what is None: learning rate 1e-3 (AM-RADIO sec. 4), 100 epochs."""
    config = resolve_common(config, samples, lr=1e-3, epochs=100, size=224)
    check_tiles("size", present(config.size), config.model)
    return config


def build(config: RadioConfig, source: Source) -> RadioTask:
    """The task for a resolved configuration: loads the teachers, and makes their student."""
    if not config.teachers:
        raise ValueError("teachers= is missing; give at least one, such as teachers=clip:runs/clip,dino:runs/dino")
    sizes, loss_weights = parse_sizes(config.teacher_sizes), parse_loss_weights(config.loss_weights)
    teachers = load_teachers(config.teachers, sizes)
    for name, teacher in teachers.items():
        if teacher.model.channels != config.channels:
            raise ValueError(
                f"channels={config.channels}: the teacher {name} reads pictures of {teacher.model.channels} bands, and "
                "all are shown the same; give channels= as the teachers read it"
            )
    answers = {name: teacher.probe() for name, teacher in teachers.items()}
    _check_names("teacher_sizes", sizes, list(teachers))
    _check_names(
        "loss_weights", loss_weights, [term for name, given in answers.items() for term in _terms(name, given)]
    )
    silent = {name for name in teachers if loss_weights.get(f"{name}.summary") == 0.0}
    wanted = {name: replace(given, summary=None) if name in silent else given for name, given in answers.items()}
    student = _student(config, teachers, wanted, of_bands(config, source))
    return RadioTask(config, student, teachers, loss_weights)


def _terms(name: str, answer: Features) -> list[str]:
    return [f"{name}.patches", *([f"{name}.summary"] if answer.summary is not None else [])]


def _check_names(key: str, given: Mapping[str, float], known: list[str]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{key}: {name!r} is none of {', '.join(known)}")


def _student(
    config: RadioConfig, teachers: Mapping[str, Teacher], wanted: Mapping[str, Features], pixels: Mapping[str, Any]
) -> Student:
    """A student that answers with all that is `wanted` of each teacher, shown by an example.

    Args:
        config, teachers: of the run.
        wanted: of each teacher.
        pixels: what the pictures decide of its ViT's configuration.
    """
    tokens = 1 if config.summary == "shared" else len(teachers)
    shape: dict[str, Any] = {"image_size": config.size, "summary_tokens": tokens, "position": config.position}
    backbone = vit_config(config.model, **shape, **pixels)
    widths = [features.patches.shape[-1] for features in wanted.values()]
    hidden = config.head_hidden or max(*widths, backbone.width)
    speaking = [name for name, features in wanted.items() if features.summary is not None]
    words = {name: words_of(teachers[name].model) if name in speaking else None for name in teachers}
    adaptors = {
        name: AdaptorConfig(
            patches=features.patches.shape[-1],
            summary=None if features.summary is None else features.summary.shape[-1],
            hidden=hidden,
            text=known.config if (known := words[name]) else None,
        )
        for name, features in wanted.items()
    }
    student = Student(
        StudentConfig(backbone=backbone, adaptors=adaptors),
        {name: known.tokenizer for name, known in words.items() if known},
    )
    _keep_words(student, words)
    return student


def _keep_words(student: Student, words: Mapping[str, Words | None]) -> None:
    """Copies the teachers' text towers into the student, which then needs its teachers no more."""
    for name, known in words.items():
        adaptor: Any = student.adaptors[name]
        if known is not None:
            adaptor.text.load_state_dict(known.weights)
            adaptor.logit_scale.copy_(known.logit_scale)


METHOD = Method(
    name="radio",
    summary="merge several teachers into one student that answers for all of them",
    config=RadioConfig,
    resolve=resolve,
    build=build,
    presets={},
)
