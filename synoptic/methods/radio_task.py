"""The training of a student by several frozen teachers, at one or several resolutions at once.

Source: AM-RADIO (arXiv 2312.06709), PHI-S (arXiv 2410.01680), RADIOv2.5 (arXiv 2412.07679), C-RADIOv4 (arXiv
2601.17237).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from synoptic.data.draws import Draws
from synoptic.losses import distillation
from synoptic.losses.balance import Balancer, teacher_weights
from synoptic.losses.distillation import Dispersion
from synoptic.losses.standardise import Standardiser
from synoptic.methods.base import ParamGroup, Phase, Task, facts_of_bands, split_by_decay
from synoptic.methods.teachers import Teacher
from synoptic.methods.views import Asked, Shown, overlap, parse_stages, parts_of
from synoptic.models import spectral
from synoptic.models.adaptors import Student
from synoptic.types import Batch, Features, present

if TYPE_CHECKING:
    from synoptic.methods.radio import RadioConfig

ROWS = (
    8192  # patches a step that a teacher's statistics are taken of, at most: their covariance costs rows x channels^2
)


@dataclass(frozen=True)
class Compared:
    """One comparison of a student with its teachers.

    Attributes:
        features: of the student's trunk.
        answers: of its heads, by teacher, patches in standard form.
        said: by the teachers.
        terms: losses by name, means over the pictures.
    """

    features: Features
    answers: Mapping[str, Features]
    said: Mapping[str, Features]
    terms: Mapping[str, Tensor]


class RadioTask(Task):
    """A student and its teachers; every teacher sees the same crop of each picture as the student, in its own size.

    Args:
        config: resolved configuration.
        student: one adaptor a teacher.
        teachers: by the adaptors' names.
    """

    def __init__(self, config: RadioConfig, student: Student, teachers: Mapping[str, Teacher]):
        super().__init__()
        self.config = config
        self.student: Any = student
        self.teachers = dict(teachers)  # not submodules: they are neither trained nor saved with the run
        self.stages = parse_stages(config.stages, present(config.size))
        self.phases = tuple(Phase(stage.start) for stage in self.stages)
        self.resolution = present(config.size)
        self.shown = {size: self._shown(size) for stage in self.stages for size in stage.sizes}
        weights = {name: weight for teacher in teachers for name, weight in self._weights(teacher).items()}
        self.balancer = Balancer(weights, config.balance)
        widths = {name: part.summary for name, part in student.config.adaptors.items() if part.summary is not None}
        angular = config.summary_loss == "angle"
        self.dispersions = nn.ModuleDict({name: Dispersion(width) for name, width in widths.items() if angular})
        self.stage = -1  # of the last step
        self.looks: dict[str, int] = {}  # steps that looked at each teacher, in this stage
        self.is_closed = False  # whether the statistics of this stage are all taken
        self.settled: set[str] = set()  # teachers whose statistics were ever taken
        self.due: set[str] = set()  # those whose statistics are taken anew before the next step
        self.last_step = -1

    def _shown(self, size: int) -> Shown:
        config = self.config
        asked = {name: each for name, each in self.teachers.items() if size in (each.config.at or (size,))}
        stride = self.student.stride
        return Shown(size, stride, asked, config.crop_scale, config.flip, config.shift)

    def _weights(self, name: str) -> dict[str, float]:
        config, speaks = self.teachers[name].config, self.student.config.adaptors[name].summary is not None
        summary = {f"{name}.summary": config.summary_weight} if speaks else {}
        return {f"{name}.patches": config.patches_weight, **summary}

    @property
    def reads(self) -> int:
        return max(shown.largest for shown in self.shown.values())

    def facts(self) -> dict[str, str]:
        teachers = {f"teachers.{name}": teacher.fingerprint() for name, teacher in self.teachers.items()}
        return teachers | facts_of_bands(self.config, self.student.config.backbone)

    def _apply(self, *args: Any, **kwargs: Any) -> RadioTask:  # the teachers follow the student to its device
        for teacher in self.teachers.values():
            teacher._apply(*args, **kwargs)
        return super()._apply(*args, **kwargs)

    def memory(self) -> dict[str, Any]:
        sets = {"settled": sorted(self.settled), "due": sorted(self.due)}
        place = {"stage": self.stage, "last_step": self.last_step, "is_closed": self.is_closed}
        return {**place, "looks": dict(self.looks), **sets}

    def recall(self, memory: Mapping[str, Any]) -> None:
        self.stage, self.looks, self.last_step = memory["stage"], dict(memory["looks"]), memory["last_step"]
        self.is_closed = memory["is_closed"]
        self.settled, self.due = set(memory["settled"]), set(memory["due"])

    def prepare(self, batch: Batch, seed: int) -> Batch:
        """Crops each picture once at random, and resamples the crop to every size that student and teachers read."""
        step = self._step(batch)
        sizes = self._sizes(step)
        self.passes = len(sizes)
        crops: list[Tensor] = []
        for size, (part, _) in zip(sizes, parts_of(batch, len(sizes)), strict=True):
            crops += self.shown[size].crops(part, step, seed).values()
        return replace(batch, images=None, sizes=None, crops=tuple(crops))

    def losses(self, batch: Batch, progress: float) -> Iterator[dict[str, Tensor]]:
        step = self._step(batch)
        sizes = self._sizes(step)
        position = present(batch.position).cpu()
        self._begin_step(step, progress)
        crops = list(batch.crops)
        for place, size in enumerate(sizes):
            rows = position[position % len(sizes) == place]
            asked = self.shown[size].asked(step, self.config.seed)
            views = {each: crops.pop(0) for each in dict.fromkeys(asked.values())}
            found = self._compared(self.shown[size], asked, views, rows, progress)
            share = len(rows) / len(position)
            loss = (self.balancer(found.terms, self.group) + self._idle(self.shown[size], progress)) * share
            told = {name: self._told(name, term, sizes) for name, term in found.terms.items()}
            yield {"loss": loss, **told, **self._health(found, step, share, sizes)}

    def _compared(
        self, shown: Shown, asked: Mapping[str, Asked], views: Mapping[Asked, Tensor], rows: Tensor, progress: float
    ) -> Compared:
        """What student and teachers say at one size, and the losses that come of it."""
        said = {name: self.teachers[name].seen(views[asked[name]], view) for name, view in shown.views.items()}
        for name, theirs in said.items():
            self._watch(name, theirs, progress)  # first, since it may change the student's heads
        for teacher in self.teachers.values():
            if teacher.is_former:
                teacher.model.forget()
        features = self._trunk(views[asked[""]], self._window(int(rows[0])), progress)
        answers = {name: each.float() for name, each in self.student.standard(features, list(said)).items()}
        places = {name: (asked[""].offset, asked[name].offset) for name in said}
        singly = {name: self._losses_of(name, answers[name], said[name], *places[name]) for name in said}
        factors = self._factors(singly, rows)
        terms = {term: (factors[name] * each).mean() for name, found in singly.items() for term, each in found.items()}
        return Compared(features, answers, said, terms)

    def _trunk(self, images: Tensor, window: int | None, progress: float) -> Features:
        """What the heads read; of a frozen trunk no gradient is taken."""
        if not self._is_frozen(progress):
            return self.student.backbone(images, window=window)
        with torch.no_grad():
            features = self.student.backbone(images, window=window)
        summary = None if features.summary is None else features.summary.requires_grad_()
        return replace(features, patches=features.patches.requires_grad_(), summary=summary)  # for `_health`

    def _losses_of(
        self, name: str, mine: Features, theirs: Features, at: tuple[int, int], there: tuple[int, int]
    ) -> dict[str, Tensor]:
        """(B,) losses of a teacher's patches and summary, where both have one."""
        config, space = self.config, self.student.adaptors[name].space
        target = theirs.patches if space is None else space(theirs.patches)
        if not config.shift:
            first, second = distillation.on_one_grid(mine.patches, mine.grid, target, theirs.grid, config.match)
        else:
            finer = self.student.adaptors[name].config.patch_head.upsample  # offsets are in cells of the trunk
            at, there = ((down * finer, across * finer) for down, across in (at, there))
            places = [each.to(target.device) for each in overlap(at, there, mine.grid[0])]
            first = mine.patches[:, places[0]]
            second = distillation.on_grid(target, theirs.grid, mine.grid)[:, places[1]]
        losses = {f"{name}.patches": distillation.patch_match(first, second, config.patch_loss)}
        if mine.summary is not None and theirs.summary is not None:
            spread = None
            if name in self.dispersions:
                dispersion: Any = self.dispersions[name]
                dispersion.update(theirs.summary, self.group)
                spread = dispersion.value
            kind = config.summary_loss
            losses[f"{name}.summary"] = distillation.summary_match(mine.summary, theirs.summary, kind, spread)
        return losses

    def _factors(self, singly: Mapping[str, Mapping[str, Tensor]], rows: Tensor) -> dict[str, Tensor]:
        """(B,) what each teacher's losses are multiplied by: 1, or where teachers are dropped 0 or more."""
        first = next(iter(next(iter(singly.values())).values()))
        if not self.config.drop_teachers or len(singly) < 2:
            return {name: torch.ones_like(first) for name in singly}
        weights = self.balancer.factors()
        total = [
            torch.stack([weights[term] * each for term, each in found.items()]).sum(0) for found in singly.values()
        ]
        draws = Draws(self.config.seed, rows).uniform("drop_teachers", count=len(singly)).to(first.device)
        kept = teacher_weights(torch.stack(total, 1), draws, self.config.drop_teachers, self.group)
        return dict(zip(singly, kept.unbind(1), strict=True))

    def _idle(self, shown: Shown, progress: float) -> Tensor | float:
        """Nothing, to which a frozen trunk belongs, and the heads of teachers that do not take part at a size: where
        several processes train, every parameter waits for the gradients of all."""
        if self.group.size == 1:
            return 0.0
        idle = [self.student.adaptors[name] for name in self.teachers if name not in shown.views]
        idle += [self.student.backbone] if self._is_frozen(progress) else []
        parameters = [each for part in idle for each in part.parameters() if each.requires_grad]
        return torch.stack([each.sum() for each in parameters]).sum() * 0.0 if parameters else 0.0

    def _told(self, name: str, value: Tensor, sizes: Sequence[int]) -> Tensor:
        """Something's part of its mean over those sizes at which its teacher takes part."""
        teacher = name.partition(".")[0]
        return value.detach() / sum(teacher in self.shown[each].views for each in sizes)

    def _health(self, found: Compared, step: int, share: float, sizes: Sequence[int]) -> dict[str, Tensor]:
        """In steps that are logged: whose gradients move the trunk, and whether answers vary as much as their targets.

        "gradient/TERM" is the norm of a term's gradient at the trunk's features, weighted as in the loss, over the sum
        of all; "spread/TEACHER" the deviation of the student's patches over that of the teacher's, in standard form.
        """
        if step and (step + 1) % self.config.log_every:
            return {}
        weights, inputs = self.balancer.factors(), (found.features.summary, found.features.patches)
        norms = {name: _pull(term * weights[name], inputs) for name, term in found.terms.items()}
        whole = torch.stack(list(norms.values())).sum().clamp(min=torch.finfo(torch.float32).tiny)
        shares = {f"gradient/{name}": norm / whole * share for name, norm in norms.items()}
        spreads = {}
        for name, theirs in found.said.items():
            space = self.student.adaptors[name].space
            target = theirs.patches if space is None else space(theirs.patches)
            ratio = _deviation(found.answers[name].patches) / _deviation(target).clamp(min=1e-12)
            spreads[f"spread/{name}"] = self._told(name, ratio, sizes)
        return shares | spreads

    def _begin_step(self, step: int, progress: float) -> None:
        """Before the first part of a step: goes over to new statistics, so that all its gradients are of one form."""
        if step == self.last_step:
            return
        self.last_step = step
        spaces = self._spaces()
        for name in sorted(self.due):
            self._settle(name, spaces[name])
        self.due.clear()
        asked = {name for size in self._sizes(step) for name in self.shown[size].views if name in spaces}
        stage = self.phases.index(self.phase(progress)[0])
        if stage != self.stage:
            self.stage, self.looks, self.is_closed = stage, {}, False
            for name in asked:
                spaces[name].restart()
        if self._is_looking(progress):
            self.looks = {name: self.looks.get(name, 0) + 1 for name in sorted(asked)}
            self.due = {name for name, looks in self.looks.items() if looks & (looks - 1) == 0}
        elif not self.is_closed:
            self.due, self.is_closed = set(self.looks), True

    def _is_looking(self, progress: float) -> bool:
        return self.phase(progress)[1] < self.config.settle

    def _is_frozen(self, progress: float) -> bool:
        return self.phase(progress)[1] < self.config.freeze

    def _watch(self, name: str, theirs: Features, progress: float) -> None:
        """Takes a teacher's statistics in the first part of a stage, and goes over to them ever more rarely: at once
        when it is first seen, after the first, second, fourth, ... step, and when that part is over."""
        space = self._spaces().get(name)
        if space is None or (name in self.settled and not self._is_looking(progress)):
            return
        patches = theirs.patches.flatten(0, 1)
        if len(patches) > ROWS:  # at random, since a step of rows may hit a single column of every picture
            draws = Draws(self.config.seed, torch.tensor([self.last_step])).uniform("statistics", count=len(patches))
            patches = patches[draws[0].argsort()[:ROWS].to(patches.device)]
        space.observe(patches, self.group)
        if name not in self.settled:
            self._settle(name, space)

    def _settle(self, name: str, space: Standardiser) -> None:
        """Goes over to new statistics; a head that has learned, and its average, go on to answer as they did, in the
        teacher's own space."""
        learned = name in self.settled or self.teachers[name].is_former
        averages: list[Any] = [average.adaptors[name] for average in cast(Any, self.averages)]
        heads = [self.student.adaptors[name], *averages]
        if learned:
            for adaptor in heads:
                adaptor.space.fold(adaptor.patch_head.last)
        space.settle(self.group)
        for average in averages:
            average.space.load_state_dict(space.state_dict())
        if learned:
            for adaptor in heads:
                adaptor.space.unfold(adaptor.patch_head.last)
        self.settled.add(name)

    def _spaces(self) -> dict[str, Standardiser]:
        found = {name: self.student.adaptors[name].space for name in self.teachers}
        return {name: space for name, space in found.items() if space is not None}

    def _window(self, position: int) -> int | None:
        """The side in patches of the windows in which the student's blocks attend in this step."""
        windows = self.config.windows
        if not windows:
            return None
        step = torch.tensor([position // self.config.batch])
        return windows[int(Draws(self.config.seed, step).integers("window", len(windows))[0])] or None

    def _step(self, batch: Batch) -> int:
        return int(present(batch.position)[0]) // self.config.batch

    def _sizes(self, step: int) -> tuple[int, ...]:
        phase, _ = self.phase(step / present(self.config.steps))
        return self.stages[self.phases.index(phase)].sizes

    def before_step(self, progress: float) -> None:
        if self._is_frozen(progress):
            for parameter in self.student.backbone.parameters():
                parameter.grad = None

    def parameter_groups(self) -> list[ParamGroup]:
        balance = ((f"balancer.{name}", each) for name, each in self.balancer.named_parameters())
        return split_by_decay(iter([*self.student.named_parameters(), *balance]))

    def shard_units(self) -> Iterator[nn.Module]:
        yield from self.student.backbone.blocks

    def frozen_units(self) -> Iterator[nn.Module]:
        for teacher in self.teachers.values():
            yield from teacher.blocks()

    def exported(self) -> nn.Module:
        return self.student

    def finished(self, model: nn.Module) -> nn.Module:
        """The student without what only its training needed: its heads answer in the teachers' own spaces."""
        student: Any = model
        spectral.fold(student)
        for adaptor in student.adaptors.values():
            if adaptor.space is not None:
                adaptor.space.fold(adaptor.patch_head.last)
                adaptor.space = None
        return student


def _pull(term: Tensor, inputs: Sequence[Tensor | None]) -> Tensor:
    """The norm of a term's gradient at some of the tensors that it was computed from."""
    wanted = [each for each in inputs if each is not None]
    found = torch.autograd.grad(term, wanted, retain_graph=True, allow_unused=True)
    return torch.stack([each.float().norm() for each in found if each is not None]).norm()


def _deviation(patches: Tensor) -> Tensor:
    """The root of the mean variance of (B, N, D) patches' channels."""
    return patches.detach().flatten(0, 1).var(dim=0, correction=0).mean().sqrt()
