"""The student of a distillation: made for its teachers, or a finished one that gets further teachers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from synoptic.methods.start import given_student
from synoptic.methods.teachers import Former, Teacher, TeacherConfig, Words
from synoptic.methods.views import parse_stages
from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.heads import HeadConfig
from synoptic.models.vit import vit_config
from synoptic.types import Features, present

if TYPE_CHECKING:
    from synoptic.methods.radio import RadioConfig


_OF_OTHERS = ("size", "resize", "features", "load")  # what is said of a teacher that is a model of its own


def begun(config: RadioConfig, teachers: Mapping[str, Teacher], pixels: Mapping[str, Any]) -> Student:
    """A student with random weights that answers with all that its teachers tell.

    Args:
        config, teachers: of the run.
        pixels: what the pictures decide of its ViT's configuration.
    """
    tokens = 1 if config.summary == "shared" else len(teachers)
    usual = vit_config(config.model)
    backbone = vit_config(
        config.model,
        image_size=config.size if config.position == "learned" else _largest(config),
        global_blocks=min(usual.global_blocks, max(usual.depth // 3, 1)),
        summary_tokens=tokens,
        registers=config.registers,
        position=config.position,
        patch_bias=usual.patch_bias and config.head == "paper",  # released models have none
        **pixels,
    )
    wanted = {name: _wanted(teacher) for name, teacher in teachers.items()}
    words = {name: _words(teacher, wanted[name]) for name, teacher in teachers.items()}
    widest = max(backbone.width, *(features.patches.shape[-1] for features in wanted.values()))
    adaptors = {
        name: _adaptor(config, features, words[name], config.head_hidden or widest) for name, features in wanted.items()
    }
    summary = _summary(_speaking(adaptors), tokens)
    student = Student(StudentConfig(backbone=backbone, adaptors=adaptors, summary=summary), _tokenizers(words))
    _keep_words(student, words)
    return student


def _speaking(adaptors: Mapping[str, AdaptorConfig], first: int = 0) -> list[int]:
    """The summary tokens of those adaptors that have a summary, one for each from the first on. The others learn
    nothing to say, and are as good as registers."""
    return [first + place for place, adaptor in enumerate(adaptors.values()) if adaptor.summary is not None]


def _summary(tokens: Sequence[int], count: int) -> tuple[int, ...] | None:
    """Tokens out of so many as a student's configuration names those of its summary: None stands for all, and for one
    or more that nobody teaches."""
    kept = tuple(token for token in tokens if token < count)
    return kept if kept and kept != tuple(range(count)) else None


def _largest(config: RadioConfig) -> int:
    """Side of the largest pictures of a run: a table that is cut from covers all of them."""
    stages = parse_stages(config.stages, present(config.size))
    return max(size for stage in stages for size in stage.sizes)


def continued(config: RadioConfig, added: Mapping[str, Teacher]) -> tuple[Student, dict[str, Teacher]]:
    """A finished student with adaptors for further teachers, and all that teach it: itself as it was, and those.

    Its summary tokens stay those of the teachers that it knows; each new teacher gets one more, where they are one a
    teacher. That of a teacher with a summary becomes a part of the student's own.

    Raises:
        ValueError: `init` is no student, or knows a teacher of that name already.
    """
    former, size = given_student(present(config.init), config.load)
    _check_former(config, former)
    for name in added:
        if name in former.adaptors:
            raise ValueError(
                f"teachers=+{name}: the student in init={config.init} has an adaptor of that name; take another one"
            )
    wanted = {name: _wanted(teacher) for name, teacher in added.items()}
    words = {name: _words(teacher, wanted[name]) for name, teacher in added.items()}
    usual = next(iter(former.config.adaptors.values())).hidden
    hidden = config.head_hidden or max(usual, *(features.patches.shape[-1] for features in wanted.values()))
    adaptors = {name: _adaptor(config, features, words[name], hidden) for name, features in wanted.items()}
    tokens = former.config.backbone.summary_tokens
    backbone = former.config.backbone
    if tokens > 1 or len(former.config.adaptors) == 1 or former.config.tokens is not None:
        backbone = replace(backbone, summary_tokens=tokens + len(added))
    known = {name: adaptor.tokenizer for name, adaptor in former.adaptors.items() if adaptor.tokenizer is not None}
    both = {**former.config.adaptors, **adaptors}
    slots, summary = former.config.tokens, former.config.summary
    if slots is not None:  # as in released students: each new teacher has the token that was added for it
        slots = {**slots, **{name: tokens + place for place, name in enumerate(added)}}
    if backbone.summary_tokens > tokens:
        before = range(tokens) if summary is None else summary
        summary = _summary([*before, *_speaking(adaptors, tokens)], backbone.summary_tokens)
    made = replace(former.config, backbone=backbone, adaptors=both, tokens=slots, summary=summary)
    student = Student(made, known | _tokenizers(words))
    _take_over(student, former)
    _keep_words(student, words)
    return student, {**_of_former(former, size, config), **added}


def _check_former(config: RadioConfig, former: Student) -> None:
    """Refuses what is said of former teachers, for which the student itself stands, beyond their weights."""
    usual = TeacherConfig()
    for name in former.adaptors:
        given = config.teacher.get(name, usual)
        idle = next((key for key in _OF_OTHERS if getattr(given, key) != getattr(usual, key)), None)
        if idle is not None:
            raise ValueError(
                f"teacher.{name}.{idle} decides nothing: the student itself stands for {name}; leave it out"
            )
        if not given.summary_weight:
            raise ValueError(f"teacher.{name}.summary_weight=0: {name} would be forgotten; give a weight above 0")


def _of_former(former: Student, size: int, config: RadioConfig) -> dict[str, Teacher]:
    """The student as it was, as a teacher for each of its adaptors, asked at the very size of its pictures."""
    itself = Former(copy.deepcopy(former))
    given = {name: config.teacher.get(name, TeacherConfig()) for name in former.adaptors}
    return {name: Teacher(itself, size, replace(each, resize="grid"), name) for name, each in given.items()}


def _take_over(student: Student, former: Student) -> None:
    """Gives a student the weights of what it was before it got more tokens and adaptors."""
    state, before = student.state_dict(), former.state_dict()
    for key, tensor in before.items():
        if state[key].shape == tensor.shape:
            state[key] = tensor
        else:  # summary tokens, and the rows of their positions, which come first
            state[key] = _widened(state[key], tensor, former.config.backbone.summary_tokens)
    student.load_state_dict(state)


def _widened(wide: Tensor, narrow: Tensor, tokens: int) -> Tensor:
    """(1, T + n + rest, D): the narrow tensor with n rows of the wide one behind its first T."""
    added = wide.shape[1] - narrow.shape[1]
    return torch.cat([narrow[:, :tokens], wide[:, tokens : tokens + added], narrow[:, tokens:]], dim=1)


def _wanted(teacher: Teacher) -> Features:
    """What the student is to answer with, shown by an example."""
    given = teacher.probe()
    silent = not teacher.config.summary_weight or teacher.config.resize == "mosaic"
    return replace(given, summary=None) if silent else given


def _words(teacher: Teacher, wanted: Features) -> Words | None:
    return teacher.words() if wanted.summary is not None else None


def _adaptor(config: RadioConfig, wanted: Features, words: Words | None, hidden: int) -> AdaptorConfig:
    return AdaptorConfig(
        patches=wanted.patches.shape[-1],
        summary=None if wanted.summary is None else wanted.summary.shape[-1],
        hidden=hidden,
        patch_head=HeadConfig(form=config.head, inner=config.head_blocks),
        summary_head=HeadConfig(form=config.head, inner=config.head_blocks),
        text=words.config if words else None,
    )


def _tokenizers(words: Mapping[str, Words | None]) -> dict[str, Any]:
    return {name: known.tokenizer for name, known in words.items() if known}


def _keep_words(student: Student, words: Mapping[str, Words | None]) -> None:
    """Copies the teachers' text towers into the student, which then needs its teachers no more."""
    adaptors: Any = student.adaptors
    for name, known in words.items():
        adaptor = adaptors[name]
        if known is not None:
            adaptor.text.load_state_dict(known.weights)
            adaptor.logit_scale.copy_(known.logit_scale)
