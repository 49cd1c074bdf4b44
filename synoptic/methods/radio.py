"""AM-RADIO: several frozen teachers are distilled into one student that answers for all of them (arXiv 2312.06709)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt

from synoptic.config import AreaSpan, Fraction, OptimConfig, Share, TrainConfig, nearest
from synoptic.data.sources import Source
from synoptic.losses.balance import Balance
from synoptic.losses.distillation import PatchLoss, SummaryLoss
from synoptic.losses.standardise import Standard, Standardiser
from synoptic.methods.base import Method, Unused, check_tiles, first_step, of_bands, resolve_common
from synoptic.methods.radio_task import RadioTask
from synoptic.methods.start import LoadOptions, given_student
from synoptic.methods.student import begun, continued
from synoptic.methods.teachers import ADDED, Teacher, TeacherConfig, load_teachers, parse_teachers
from synoptic.methods.views import parse_stages
from synoptic.models import spectral
from synoptic.models.adaptors import Student
from synoptic.types import present


@dataclass(frozen=True, kw_only=True)
class RadioConfig(TrainConfig):
    """Distillation of several teachers into one student.

    Attributes:
        teachers: `name:MODEL,name:MODEL`; the names are those of the student's adaptors. With `init`, `+name:MODEL` is
            a teacher that the student does not know yet; it keeps the others by its own answers of before.
        teacher: how each of them is asked, by its name.
        init: a finished student (a MODEL) that gets further teachers; None begins with random weights of `model`.
        load: what the weights file in `init` does not say itself.
        stages: sizes of the student's pictures over the run, as SIZE@SHARE from where on: `64@0,96@0.5,64+192@0.75`
            ends with two sizes at once, each for half of every batch; every schedule begins anew in each. Nothing is
            `size` all along.
        windows: sides in patches of windows in which most of the student's blocks attend, one drawn for each step, 0
            being none (ViTDet's windows as augmentation, AM-RADIO sec. 4).
        shift: cells by which the crops of student and teachers lie apart, at most; they are compared where they overlap
            (C-RADIOv4 eq. 1, against what teachers say of places rather than of pictures). Each sees so many cells less
            than `crop_scale` keeps.
        match: the grid on which patches are compared where student and teacher have other ones: the "larger" (AM-RADIO)
            or the "smaller".
        summary_loss: "angle" is the squared angle over the teacher's dispersion (C-RADIOv4).
        patch_loss: "hybrid" is 0.9 cosine and 0.1 smooth L1 (AM-RADIO); "mse" wants standardised targets (PHI-S).
        standardise: what is done to the teachers' patches before they are compared, so that none outweighs the others
            by its units: "phi_s" turns and scales them until every channel has variance 1 (PHI-S), "global" and
            "channel" shift and scale, "pca" and "zca" whiten. The student answers in the teachers' own units.
        settle: share of each stage in which the teachers' statistics are taken.
        freeze: share of each stage in which the student's trunk stands still and its heads learn alone.
        balance: "fixed" weighs the losses as the teachers' configurations say, "uncertainty" learns weights, "adaloss"
            divides each loss by its mean.
        drop_teachers: share of the teachers that each picture goes without, never the one that it answers worst for.
            Of this and of "adaloss" each part of a batch (`accumulate`, several sizes) makes its own account.
        head: form of the heads: "paper" as AM-RADIO says, "v1" and "v2" as the released models have them.
        head_blocks: residual blocks inside the heads of "v2".
        head_hidden: width inside the heads; None takes the widest of the teachers' patches and the student.
        crop_scale: share of a picture's area that a training crop keeps, lowest and highest.
        flip: share of the crops that are mirrored (not in the paper; it suits small data).
        summary: "shared" is one summary token that all heads read (the paper); "per_teacher" one token for each; the
            student's summary is the concatenation of those whose teachers have one (the released models).
        registers: further tokens of the student that are thrown away.
        position: "learned" position embeddings, or "cpe", which lets the student see any size.
        spectral: whether the largest singular value of the student's matrices is a parameter of its own, for trainings
            at high resolution that would diverge (AM-RADIO app.); folded into the weights in the end.
    """

    teachers: str = ""
    teacher: Mapping[str, TeacherConfig] = field(default_factory=dict)
    init: str | None = None
    load: LoadOptions = field(default_factory=LoadOptions)
    stages: str = ""
    windows: tuple[NonNegativeInt, ...] = ()
    shift: NonNegativeInt = 0
    match: Literal["larger", "smaller"] = "larger"
    summary_loss: SummaryLoss = "cosine"
    patch_loss: PatchLoss = "hybrid"
    standardise: Standard = "none"
    settle: Share = 0.1
    freeze: Fraction = 0.0
    balance: Balance = "fixed"
    drop_teachers: Fraction = 0.0
    head: Literal["paper", "v1", "v2"] = "paper"
    head_blocks: NonNegativeInt = 0
    head_hidden: PositiveInt | None = None
    crop_scale: AreaSpan = (0.4, 1.0)
    flip: Share = 0.5
    summary: Literal["shared", "per_teacher"] = "per_teacher"
    registers: NonNegativeInt = 0
    position: Literal["learned", "cpe"] = "cpe"
    spectral: bool = False
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(weight_decay=0.02, clip=1.0))


def resolve(config: RadioConfig, samples: int) -> RadioConfig:
    """Fills what is None: learning rate 1e-3 (AM-RADIO sec. 4), 100 epochs; the smallest size of the last stage, or
    that of a given student."""
    size = config.size
    if size is None and config.stages:
        size = min(parse_stages(config.stages, 1)[-1].sizes)
    elif size is None and config.init is not None:
        size = given_student(config.init, config.load)[1]
    size = size or 224
    if config.teachers:
        config = replace(config, teacher={name: config.teacher.get(name, TeacherConfig()) for name in _known(config)})
    config = resolve_common(config, samples, lr=1e-3, epochs=100, size=size)
    if config.init is None:
        check_tiles("size", present(config.size), config.model)
    return config


def build(config: RadioConfig, source: Source) -> RadioTask:
    """The task for a resolved configuration: loads the teachers, and makes their student.

    Raises:
        ValueError: for teachers, sizes and statistics that do not go together.
    """
    _named(config)
    teachers = load_teachers(config.teachers, config.teacher)
    _check_bands(config, teachers)
    if config.init is None:
        for size in sorted({size for stage in parse_stages(config.stages, 1) for size in stage.sizes if config.stages}):
            check_tiles("stages", size, config.model)
        student = begun(config, teachers, of_bands(config, source))
    else:
        student, teachers = continued(config, teachers)
    _check_sizes(config, student, teachers)
    _check_stages(config)
    _check_rows(config, student, teachers)
    _check_dropping(config, teachers)
    for name in teachers if config.standardise != "none" else ():
        adaptor: Any = student.adaptors[name]
        if adaptor.config.patch_head.upsample > 1:
            told = f"the head of {name} answers on a finer grid, of which no standard form is known here"
            raise ValueError(f"standardise={config.standardise}: {told}; leave it out")
        adaptor.space = Standardiser(adaptor.config.patches, config.standardise)
    if config.spectral:
        if config.recompute:
            raise ValueError("spectral=true beside recompute=true: norms would be found twice a step; leave one out")
        spectral.spectral(student.backbone)
    return RadioTask(config, student, teachers)


def _named(config: RadioConfig) -> dict[str, str]:
    if not config.teachers:
        raise ValueError("teachers= is missing; give at least one, such as teachers=clip:runs/clip,dino:runs/dino")
    named = parse_teachers(config.teachers)
    added = [name for name in named if name.startswith(ADDED)]
    if config.init is None and added:
        raise ValueError(f"teachers={config.teachers}: {added[0]} is for a student that is given as init=")
    if config.init is not None and len(added) < len(named):
        mend = "type +name:MODEL for new ones; the student itself stands for those that it knows"
        raise ValueError(f"teachers={config.teachers}: beside init= only new teachers are named; {mend}")
    return {name.removeprefix(ADDED): model for name, model in named.items()}


def _known(config: RadioConfig) -> list[str]:
    """Names of all teachers, a given student's among them.

    Raises:
        ValueError: something is said of a name that is none.
    """
    named = list(_named(config))
    known = named if config.init is None else [*given_student(config.init, config.load)[0].config.adaptors, *named]
    for name in config.teacher:
        if name not in known:
            raise ValueError(f"teacher.{name}: is no teacher{nearest(name, known)}")
    return list(dict.fromkeys(known))


def _check_bands(config: RadioConfig, teachers: Mapping[str, Teacher]) -> None:
    for name, teacher in teachers.items():
        if teacher.model.channels != config.channels:
            raise ValueError(
                f"channels={config.channels}: the teacher {name} reads pictures of {teacher.model.channels} bands, and "
                "all are shown the same; give channels= as the teachers read it"
            )


def _check_sizes(config: RadioConfig, student: Student, teachers: Mapping[str, Teacher]) -> None:
    """Sees to it that patches and windows tile every size of the student, and that each has a teacher."""
    sizes = {size for stage in parse_stages(config.stages, present(config.size)) for size in stage.sizes}
    whose = config.model if config.init is None else f"the student in init={config.init}"
    check_tiles("size", present(config.size), whose, student.stride)
    for size in sorted(sizes):
        check_tiles("stages", size, whose, student.stride)
        grid = size // student.stride
        if config.shift > grid // 2:
            raise ValueError(f"shift={config.shift}: is more than half of the {grid} patches along {size} pixels")
        if not any(size in (teacher.config.at or (size,)) for teacher in teachers.values()):
            raise ValueError(f"no teacher takes part at {size} pixels; see teacher.NAME.at")
        for window in config.windows:
            if window and grid % window:
                told = ", ".join(str(side) for side in range(2, grid) if not grid % side)
                mend = f"give {told}" if told else "no others do"
                raise ValueError(f"windows={window}: do not tile the {grid} patches of {size} pixels; {mend}")
    for name, teacher in teachers.items():
        if unknown := sorted(set(teacher.config.at) - sizes):
            told = ", ".join(map(str, sorted(sizes)))
            raise ValueError(f"teacher.{name}.at={unknown[0]}: is no size of this run; these are {told}")
    if any(config.windows) and student.backbone.config.global_blocks >= student.backbone.config.depth:
        raise ValueError("windows= decides nothing: all blocks of the student attend over the whole picture")


def _check_dropping(config: RadioConfig, teachers: Mapping[str, Teacher]) -> None:
    """Refuses to drop teachers where no picture has two."""
    sizes = {size for stage in parse_stages(config.stages, present(config.size)) for size in stage.sizes}
    most = max(sum(size in (each.config.at or (size,)) for each in teachers.values()) for size in sizes)
    if config.drop_teachers and most < 2:
        told = f"decides nothing, for there is one teacher{' at each size' if len(teachers) > 1 else ''}"
        raise ValueError(f"drop_teachers={config.drop_teachers:g}: {told}; leave it out")


def _check_stages(config: RadioConfig) -> None:
    """Sees to it that each stage has steps, and each part of a batch pictures for all sizes."""
    stages = parse_stages(config.stages, present(config.size))
    starts = [first_step(stage.start, present(config.steps)) for stage in stages]
    for stage, begins, ends in zip(stages, starts, [*starts[1:], present(config.steps)], strict=True):
        if begins >= ends:
            raise ValueError(
                f"stages={config.stages}: of {config.steps} steps none is left for {stage.sizes[0]} pixels"
            )
    most = max(len(stage.sizes) for stage in stages)
    least = config.batch // config.devices // config.accumulate
    if least < most:
        raise ValueError(
            f"batch={config.batch}: {most} sizes at once need as many pictures in each part of a batch, not {least}"
        )


def _check_rows(config: RadioConfig, student: Student, teachers: Mapping[str, Teacher]) -> None:
    """Sees to it that there are patches enough for the statistics that are asked for, each time when they are taken."""
    if config.standardise not in ("pca", "zca"):
        return
    for name, teacher in teachers.items():
        channels = student.config.adaptors[name].patches
        for place, rows in enumerate(_rows(config, student.stride, teacher)):
            if rows <= channels:
                which = "first batch" if not place else "first step of a stage"
                raise ValueError(
                    f"standardise={config.standardise}: the {which} has {rows} patches of {name}, and whitening its "
                    f"{channels} channels needs more; give a larger batch, or standardise=phi_s"
                )


def _rows(config: RadioConfig, stride: int, teacher: Teacher) -> Iterator[int]:
    """Of how many patches a teacher's first statistics are taken, in each stage in which it takes part: of the first
    part of a batch where it is first seen, then of the whole first step."""
    seen = False
    for stage in parse_stages(config.stages, present(config.size)):
        patches = [_patches(teacher, size // stride) for size in stage.sizes if size in (teacher.config.at or (size,))]
        if not patches:
            continue
        pictures = config.batch // len(stage.sizes)
        yield sum(patches) * pictures if seen else patches[0] * (pictures // config.accumulate)
        seen = True


def _patches(teacher: Teacher, grid: int) -> int:
    return (teacher.view(grid).side // teacher.stride) ** 2


METHOD = Method(
    name="radio",
    summary="merge several teachers into one student that answers for all of them",
    config=RadioConfig,
    resolve=resolve,
    build=build,
    presets={
        # PHI-S, table 10 and sec. 4 (arXiv 2410.01680): plain MSE in standardised space, spectral reparametrisation
        "phi_s": {"standardise": "phi_s", "patch_loss": "mse", "spectral": True},
    },
    unused=(
        Unused("without init=", ("load",), lambda config: config.init is None),
        Unused(
            "beside init=, which tells it",
            ("model", "summary", "registers", "position"),
            lambda config: config.init is not None,
        ),
        Unused("without standardise=", ("settle",), lambda config: config.standardise == "none"),
        Unused("but with head=v2", ("head_blocks",), lambda config: config.head != "v2"),
        Unused("beside shift=, whose grid is the student's", ("match",), lambda config: config.shift > 0),
    ),
)
