"""Feature distillation: a student learns what a larger frozen model says of the same crops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_tasks import backward, batch_of, config_of, source_of

from synoptic.methods import get_method
from synoptic.methods.feature_distillation import FeatureDistillation
from synoptic.methods.teachers import load_teacher
from synoptic.models.vit import ViT, vit_config
from synoptic.predict import VisionModel
from synoptic.types import Preprocess

CROPS = {"global_size": 32, "local_size": 16, "local_count": 2}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wider than its student, with patches of 14 pixels, which tile crops of 28 pixels and not of 32."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("teacher") / "weights"
    vit = ViT(vit_config("vit_ti14", image_size=28, depth=2))
    VisionModel(vit, Preprocess(28), "teacher").save(folder)
    return folder


def task_of(teacher: Path, **values: Any) -> FeatureDistillation:
    torch.manual_seed(0)
    shape = {"model": "vit_nano8", "crops": CROPS, "layer_scale": None}
    config = config_of("dinov2", teacher=str(teacher), **{**shape, **values})
    return get_method("dinov2").build(config, source_of()).train()


def test_summaries_meet_both_large_crops_and_patches_their_own(teacher: Path) -> None:
    task = task_of(teacher)
    batch = task.prepare(batch_of(3), 0)
    (terms,) = task.losses(batch, 0.0)
    known = [task.teacher(task.as_seen(crop)) for crop in batch.crops[:2]]
    assert known[0].grid == (2, 2)
    pairs = []
    for crop in batch.crops:
        answer = task.summary_projection(task.backbone(crop).summary)
        pairs += [1 - F.cosine_similarity(answer, view.summary, dim=-1).mean() for view in known]
    assert len(pairs) == 8
    torch.testing.assert_close(terms["summary"], torch.stack(pairs).mean().detach())
    cosines = []
    for crop, view in zip(batch.crops, known, strict=False):
        mine = task.patch_projection(task.backbone(crop).patches)
        planes = view.patches.transpose(1, 2).unflatten(2, view.grid)
        theirs = F.interpolate(planes, size=(4, 4), mode="bilinear").flatten(2).transpose(1, 2)
        cosine = 1 - F.cosine_similarity(mine, theirs, dim=-1).mean()
        cosines.append(0.9 * cosine + 0.1 * F.smooth_l1_loss(mine, theirs))
    torch.testing.assert_close(terms["patches"], torch.stack(cosines).mean().detach())
    torch.testing.assert_close(terms["loss"].detach(), terms["patches"] + terms["summary"])


def test_the_teacher_stays_as_it_is_and_the_student_comes_nearer(teacher: Path) -> None:
    task = task_of(teacher)
    before = task.facts()
    optimizer = torch.optim.AdamW([p for group in task.parameter_groups() for p in group.params], lr=3e-3)
    losses = []
    for _ in range(12):
        losses.append(backward(task, batch_of(4))["loss"].item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
    assert task.facts() == before
    assert not any("teacher" in name for name in task.state_dict())


def test_an_average_of_the_student_is_the_final_model_without_masks_and_stochastic_depth(teacher: Path) -> None:
    task = task_of(teacher)
    assert task.config.optim.ema == pytest.approx(0.992)
    assert task.exported() is task.backbone
    assert task.backbone.mask_token is None and all(block.drop_path == 0.0 for block in task.backbone.blocks)


def test_given_weights_wake_later_and_are_guarded(teacher: Path) -> None:
    task = task_of(teacher, init=str(teacher), head_warmup=0.2, size=28, crops={"local_size": 14})
    starts = {group.start for group in task.parameter_groups()}
    late = [id(p) for group in task.parameter_groups() if group.start for p in group.params]
    assert starts == {0.0, 0.2} and set(late) == {id(p) for p in task.backbone.parameters()}
    assert task.largest_fall == 0.1 and set(task.facts()) == {"teacher.weights", "init.weights"}


def test_a_high_resolution_phase_is_refused(teacher: Path) -> None:
    with pytest.raises(ValueError, match=r"high_resolution\.share beside teacher="):
        task_of(teacher, high_resolution={"share": 0.5})


def test_a_teacher_of_other_bands_is_refused(teacher: Path) -> None:
    with pytest.raises(ValueError, match="reads 3 bands, its student 4"):
        load_teacher(str(teacher), 4)
