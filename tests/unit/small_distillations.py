"""Small distillations, and teachers for them: what several tests of them share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from small_tasks import batch_of, config_of, source_of

from synoptic.methods import clip, radio
from synoptic.methods.radio_task import RadioTask
from synoptic.models.vit import ViT, vit_config
from synoptic.predict import VisionModel
from synoptic.types import Preprocess


def save_teachers(folder: Path) -> Path:
    """Saves a CLIP, and a DINO whose patches are a hundred times as large."""
    torch.manual_seed(0)
    config = config_of("clip", text_width=32, text_depth=1, text_heads=1, embedding=24, vocabulary=300)
    VisionModel(clip.build(config, source_of()).model, Preprocess(32), "clip").save(folder / "clip")
    vit = ViT(vit_config("vit_mini8", image_size=48, depth=1))
    with torch.no_grad():
        vit.norm.weight.mul_(100.0)
        vit.norm.bias.add_(30.0)
    VisionModel(vit, Preprocess(48), "dino").save(folder / "dino")
    return folder


def task_of(folder: Path, **values: Any) -> RadioTask:
    usual = {"teachers": f"clip:{folder}/clip,dino:{folder}/dino", "model": "vit_nano8"}
    torch.manual_seed(0)
    return radio.build(config_of("radio", **{**usual, **values}), source_of()).train()


def steps(task: RadioTask, count: int, lr: float = 2e-3, pictures: int = 8, size: int = 96) -> list[dict[str, float]]:
    """So many steps of AdamW on the same pictures; the terms of each, summed over its passes as the loop does."""
    trained = [parameter for group in task.parameter_groups() for parameter in group.params]
    optimizer, told = torch.optim.AdamW(trained, lr=lr), []
    for step in range(count):
        batch = batch_of(pictures, size, start=step * task.config.batch)
        prepared, progress = task.prepare(batch, task.config.seed), step / task.config.steps
        terms: dict[str, float] = {}
        for found in task.losses(prepared, progress):
            found["loss"].backward()
            for name, value in found.items():
                terms[name] = terms.get(name, 0.0) + float(value.detach())
        task.before_step(progress)
        optimizer.step()
        optimizer.zero_grad()
        told.append(terms)
    return told


IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
