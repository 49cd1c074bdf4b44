"""DINO: a student learns to say of one crop what its own slow average says of another (arXiv 2104.14294)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from synoptic.config import Fraction, OptimConfig, Share, TrainConfig
from synoptic.data.sources import Source
from synoptic.data.transforms import MultiCrop, MultiCropConfig
from synoptic.losses import ssl
from synoptic.methods.base import Method, ParamGroup, Task, check_tiles, resolve_common, split_by_decay, update_average
from synoptic.models.heads import DinoHead
from synoptic.models.vit import ViT, vit_config
from synoptic.types import Batch, present


@dataclass(frozen=True, kw_only=True)
class DinoConfig(TrainConfig):
    """Self-distillation without labels.

    What is taken over a batch (Sinkhorn-Knopp, KoLeo, batch norm in the head) is taken over each part of it where
    `accumulate` cuts it. `optim.clip` bounds the norm of all gradients together; the makers' code bounds each tensor's.

    Attributes:
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
        momentum: of the teacher's average of the student at the start; rises to 1 on a cosine.
        centring: what keeps any prototype from winning: "mean" subtracts the running mean of the teacher's outputs
            (the paper); "sinkhorn" balances the batch over the prototypes (DINOv2), steadier in short runs.
        centre_momentum: of the running mean of teacher outputs.
        freeze_last_layer: share of the run in which the prototypes stand still.
        koleo: weight of the KoLeo regulariser on the student's summaries (DINOv2); 0 in the paper.
        drop_path: stochastic depth of the student.
        crops: multi-crop augmentation.
    """

    prototypes: PositiveInt | None = None
    head_hidden: PositiveInt = 2048
    bottleneck: PositiveInt = 256
    head_norm: bool = False
    fixed_norm: bool = True
    student_temperature: PositiveFloat = 0.1
    teacher_temperature: PositiveFloat = 0.04
    teacher_temperature_start: PositiveFloat = 0.04
    teacher_temperature_warmup: Share = 0.1
    momentum: Share = 0.996
    centring: Literal["mean", "sinkhorn"] = "mean"
    centre_momentum: Fraction = 0.9
    freeze_last_layer: Share = 0.01
    koleo: NonNegativeFloat = 0.0
    drop_path: Fraction = 0.1
    crops: MultiCropConfig = field(default_factory=MultiCropConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(weight_decay=0.04, final_weight_decay=0.4, final_lr=2e-3, clip=3.0)
    )


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
        backbone: the student's ViT; the teacher starts as its copy without stochastic depth.
    """

    def __init__(self, config: DinoConfig, backbone: ViT):
        super().__init__()
        assert config.prototypes is not None
        self.config = config
        self.multi_crop = MultiCrop(config.crops)
        head = DinoHead(
            backbone.summary_width,
            config.prototypes,
            config.head_hidden,
            config.bottleneck,
            norm=config.head_norm,
            fixed_norm=config.fixed_norm,
        )
        self.student = Network(backbone, head)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.teacher.backbone.eval()
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(1, config.prototypes))
        self._teacher_logits: list[Tensor] = []

    def train(self, mode: bool = True) -> DinoTask:
        super().train(mode)
        self.teacher.backbone.eval()  # without stochastic depth; norms in the head use the batch, as the student's
        return self

    @property
    def reads(self) -> int:
        return max(present(self.config.crops.global_size), present(self.config.crops.local_size))

    def prepare(self, batch: Batch, seed: int) -> Batch:
        return self.multi_crop(batch, seed)

    def teacher_temperature(self, progress: float) -> float:
        config = self.config
        share = min(progress / config.teacher_temperature_warmup, 1.0) if config.teacher_temperature_warmup else 1.0
        start = config.teacher_temperature_start
        return start + share * (config.teacher_temperature - start)

    def teacher_momentum(self, progress: float) -> float:
        return 1.0 - (1.0 - self.config.momentum) * (math.cos(math.pi * progress) + 1.0) / 2.0

    def losses(self, batch: Batch, progress: float) -> Iterator[dict[str, Tensor]]:
        with torch.no_grad():
            logits = self.teacher.head(self.teacher.backbone(torch.cat(batch.crops[:2])).summary).float()
            targets = self._targets(logits, self.teacher_temperature(progress))
            self._teacher_logits.append(logits)
        summaries = torch.cat([self.student.backbone(crops).summary for crops in self._stacked(batch.crops)])
        student = self.student.head(summaries)
        size = len(batch.crops[0])
        loss = ssl.dino(student.split(size), targets.split(size), self.config.student_temperature)
        terms = {"loss": loss, "dino": loss.detach(), "target_entropy": ssl.entropy(targets)}
        if self.config.koleo:
            spread = torch.stack([ssl.koleo(view) for view in summaries[: 2 * size].split(size)]).mean()
            terms["loss"] = loss + self.config.koleo * spread
            terms["koleo"] = spread.detach()
        yield terms

    def _targets(self, logits: Tensor, temperature: float) -> Tensor:
        if self.config.centring == "sinkhorn":
            return ssl.sinkhorn_knopp(logits, temperature)
        return ssl.sharpened(logits, self.centre, temperature)

    @staticmethod
    def _stacked(crops: tuple[Tensor, ...]) -> list[Tensor]:
        """Crops of one size in one tensor, in order, so that the backbone runs once a size."""
        sizes = list(dict.fromkeys(crop.shape[-2:] for crop in crops))
        return [torch.cat([crop for crop in crops if crop.shape[-2:] == size]) for size in sizes]

    def before_step(self, progress: float) -> None:
        if progress < self.config.freeze_last_layer:
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        update_average(self.teacher, self.student, self.teacher_momentum(progress))
        centre = torch.cat(self._teacher_logits).mean(dim=0, keepdim=True)
        self.centre.lerp_(centre, 1.0 - self.config.centre_momentum)
        self._teacher_logits.clear()

    def parameter_groups(self) -> list[ParamGroup]:
        return split_by_decay(self.student.named_parameters())

    def shard_units(self) -> Iterator[nn.Module]:
        yield from self.student.backbone.blocks

    def exported(self) -> nn.Module:
        return self.teacher.backbone


def resolve(config: DinoConfig, samples: int) -> DinoConfig:
    """Fills what the data decide: learning rate 5e-4 * batch / 256 and 100 epochs (paper), prototypes, crop sizes."""
    size = config.size or config.crops.global_size or 224
    config = resolve_common(config, samples, lr=5e-4 * config.batch / 256, epochs=100, size=size)
    prototypes = config.prototypes or min(max(2 ** round(math.log2(max(samples, 1) / 4)), 256), 65536)
    # Small crops keep the paper's proportion of 96 to 224, rounded to whole patches.
    patch = vit_config(config.model).patch_size
    large = config.crops.global_size or size
    small = config.crops.local_size or max(round(large * 96 / 224 / patch), 1) * patch
    for key, side in {"size": size, "crops.global_size": large, "crops.local_size": small}.items():
        check_tiles(key, side, config.model)
    crops = replace(config.crops, global_size=large, local_size=small)
    return replace(config, prototypes=prototypes, crops=crops)


def build(config: DinoConfig, source: Source) -> DinoTask:
    """The task for a resolved configuration; the pictures themselves play no part in it."""
    vit = vit_config(config.model, drop_path=config.drop_path, image_size=config.size)
    return DinoTask(config, ViT(vit))


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
    "koleo": 0.1,
    "drop_path": 0.0,
    "crops.local_count": 0,
}

METHOD = Method(
    name="dino",
    summary="learn to see without labels, by self-distillation over crops",
    config=DinoConfig,
    resolve=resolve,
    build=build,
    presets={"short": SHORT},
)
