"""DINOv2: DINO on whole crops and iBOT on hidden patches, balanced by Sinkhorn-Knopp, spread by KoLeo.

Source: Oquab et al. 2024 (arXiv 2304.07193); iBOT: Zhou et al. 2022 (arXiv 2111.07832).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field as Bound
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from synoptic.config import Fraction, OptimConfig, Rate, Share
from synoptic.data.masking import MaskConfig, draw_masks
from synoptic.data.sources import Source
from synoptic.data.transforms import MultiCrop, MultiCropConfig
from synoptic.losses import ssl
from synoptic.losses.targets import Centring, Targets
from synoptic.methods import dino
from synoptic.methods.base import Diagnosis, Method, Phase, Unused
from synoptic.methods.collapse import CollapseWatch
from synoptic.methods.dino import DinoConfig, DinoTask, Network, stacked
from synoptic.methods.feature_distillation import FeatureDistillation
from synoptic.methods.start import architecture
from synoptic.methods.teachers import load_teacher
from synoptic.models.heads import DinoHead
from synoptic.models.layers import FeedForward
from synoptic.models.vit import ViT
from synoptic.types import Batch, present


@dataclass(frozen=True, kw_only=True)
class HighResolutionConfig:
    """A last phase with larger pictures, for features that are fine in detail (DINOv2 sec. 4 and app. B.2).

    Positions follow, since their table is resampled to the grid at hand. All schedules begin anew and run their course
    in the phase, of learning rate, weight decay, temperature and average alike. With such a phase the model is judged
    and exported for the larger pictures.

    Attributes:
        share: of the run that it takes; 0 leaves it out.
        scale: side of its crops over that of the crops before, rounded to whole patches (518 / 224 in the paper).
        lr_scale: its learning rates over those of the run before; the paper lowers them, and does not say by how much.
    """

    share: Fraction = 0.0
    scale: Annotated[float, Bound(ge=1)] = 518 / 224
    lr_scale: PositiveFloat = 0.25


@dataclass(frozen=True, kw_only=True)
class Dinov2Config(DinoConfig):
    """Self-distillation of crops and of hidden patches, without labels.

    The mask token takes the place of a patch after the patch embedding. A convolutional stem (`vit_nano*`, `vit_mini*`)
    looks over the edges of patches, so that a little of a hidden one is seen in its neighbours.

    Attributes:
        teacher: a MODEL, frozen, whose features the student learns in place of its own average's targets: then there
            are no heads, masks or stochastic depth, nothing is guarded against collapse, and an average of the student
            (`optim.ema`) is the final model.
        ibot: weight of the loss of hidden patches; 0 leaves it out.
        heads: "tied" judges patches by the head of whole crops (iBOT), "untied" by one of their own (DINOv2).
        patch_prototypes: outputs of the patches' own head; None takes as many as of the other.
        patch_bottleneck: width in which those are compared.
        masks: which patches are hidden.
        registers: tokens that take over what models else keep in patches (arXiv 2309.16588). With `init` their number,
            `layer_scale` and `feed_forward` are those of the given weights.
        layer_scale: initial factor of each residual branch; None leaves LayerScale out.
        feed_forward: of the blocks; None takes what the architecture has by its name.
        high_resolution: a last phase with larger pictures.
    """

    teacher: str | None = None
    ibot: NonNegativeFloat = 1.0
    heads: Literal["tied", "untied"] = "untied"
    patch_prototypes: PositiveInt | None = None
    patch_bottleneck: PositiveInt = 256
    masks: MaskConfig = field(default_factory=MaskConfig)
    registers: NonNegativeInt = 0
    layer_scale: PositiveFloat | None = 1e-5
    feed_forward: FeedForward | None = None
    high_resolution: HighResolutionConfig = field(default_factory=HighResolutionConfig)
    fixed_norm: bool = False
    centring: Centring = "sinkhorn"
    koleo: NonNegativeFloat = 0.1
    momentum: Share = 0.992
    teacher_temperature: PositiveFloat = 0.07
    teacher_temperature_warmup: Share = 0.3
    layer_decay: Rate = 0.9
    patch_embed_lr: Rate = 0.2
    drop_path: Fraction = 0.3
    drop_path_uniform: bool = True
    crops: MultiCropConfig = field(
        default_factory=lambda: MultiCropConfig(global_scale=(0.32, 1.0), local_scale=(0.05, 0.32))
    )
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            weight_decay=0.04, final_weight_decay=0.4, final_lr=2.5e-4, clip=3.0, clip_by="module"
        )
    )


class PatchNetwork(Network):
    """A backbone with a head for whole crops and one for patches, which may be the same."""

    def __init__(self, backbone: ViT, head: DinoHead, patch_head: DinoHead | None):
        super().__init__(backbone, head)
        self.own_patch_head = patch_head

    @property
    def patch_head(self) -> DinoHead:
        return self.own_patch_head or self.head


class Dinov2Task(DinoTask):
    """DINO's student and teacher, which also agree on patches that the student does not see.

    Args:
        config: resolved configuration.
        student: with a mask token.
    """

    student: PatchNetwork
    teacher: PatchNetwork

    def __init__(self, config: Dinov2Config, student: PatchNetwork):
        super().__init__(config, student)
        self.config: Dinov2Config = config
        self.high_resolution = MultiCrop(larger(config))
        if config.high_resolution.share:
            self.resolution = self.high_resolution.config.global_size
            steps = present(config.steps)
            first = min(round((1.0 - config.high_resolution.share) * steps), steps - 1)
            self.phases = (Phase(), Phase(first / steps, config.high_resolution.lr_scale))
        key = "prototypes" if config.heads == "tied" else "patch_prototypes"
        self.patch_targets = Targets(getattr(config, key), config.centring, config.centre_momentum)
        self.patch_watch = CollapseWatch(config, key)

    @property
    def reads(self) -> int:
        crops = self.high_resolution.config if self.config.high_resolution.share else self.config.crops
        return max(present(crops.global_size), present(crops.local_size))

    def prepare(self, batch: Batch, seed: int) -> Batch:
        config = self.config
        position = present(batch.position)
        phase, _ = self.phase(int(position[0]) // config.batch / present(config.steps))
        batch = (self.multi_crop if phase is self.phases[0] else self.high_resolution)(batch, seed)
        if not config.ibot:
            return batch
        patch = self.student.backbone.stride
        grid = (batch.crops[0].shape[-2] // patch, batch.crops[0].shape[-1] // patch)
        masks = draw_masks(config.masks, grid, position, config.batch, seed)
        masked = masks.flatten().nonzero()[:, 0]  # found on the host, so that no device is waited for
        device = batch.crops[0].device
        return replace(batch, masks=masks.to(device, non_blocking=True), masked=masked.to(device, non_blocking=True))

    def losses(self, batch: Batch, progress: float) -> Iterator[dict[str, Tensor]]:
        crops = stacked(batch.crops)
        with torch.no_grad():
            teacher = self.teacher.backbone(crops[0])
            logits = self.teacher.head(present(teacher.summary))
        targets = self.image_targets(logits, progress)
        student = self.student.backbone(crops, [batch.masks, *[None] * (len(crops) - 1)])
        terms = self.image_terms(torch.cat([present(features.summary) for features in student]), targets)
        if self.config.ibot:
            patch_terms = self.patch_terms(student[0].patches, teacher.patches, present(batch.masked), progress)
            terms["loss"] = terms["loss"] + self.config.ibot * patch_terms["ibot"]
            terms |= {name: value.detach() for name, value in patch_terms.items()}
        yield terms

    def patch_terms(self, student: Tensor, teacher: Tensor, masked: Tensor, progress: float) -> dict[str, Tensor]:
        """The loss of hidden patches, and what tells how its learning fares.

        Args:
            student, teacher: (2B, h*w, D) patches of the large crops.
            masked: (M,) which of them are hidden, counted through all; only these go through the heads.
        """
        temperature = self.teacher_temperature(progress)
        with torch.no_grad():
            logits = self.teacher.patch_head(teacher.flatten(0, 1)[masked])
        targets = self.patch_targets(logits, temperature, 0, self.group)
        answer = self.student.patch_head(student.flatten(0, 1)[masked])
        losses = ssl.patch_losses(answer, targets, self.config.student_temperature)
        return {
            "ibot": ssl.ibot(losses, masked // student.shape[1], len(student)),
            "patch_loss": losses.sum() / max(len(losses), 1),  # of patches alike, as their entropy
            "patch_entropy": ssl.entropy(targets),
            "patch_prototypes_used": self.patch_targets.prototypes_used(),
        }

    def expected_losses(self) -> dict[str, float]:
        """Pictures without masks count in the loss of patches, and add nothing."""
        if not self.config.ibot:
            return super().expected_losses()
        prototypes = self.student.patch_head.last_layer.out_features
        return {**super().expected_losses(), "ibot": self.config.masks.share * math.log(prototypes)}

    def collapse(self, terms: Mapping[str, float], scores: Mapping[str, float], progress: float) -> Diagnosis | None:
        found = super().collapse(terms, scores, progress)
        if not self.config.ibot or not terms["patch_loss"]:  # nothing was hidden
            return found
        of_patches = {
            "loss": terms["patch_loss"],
            "target_entropy": terms["patch_entropy"],
            "prototypes_used": terms["patch_prototypes_used"],
        }
        ill = self.patch_watch.look(of_patches, {}, progress)
        return found or (ill and replace(ill, name=f"{ill.name}, of patches"))

    def memory(self) -> dict[str, Any]:
        return {**super().memory(), "patches": self.patch_watch.state()}

    def recall(self, memory: Mapping[str, Any]) -> None:
        super().recall(memory)
        self.patch_watch.load(memory["patches"])

    def last_layers(self) -> Iterator[nn.Parameter]:
        yield from super().last_layers()
        if self.student.own_patch_head is not None:
            yield from self.student.own_patch_head.last_layer.parameters()

    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        if self.config.ibot:
            self.patch_targets.update(self.group)


def larger(config: Dinov2Config) -> MultiCropConfig:
    """The crops of the high-resolution phase: both sizes grow alike, to whole patches."""
    patch, scale = architecture(config.model, config.init, config.load).patch_size, config.high_resolution.scale

    def grown(size: int | None) -> int:
        return max(round(present(size) * scale / patch), 1) * patch

    crops = config.crops
    return replace(crops, global_size=grown(crops.global_size), local_size=grown(crops.local_size))


def resolve(config: Dinov2Config, samples: int) -> Dinov2Config:
    """Fills what the data decide: as DINO does, but with untied heads a learning rate of 4e-3 * sqrt(batch / 1024),
    which is that of DINOv2's code; with tied ones DINO's, as in iBOT's."""
    if config.optim.lr is None and config.heads == "untied":
        config = replace(config, optim=replace(config.optim, lr=4e-3 * math.sqrt(config.batch / 1024)))
    config = dino.resolve(config, samples)
    if config.teacher is not None:
        if config.high_resolution.share:
            raise ValueError(
                "high_resolution.share beside teacher=: a teacher's student has no such phase; leave it out"
            )
        ema = config.optim.ema if config.optim.ema is not None else config.momentum
        return replace(config, ibot=0.0, koleo=0.0, drop_path=0.0, optim=replace(config.optim, ema=ema))
    own = config.patch_prototypes or present(config.prototypes)
    taken = dino.matrix_bytes(own, config.patch_bottleneck)
    dino.check_memory(
        f"patch_prototypes={own}: with patch_bottleneck={config.patch_bottleneck} they", taken, config.device
    )
    return replace(config, patch_prototypes=own if config.heads == "untied" else None)


def build(config: Dinov2Config, source: Source) -> Dinov2Task | FeatureDistillation:
    """The task for a resolved configuration; of the pictures only the statistics play a part in it."""
    shape: dict[str, Any] = {"registers": config.registers, "layer_scale": config.layer_scale}
    if config.feed_forward is not None:
        shape["feed_forward"] = config.feed_forward
    hides = config.ibot > 0
    vit = dino.backbone(config, source, mask_token=hides, **shape)
    if config.teacher is not None:
        return FeatureDistillation(config, vit, load_teacher(config.teacher, vit.channels))
    dino.tell_if_few(config, len(source))
    head = dino.head(config, vit.summary_width, present(config.prototypes), config.bottleneck)
    patch_head = None
    if hides and config.heads == "untied":
        patch_head = dino.head(config, vit.width, present(config.patch_prototypes), config.patch_bottleneck)
    return Dinov2Task(config, PatchNetwork(vit, head, patch_head))


# iBOT: one head for crops and patches, the running mean in place of Sinkhorn-Knopp, no KoLeo (arXiv 2111.07832). Other
# than its code, this hides rectangles of at least 4 patches, as DINOv2's does, and centres patches by the hidden ones.
# Untried at the paper's size; on small pictures `heads=tied` does as well as a head of their own (docs/log.md).
IBOT: Mapping[str, Any] = {
    "heads": "tied",
    "centring": "mean",
    "koleo": 0.0,
    "prototypes": 8192,
    "momentum": 0.996,
    "layer_scale": None,
    "layer_decay": 1.0,
    "patch_embed_lr": 1.0,
    "drop_path": 0.1,
    "drop_path_uniform": False,
    "optim.final_lr": 2e-3,
    "crops.global_scale": (0.25, 1.0),
    "crops.local_scale": (0.05, 0.25),
    "crops.local_count": 10,
    "optim.clip_by": "tensor",
}

# What DINO's preset of this name is, with hidden patches and a head of their own for them. At a weight of 1 they take
# over: a hidden patch is soon told by those beside it, in the colours of the same crop (docs/log.md).
# Command: synoptic train dinov2 preset=photos data=imagenette96/train out=RUN devices=2
# Hardware and time: two CPU cores, 27 minutes.
# Score: 0.570 where DINO's has 0.584 (see there).
PHOTOS: Mapping[str, Any] = {
    **dino.PHOTOS,
    "ibot": 0.2,
    "patch_bottleneck": 128,
    "fixed_norm": True,
    "optim.final_lr": 2e-3,
    "layer_scale": None,
    "layer_decay": 1.0,
    "patch_embed_lr": 1.0,
    "crops.global_scale": (0.4, 1.0),
    "crops.local_scale": (0.05, 0.4),
}

UNUSED = (
    Unused(
        "beside teacher=, whose features are learned without heads or masks",
        (
            *("ibot", "heads", "patch_prototypes", "patch_bottleneck", "masks", "prototypes", "head_hidden"),
            *("bottleneck", "head_norm", "fixed_norm", "sharpening", "centring", "centre_momentum", "queue"),
            *("student_temperature", "teacher_temperature", "teacher_temperature_start", "teacher_temperature_warmup"),
            *("freeze_last_layer", "koleo", "drop_path", "drop_path_uniform", "guard"),
        ),
        lambda config: config.teacher is not None,
    ),
    Unused(
        "beside init=, which has an architecture of its own",
        ("registers", "layer_scale", "feed_forward"),
        lambda config: config.init is not None,
    ),
    Unused("with ibot=0", ("heads", "patch_prototypes", "patch_bottleneck", "masks"), lambda config: not config.ibot),
    Unused(
        "without high_resolution.share",
        ("high_resolution.scale", "high_resolution.lr_scale"),
        lambda config: not config.high_resolution.share,
    ),
    Unused("with heads=tied", ("patch_prototypes", "patch_bottleneck"), lambda config: config.heads == "tied"),
    *dino.UNUSED,
)

METHOD = Method(
    name="dinov2",
    summary="learn to see without labels, whole pictures and their patches",
    config=Dinov2Config,
    resolve=resolve,
    build=build,
    rankme=True,
    presets={"photos": PHOTOS, "ibot": IBOT},
    unused=UNUSED,
)
