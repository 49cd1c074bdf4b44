"""Learning from a larger frozen model: the student says of crops what its teacher says of them.

DINOv2 sec. 5 (arXiv 2304.07193) trains its small models so: a frozen teacher in place of the student's own average, no
masks, no stochastic depth, the loss of patches on all of them, and an average of the student as the final model. There
the teacher's heads give the targets. Released models come without them, so here the targets are its features,
matched by the losses of AM-RADIO sec. 3.4 (arXiv 2312.06709).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from synoptic.data.resample import resized_crop
from synoptic.data.transforms import MultiCrop
from synoptic.losses.distillation import on_one_grid, patch_match, summary_match
from synoptic.methods import dino
from synoptic.methods.base import ParamGroup, Task
from synoptic.methods.dino import DinoConfig, stacked
from synoptic.methods.teachers import Teacher
from synoptic.models.layers import init_linear
from synoptic.models.vit import ViT, tiled_sizes
from synoptic.types import Batch, Features, present


class FeatureDistillation(Task):
    """A student whose projected features meet those of a frozen teacher.

    The summary of every crop, small ones too, is to be what the teacher says of both large crops; the patches of a
    large crop what it says of the same crop.

    Args:
        config: resolved configuration.
        backbone: of the student.
        teacher: sees the large crops, at the nearest size that its patches tile.
    """

    def __init__(self, config: DinoConfig, backbone: ViT, teacher: Teacher):
        super().__init__()
        self.config = config
        self.largest_fall = config.max_drop if config.init is not None else None
        self.multi_crop = MultiCrop(config.crops)
        self.backbone = backbone
        self._teacher = [teacher]  # in a list, so that it is no submodule: it is neither trained nor saved with the run
        answer = teacher.probe()
        self.patch_projection = nn.Linear(backbone.width, answer.patches.shape[-1])
        summary = answer.summary
        self.summary_projection = None if summary is None else nn.Linear(backbone.summary_width, summary.shape[-1])
        for projection in (self.patch_projection, self.summary_projection):
            if projection is not None:
                init_linear(projection)

    @property
    def teacher(self) -> Teacher:
        return self._teacher[0]

    @property
    def reads(self) -> int:
        return max(present(self.config.crops.global_size), present(self.config.crops.local_size))

    def facts(self) -> dict[str, str]:
        return {"teacher.weights": self.teacher.fingerprint(), **dino.facts(self.backbone, self.config)}

    def _apply(self, *args: Any, **kwargs: Any) -> FeatureDistillation:  # the teacher follows to the student's device
        self.teacher._apply(*args, **kwargs)
        return super()._apply(*args, **kwargs)

    def prepare(self, batch: Batch, seed: int) -> Batch:
        return self.multi_crop(batch, seed)

    def losses(self, batch: Batch, progress: float) -> Iterator[dict[str, Tensor]]:
        crops = stacked(batch.crops)
        wanted = self.teacher(self.as_seen(crops[0]))
        seen = self.backbone(crops if self.summary_projection is not None else crops[:1])
        mine, theirs = on_one_grid(self.patch_projection(seen[0].patches), seen[0].grid, wanted.patches, wanted.grid)
        terms = {"patches": patch_match(mine, theirs).mean()}
        if self.summary_projection is not None:
            terms["summary"] = self.summary_loss(seen, present(wanted.summary))
        loss = torch.stack(list(terms.values())).sum()
        yield {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def summary_loss(self, seen: tuple[Features, ...], wanted: Tensor) -> Tensor:
        """The mean over all pairs of a crop and a large crop of the same picture."""
        assert self.summary_projection is not None
        answers = self.summary_projection(torch.cat([present(features.summary) for features in seen]))
        views = wanted.chunk(2)
        pairs = [summary_match(crop, view) for crop in answers.split(len(views[0])) for view in views]
        return torch.stack(pairs).mean()

    def as_seen(self, crops: Tensor) -> Tensor:
        """Large crops at the nearest size that the teacher's patches tile."""
        side = crops.shape[-1]
        low, high = tiled_sizes(side, self.teacher.model.stride)
        size = low if side - low <= high - side else high
        if size == side:
            return crops
        boxes = torch.tensor([0.0, 0.0, side, side]).expand(len(crops), 4)
        return resized_crop(crops, boxes, size)

    def before_step(self, progress: float) -> None:
        dino.hold_backbone(self, self.config, progress)

    def parameter_groups(self) -> list[ParamGroup]:
        return dino.parameter_groups(self, self.config)

    def networks(self) -> Iterator[nn.Module]:
        yield from self.children()

    def shard_units(self) -> Iterator[nn.Module]:
        yield from self.backbone.blocks

    def frozen_units(self) -> Iterator[nn.Module]:
        yield from self._teacher[0].blocks()

    def exported(self) -> nn.Module:
        return self.backbone
