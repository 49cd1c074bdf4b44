"""DINO: a student learns to say of one crop what its own slow average says of another (arXiv 2104.14294)."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, TypeVar

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from synoptic.config import Fraction, OptimConfig, Rate, Share, TrainConfig
from synoptic.data.sources import Source
from synoptic.data.transforms import MultiCrop, MultiCropConfig
from synoptic.losses import ssl
from synoptic.losses.targets import Centring, Targets
from synoptic.machine import memory
from synoptic.methods.base import (
    Collapsed,
    Diagnosis,
    Method,
    ParamGroup,
    Task,
    Unused,
    check_tiles,
    facts_of_bands,
    of_bands,
    resolve_common,
    split_by_depth,
    update_average,
)
from synoptic.methods.collapse import CollapseWatch
from synoptic.methods.start import LoadOptions, architecture, fingerprint, given_backbone
from synoptic.models.heads import DinoHead
from synoptic.models.vit import ViT, vit_config
from synoptic.types import Batch, present

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DinoConfig(TrainConfig):
    """Self-distillation without labels.

    What is taken over a batch (Sinkhorn-Knopp, KoLeo, batch norm in the head) is taken over each part of it where
    `accumulate` cuts it; batch norm also over the part of each of several processes.

    Attributes:
        init: a MODEL whose weights the backbone begins with; None draws random ones of the architecture `model`. The
            head is new: it learns alone at first, since what it asks of the backbone then is noise. What `model` names
            is then this model, whose mean and deviation of the bands are kept, too.
        load: what the file in `init` does not say itself.
        head_warmup: with `init`, share of the run in which the backbone stands still; its learning rate then rises over
            as long a share as `optim.warmup` says.
        max_drop: with `init`, share by which k-NN (without labels RankMe) may fall below that of the given weights
            before the run stops.
        prototypes: K, outputs of the head; None takes about a quarter of the number of pictures, between 256 and the
            paper's 65,536.
        head_hidden: width of the head's MLP.
        bottleneck: width in which prototypes are compared.
        head_norm: batch normalisation in the head's MLP, which steadies short runs with small batches.
        fixed_norm: prototypes stay of unit length.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's softmax, after its warm-up; above 0.07 training is unstable, and lower
            values help against collapse to the uniform distribution.
        teacher_temperature_start: where the warm-up begins.
        teacher_temperature_warmup: share of the run that the warm-up takes.
        sharpening: whether the teacher's softmax has a temperature of its own; without, it takes the student's, and
            training collapses to the uniform distribution.
        momentum: of the teacher's average of the student at the start; rises to 1 on a cosine.
        centring: what keeps any prototype from winning: "mean" subtracts the running mean of the teacher's outputs
            (the paper); "sinkhorn" balances the batch over the prototypes (DINOv2), steadier in short runs; "none"
            leaves it out, and training collapses to one prototype.
        centre_momentum: of the running mean of teacher outputs.
        queue: how many past outputs of the teacher on whole crops, of K numbers each, are balanced with the batch by
            "sinkhorn", for batches much smaller than the number of prototypes; a multiple of the two of each picture of
            a batch.
        freeze_last_layer: share of the run in which the prototypes stand still.
        koleo: weight of the KoLeo regulariser on the student's summaries of each large crop (DINOv2); 0 in the paper.
        drop_path: stochastic depth of the student.
        drop_path_uniform: the same in all blocks; otherwise it rises from the first to the last.
        layer_decay: factor of the learning rate from each block to the one below it.
        patch_embed_lr: factor of the learning rate of the patch embedding.
        guard: what happens when the learning collapses (see `synoptic.methods.collapse`): a warning that names how,
            and what helps, with "stop" the end of the run as well; "off" does not look.
        crops: multi-crop augmentation.
    """

    init: str | None = None
    load: LoadOptions = field(default_factory=LoadOptions)
    head_warmup: Fraction = 0.1
    max_drop: Share = 0.1
    prototypes: PositiveInt | None = None
    head_hidden: PositiveInt = 2048
    bottleneck: PositiveInt = 256
    head_norm: bool = False
    fixed_norm: bool = True
    student_temperature: PositiveFloat = 0.1
    teacher_temperature: PositiveFloat = 0.04
    teacher_temperature_start: PositiveFloat = 0.04
    teacher_temperature_warmup: Share = 0.1
    sharpening: bool = True
    momentum: Share = 0.996
    centring: Centring = "mean"
    centre_momentum: Fraction = 0.9
    queue: NonNegativeInt = 0
    freeze_last_layer: Share = 0.01
    koleo: NonNegativeFloat = 0.0
    drop_path: Fraction = 0.1
    drop_path_uniform: bool = False
    layer_decay: Rate = 1.0
    patch_embed_lr: Rate = 1.0
    guard: Literal["warn", "stop", "off"] = "warn"
    crops: MultiCropConfig = field(default_factory=MultiCropConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            weight_decay=0.04, final_weight_decay=0.4, final_lr=2e-3, clip=3.0, clip_by="tensor"
        )
    )


DinoConfigT = TypeVar("DinoConfigT", bound=DinoConfig)


class Network(nn.Module):
    """A backbone with DINO's head."""

    def __init__(self, backbone: ViT, head: DinoHead):
        super().__init__()
        self.backbone = backbone
        self.head = head


class DinoTask(Task):
    """Student and teacher of DINO.

    Args:
        config: resolved configuration.
        student: the teacher starts as its copy, without stochastic depth.
    """

    def __init__(self, config: DinoConfig, student: Network):
        super().__init__()
        self.config = config
        self.largest_fall = config.max_drop if config.init is not None else None
        self.multi_crop = MultiCrop(config.crops)
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False)
        self.teacher.backbone.eval()
        self.targets = Targets(present(config.prototypes), config.centring, config.centre_momentum, config.queue)
        self.watch = CollapseWatch(config)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.backbone.eval()  # without stochastic depth; norms in the head use the batch, as the student's
        return self

    @property
    def reads(self) -> int:
        return max(present(self.config.crops.global_size), present(self.config.crops.local_size))

    def facts(self) -> dict[str, str]:
        return facts(self.student.backbone, self.config)

    def prepare(self, batch: Batch, seed: int) -> Batch:
        return self.multi_crop(batch, seed)

    def teacher_temperature(self, progress: float) -> float:
        config = self.config
        if not config.sharpening:
            return config.student_temperature
        warmup, (_, progress) = config.teacher_temperature_warmup, self.phase(progress)
        share = min(progress / warmup, 1.0) if warmup else 1.0
        start = config.teacher_temperature_start
        return start + share * (config.teacher_temperature - start)

    def teacher_momentum(self, progress: float) -> float:
        _, progress = self.phase(progress)
        return 1.0 - (1.0 - self.config.momentum) * (math.cos(math.pi * progress) + 1.0) / 2.0

    def losses(self, batch: Batch, progress: float) -> Iterator[dict[str, Tensor]]:
        crops = stacked(batch.crops)
        with torch.no_grad():
            logits = self.teacher.head(self.teacher.backbone(crops[0]).summary)
        targets = self.image_targets(logits, progress)
        summaries = torch.cat([present(features.summary) for features in self.student.backbone(crops)])
        yield self.image_terms(summaries, targets)

    def image_targets(self, logits: Tensor, progress: float) -> Tensor:
        """(2B, K) what the student should say of the two large crops, from what the teacher does."""
        seen = round(progress * present(self.config.steps)) * 2 * self.config.batch
        return self.targets(logits, self.teacher_temperature(progress), seen, self.group)

    def image_terms(self, summaries: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The loss of whole crops, and what tells how the learning fares.

        Args:
            summaries: (crops * B, D) of the student, crop by crop, large ones first.
            targets: (2B, K) of the teacher for the large ones.
        """
        size = len(targets) // 2
        student = self.student.head(summaries).split(size)
        loss = ssl.dino(student, targets.split(size), self.config.student_temperature)
        terms = {"loss": loss, "dino": loss.detach()}
        if self.config.koleo:
            views = summaries[: 2 * size].split(size)
            spread = torch.stack([ssl.koleo(view, group=self.group) for view in views]).sum()
            terms["loss"] = loss + self.config.koleo * spread
            terms["koleo"] = spread.detach()
        terms["target_entropy"] = ssl.entropy(targets)
        terms["prototypes_used"] = self.targets.prototypes_used()
        terms["agreement"] = ssl.agreement(student[1].detach(), targets[:size])
        return terms

    def before_step(self, progress: float) -> None:
        hold_backbone(self.student, self.config, progress)
        if self.phase(progress)[1] < self.config.freeze_last_layer:
            for parameter in self.last_layers():
                parameter.grad = None

    def last_layers(self) -> Iterator[nn.Parameter]:
        """The prototypes of the student."""
        yield from self.student.head.last_layer.parameters()

    def after_step(self, progress: float) -> None:
        update_average(self.teacher, self.student, self.teacher_momentum(progress))
        self.targets.update(self.group)

    def memory(self) -> dict[str, Any]:
        return self.watch.state()

    def recall(self, memory: Mapping[str, Any]) -> None:
        self.watch.load(memory)

    def expected_losses(self) -> dict[str, float]:
        return {"dino": math.log(present(self.config.prototypes))}

    def diagnose(self, terms: Mapping[str, float], scores: Mapping[str, float], progress: float) -> Diagnosis | None:
        found = self.collapse(terms, scores, progress) if self.config.guard != "off" else None
        if found and self.config.guard == "stop":
            raise Collapsed(f"stopped, since the learning collapsed, {found}")
        return found

    def collapse(self, terms: Mapping[str, float], scores: Mapping[str, float], progress: float) -> Diagnosis | None:
        """How the learning has collapsed, told once."""
        return self.watch.look({**terms, "loss": terms["dino"]}, scores, progress)

    def parameter_groups(self) -> list[ParamGroup]:
        return parameter_groups(self.student, self.config)

    def networks(self) -> Iterator[nn.Module]:
        yield from self.student.children()

    def shard_units(self) -> Iterator[nn.Module]:
        yield from self.student.backbone.blocks
        yield from self.teacher.backbone.blocks

    def exported(self) -> nn.Module:
        return self.teacher.backbone


def facts(backbone: ViT, config: DinoConfig) -> dict[str, str]:
    """What a run depends on beside its configuration, asked before its first step."""
    given = {} if config.init is None else {"init.weights": fingerprint(backbone)}
    return {**given, **facts_of_bands(config, backbone.config)}


def parameter_groups(student: nn.Module, config: DinoConfig) -> list[ParamGroup]:
    """The parameters of a student with a `backbone`, which learns later than the rest where it was given."""
    groups = split_by_depth(student.named_parameters(), config.layer_decay, config.patch_embed_lr)
    if config.init is None:
        return groups
    given = {id(parameter) for name, parameter in student.named_parameters() if name.startswith("backbone.")}
    found = []
    for group in groups:
        parts = ([p for p in group.params if id(p) not in given], [p for p in group.params if id(p) in given])
        late = replace(group, params=parts[1], start=config.head_warmup, warmup=config.optim.warmup)
        found += [replace(group, params=parts[0]), replace(late, name=f"{group.name} of the backbone")]
    return [group for group in found if group.params]


def hold_backbone(student: nn.Module, config: DinoConfig, progress: float) -> None:
    """Leaves a given backbone out of a step while the head learns alone: out of the moments of its gradients and out
    of the norm by which gradients are clipped, too, since what a new head asks of it is noise."""
    if config.init is not None and progress < config.head_warmup:
        for name, parameter in student.named_parameters():
            if name.startswith("backbone."):
                parameter.grad = None


def stacked(crops: tuple[Tensor, ...]) -> list[Tensor]:
    """The two large crops in one tensor, and the small ones, where there are any, in another."""
    return [torch.cat(part) for part in (crops[:2], crops[2:]) if part]


def resolve(config: DinoConfigT, samples: int) -> DinoConfigT:
    """Fills what the data decide: learning rate 5e-4 * batch / 256 and 100 epochs (paper), prototypes, crop sizes."""
    size = config.size or config.crops.global_size or 224
    if config.init is not None:
        given = architecture(config.model, config.init, config.load)
        size = (
            config.size or config.crops.global_size or min(given.image_size, 224 // given.patch_size * given.patch_size)
        )
        config = replace(config, model=config.init)
    config = resolve_common(config, samples, lr=5e-4 * config.batch / 256, epochs=100, size=size)
    if config.queue % (2 * config.batch):
        near = -(-config.queue // (2 * config.batch)) * 2 * config.batch
        raise ValueError(f"queue={config.queue}: holds whole steps of 2 x batch={config.batch}; the nearest is {near}")
    if config.init is not None and config.head_warmup + config.optim.warmup > 1.0:
        raise ValueError(
            f"head_warmup={config.head_warmup:g}: with optim.warmup={config.optim.warmup:g} after it, the backbone "
            "never reaches its learning rate; both together take at most 1"
        )
    prototypes = config.prototypes or min(max(2 ** round(math.log2(max(samples, 1) / 4)), 256), 65536)
    taken = matrix_bytes(prototypes, config.bottleneck)
    check_memory(f"prototypes={prototypes}: with bottleneck={config.bottleneck} they", taken, config.device)
    hidden = matrix_bytes(config.head_hidden, config.head_hidden)
    check_memory(f"head_hidden={config.head_hidden}: the head's weights", hidden, config.device)
    check_memory(
        f"queue={config.queue}: with prototypes={prototypes} its rows", 4 * config.queue * prototypes, config.device
    )
    # Small crops keep the paper's proportion of 96 to 224, rounded to whole patches.
    patch = architecture(config.model, config.init, config.load).patch_size
    large = config.crops.global_size or size
    small = config.crops.local_size or max(round(large * 96 / 224 / patch), 1) * patch
    for key, side in {"size": size, "crops.global_size": large, "crops.local_size": small}.items():
        check_tiles(key, side, config.model, patch)
    crops = replace(config.crops, global_size=large, local_size=small)
    return replace(config, prototypes=prototypes, crops=crops)


def matrix_bytes(rows: int, columns: int) -> int:
    """Bytes that a matrix takes in training: the student's, its gradient and two moments, and the teacher's."""
    return 5 * 4 * rows * columns


def check_memory(what: str, needed: int, device: str) -> None:
    """Refuses what the memory of the device cannot hold.

    Args:
        what: the setting, as the beginning of a sentence.
        needed: bytes.
        device: "auto", "cpu" or "cuda".
    """
    on_gpu = device != "cpu" and torch.cuda.is_available()
    there = torch.cuda.get_device_properties(0).total_memory if on_gpu else memory()
    if there is not None and needed > there:
        raise ValueError(f"{what} take {needed / 1e9:.0f} GB, and there are {there / 1e9:.0f}; give less")


def tell_if_few(config: DinoConfig, samples: int) -> None:
    """Warns where a batch or a data set is too small for what is taken over it."""
    if min(config.batch, samples) < 2:
        told = "one picture a batch has no neighbours to be spread from, and hardly any rows to balance: take more"
        log.warning("batch=%d of %d pictures: %s", config.batch, samples, told)


def build(config: DinoConfig, source: Source) -> DinoTask:
    """The task for a resolved configuration; of the pictures only their number and statistics play a part in it."""
    tell_if_few(config, len(source))
    vit = backbone(config, source)
    return DinoTask(
        config, Network(vit, head(config, vit.summary_width, present(config.prototypes), config.bottleneck))
    )


def backbone(config: DinoConfig, source: Source, mask_token: bool = False, **shape: Any) -> ViT:
    """The student's ViT for the pictures of a source.

    Args:
        config: resolved.
        source: the pictures, whose statistics count where they are read at full depth.
        mask_token: whether patches are hidden from it.
        shape: what its configuration says besides; given weights have a shape of their own.
    """
    depth = {"drop_path": config.drop_path, "drop_path_uniform": config.drop_path_uniform}
    if config.init is None:
        changes = {**depth, **shape, **of_bands(config, source), "mask_token": mask_token}
        return ViT(vit_config(config.model, image_size=config.size, **changes))
    vit = given_backbone(config.init, config.load, **depth, mask_token=mask_token)
    if not vit.summary_width:
        raise ValueError(f"init={config.init}: has no summary token, which is what is taught here")
    if vit.channels != config.channels:
        raise ValueError(f"init={config.init}: reads {vit.channels} bands, not channels={config.channels}")
    return vit


def head(config: DinoConfig, width: int, prototypes: int, bottleneck: int) -> DinoHead:
    """A head on features of the student that are so wide."""
    sizes = (config.head_hidden, bottleneck)
    return DinoHead(width, prototypes, *sizes, norm=config.head_norm, fixed_norm=config.fixed_norm)


# DINO with the batch balancing of DINOv2 and a teacher that follows quickly, for runs of some hundred steps on some
# thousand pictures, which learn nothing from the paper's soft targets and slow average.
# Command: synoptic train dino preset=short data=DIR out=RUN model=vit_nano8 size=32 batch=128 steps=900, with the
#     colours of the demo (synoptic/apps/demo_recipe.py) on its 6,000 pictures of single objects.
# Hardware and time: one CPU core, six minutes.
# Score: k-NN over 10 shapes 0.40 (seed 1; raw pixels 0.34, untrained 0.13). Runs: docs/log.md.
SHORT: Mapping[str, Any] = {
    "optim.lr": 1.4e-3,
    "optim.final_weight_decay": 0.1,
    "teacher_temperature": 0.01,
    "teacher_temperature_start": 0.01,
    "momentum": 0.9,
    "centring": "sinkhorn",
    "prototypes": 1024,
    "head_hidden": 512,
    "bottleneck": 128,
    "head_norm": True,
    "koleo": 0.05,
    "drop_path": 0.0,
    "optim.clip_by": "all",
    "crops.local_count": 0,
}

# `short` with small crops, without which learning from photographs is flat after some hundred steps.
# Command: synoptic train dino preset=photos data=imagenette96/train out=RUN devices=2
# Hardware and time: two CPU cores, 22 minutes.
# Score: 10-NN of 1,000 test photographs among 5,000 0.584 (hand-made features 0.485, untrained 0.315; seed 0), by
#     benchmarks/ssl_photographs.py.
PHOTOS: Mapping[str, Any] = {
    **SHORT,
    "model": "vit_mini16",
    "size": 64,
    "batch": 128,
    "steps": 1800,
    "crops.local_count": 4,
    "evaluate_every": 300,
}

UNUSED = (
    Unused(
        "beside another crops.global_size",
        ("size",),
        lambda config: config.crops.global_size not in (None, config.size),
    ),
    Unused("beside init=, which has an architecture of its own", ("model",), lambda config: config.init is not None),
    Unused("without init=", ("load", "head_warmup", "max_drop"), lambda config: config.init is None),
    Unused("where centring is not sinkhorn", ("queue",), lambda config: config.centring != "sinkhorn"),
    Unused("where centring is not mean", ("centre_momentum",), lambda config: config.centring != "mean"),
    Unused(
        "with sharpening=false",
        ("teacher_temperature", "teacher_temperature_start", "teacher_temperature_warmup"),
        lambda config: not config.sharpening,
    ),
)

METHOD = Method(
    name="dino",
    summary="learn to see without labels, by self-distillation over crops",
    config=DinoConfig,
    resolve=resolve,
    build=build,
    rankme=True,
    presets={"short": SHORT, "photos": PHOTOS},
    unused=UNUSED,
)
