"""What DINO, iBOT and DINOv2 promise: their losses, schedules, frozen parts, and what they tell of the learning."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_tasks import backward, batch_of, config_of, source_of

from synoptic.config import from_dict, from_layers
from synoptic.losses import ssl
from synoptic.methods import dino, dinov2, get_method

CROPS = {"global_size": 32, "local_size": 16, "local_count": 2}
HEADS = {"prototypes": 32, "head_hidden": 16, "bottleneck": 8}


def small(method: str, **values: Any) -> Any:
    """The task of a method on tiny crops, with tiny heads."""
    torch.manual_seed(0)
    config = config_of(method, **{"crops": CROPS, **HEADS, **values})
    return get_method(method).build(config, source_of()).train()


@pytest.fixture
def dino_task() -> dino.DinoTask:
    return small("dino", freeze_last_layer=0.5)


@pytest.fixture
def dinov2_task() -> dinov2.Dinov2Task:
    """Patches of 8 pixels, so that there are enough of them to hide; the loss of whole crops starts in the open."""
    return small("dinov2", model="vit_nano8", patch_bottleneck=8, freeze_last_layer=0.5)


WIDE = {"prototypes": 256, "head_hidden": 64, "bottleneck": 1024}  # cosines of random vectors are small in it


def test_dino_starts_near_ln_k_and_reports_its_parts() -> None:
    terms = backward(small("dino", **WIDE), batch_of())
    assert float(terms["dino"].detach()) == pytest.approx(math.log(256), rel=0.05)
    assert 0 < float(terms["target_entropy"]) <= math.log(256) + 1e-5


def test_dino_teacher_is_the_slow_average_of_its_student(dino_task: dino.DinoTask) -> None:
    before = [parameter.clone() for parameter in dino_task.teacher.parameters()]
    with torch.no_grad():
        for parameter in dino_task.student.parameters():
            parameter.add_(1.0)
    backward(dino_task, batch_of())
    dino_task.after_step(0.0)
    momentum = dino_task.config.momentum
    for old, new, student in zip(before, dino_task.teacher.parameters(), dino_task.student.parameters(), strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * student)
    assert all(parameter.grad is None for parameter in dino_task.teacher.parameters())


def test_without_sharpening_the_teacher_is_as_soft_as_the_student() -> None:
    task = small("dino", sharpening=False, student_temperature=0.2)
    assert task.teacher_temperature(0.0) == task.teacher_temperature(1.0) == 0.2


def test_dino_schedules_follow_progress(dino_task: dino.DinoTask) -> None:
    assert dino_task.teacher_momentum(0.0) == pytest.approx(0.996)
    assert dino_task.teacher_momentum(1.0) == pytest.approx(1.0)
    dino_task.config = replace(
        dino_task.config, teacher_temperature_start=0.04, teacher_temperature=0.07, teacher_temperature_warmup=0.3
    )
    temperatures = [dino_task.teacher_temperature(progress) for progress in (0.0, 0.15, 0.3, 1.0)]
    np.testing.assert_allclose(temperatures, [0.04, 0.055, 0.07, 0.07])


def short(**values: Any) -> dino.DinoTask:
    """DINO by its preset, small."""
    torch.manual_seed(0)
    recipe = get_method("dino")
    shared = {"data": "d", "out": "o", "model": "vit_nano16", "size": 32, "batch": 4, "steps": 10}
    small = {"head_hidden": 16, "bottleneck": 8, "prototypes": 32}
    config = from_layers(recipe.config, shared | small | values, "dino", preset="short", presets=recipe.presets)
    return dino.build(recipe.resolve(config, 4), source_of()).train()


def test_dino_by_its_preset_takes_a_step_of_balanced_targets_and_spread_summaries() -> None:
    task = short()
    with torch.no_grad():  # all crops alike would leave nothing to spread
        batch = task.prepare(batch_of(8), 0)
    assert len(batch.crops) == 2
    (terms,) = task.losses(batch, 0.5)
    summaries = task.student.backbone(torch.cat(batch.crops)).summary
    logits = task.teacher.head(task.teacher.backbone(torch.cat(batch.crops)).summary)
    targets = ssl.sinkhorn_knopp(logits, 0.01)
    expected = ssl.dino(task.student.head(summaries).split(8), targets.split(8), 0.1)
    spread = torch.stack([ssl.koleo(view) for view in summaries.split(8)]).sum()
    torch.testing.assert_close(terms["loss"], expected + 0.05 * spread)
    terms["loss"].backward()
    assert all(
        parameter.grad is not None for name, parameter in task.student.named_parameters() if "original0" not in name
    )


def test_dino_spreads_large_crops_alone() -> None:
    task = short(crops={"local_count": 2, "global_size": 32, "local_size": 32})
    batch = task.prepare(batch_of(8), 0)
    (terms,) = task.losses(batch, 0.5)
    large = [ssl.koleo(task.student.backbone(crop).summary) for crop in batch.crops[:2]]
    torch.testing.assert_close(terms["koleo"], torch.stack(large).sum().detach())


def test_dino_sees_the_size_of_its_large_crops() -> None:
    config = get_method("dino").resolve(
        from_dict(dino.DinoConfig, {"data": "d", "out": "o", "crops": {"global_size": 96}}, "dino"), 100
    )
    assert config.size == 96
    assert dino.build(replace(config, model="vit_nano16"), source_of()).reads == 96


def test_dino_centre_is_the_running_mean_of_all_teacher_logits_of_a_step(dino_task: dino.DinoTask) -> None:
    parts = batch_of().split(2)
    logits = []
    for part in parts:
        crops = dino_task.prepare(part, 0).crops
        with torch.no_grad():
            logits.append(dino_task.teacher.head(dino_task.teacher.backbone(torch.cat(crops[:2])).summary))
        backward(dino_task, part)
    dino_task.after_step(0.0)
    torch.testing.assert_close(dino_task.targets.centre, 0.1 * torch.cat(logits).mean(0, keepdim=True))


def test_dino_prototypes_stand_still_at_first(dino_task: dino.DinoTask) -> None:
    last = dino_task.student.head.last_layer
    backward(dino_task, batch_of())
    dino_task.before_step(0.49)
    assert all(parameter.grad is None for parameter in last.parameters())
    backward(dino_task, batch_of())
    dino_task.before_step(0.5)
    assert any(parameter.grad is not None for parameter in last.parameters())


def test_dino_prototypes_keep_unit_length(dino_task: dino.DinoTask) -> None:
    weight = dino_task.student.head.last_layer.weight
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(32))


def test_all_crops_go_through_the_student_in_one_sequence() -> None:
    """Two crops of 2 x 2 patches and three of one patch, of four pictures, each with a summary token."""
    task = small("dino", crops={"local_count": 3, "local_size": 16}, drop_path=0.0)
    block, seen = task.student.backbone.blocks[0], []
    for module in (block.norm1, block.attn.qkv, block.mlp):
        module.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[:-1])))
    backward(task, batch_of(4))
    assert seen == [(4 * (2 * 5 + 3 * 2),)] * 3


def test_crops_of_a_size_are_stacked_in_their_order() -> None:
    crops = tuple(torch.full((2, 3, side, side), float(i)) for i, side in enumerate((32, 32, 16, 16)))
    large, small = dino.stacked(crops)
    assert large[:, 0, 0, 0].tolist() == [0, 0, 1, 1] and small[:, 0, 0, 0].tolist() == [2, 2, 3, 3]


def test_dino_derives_prototypes_from_the_number_of_pictures() -> None:
    recipe = get_method("dino")
    shared = from_dict(recipe.config, {"data": "d", "out": "o"}, "dino")
    chosen = [recipe.resolve(shared, samples).prototypes for samples in (10, 6_000, 100_000, 1_281_167)]
    assert chosen == [256, 2048, 32768, 65536]


def test_learning_slows_from_block_to_block_down() -> None:
    """Layer-wise decay 0.5 of a network of four blocks; the patch embedding at a fifth of what is left."""
    task = small("dino", layer_decay=0.5, patch_embed_lr=0.2)
    scales = {id(parameter): group.lr_scale for group in task.parameter_groups() for parameter in group.params}
    backbone = task.student.backbone
    assert [scales[id(block.attn.qkv.weight)] for block in backbone.blocks] == [1 / 16, 1 / 8, 1 / 4, 1 / 2]
    assert scales[id(backbone.norm.weight)] == scales[id(task.student.head.mlp[0].weight)] == 1.0
    assert scales[id(backbone.summary_token)] == scales[id(backbone.positions.table)] == 1 / 32
    assert scales[id(backbone.patch_embed[0].weight)] == pytest.approx(0.2 / 32)
    assert set(scales) == {id(parameter) for parameter in task.student.parameters() if parameter.requires_grad}
    vectors = [group for group in task.parameter_groups() if not group.decay]
    assert vectors and all(parameter.ndim < 2 for group in vectors for parameter in group.params)


def test_prototypes_in_use_and_agreement_are_told(dino_task: dino.DinoTask) -> None:
    terms = backward(dino_task, batch_of())
    assert float(terms["prototypes_used"]) == pytest.approx(1.0)  # nothing is known yet
    assert 0.0 <= float(terms["agreement"]) <= 1.0
    dino_task.after_step(0.0)
    later = backward(dino_task, batch_of())
    assert 1 / 32 < float(later["prototypes_used"]) < 1.0


def test_dinov2_is_the_sum_of_its_losses_each_about_ln_k_at_the_start() -> None:
    """Half of the crops are masked, so that of the patches' loss half of ln K is there."""
    task = small("dinov2", model="vit_nano8", patch_bottleneck=1024, **WIDE)
    terms = backward(task, batch_of(8))
    assert float(terms["dino"].detach()) == pytest.approx(math.log(256), rel=0.05)
    assert float(terms["ibot"]) == pytest.approx(math.log(256) / 2, rel=0.05)
    total = terms["dino"] + terms["ibot"] + 0.1 * terms["koleo"]
    torch.testing.assert_close(terms["loss"].detach(), total)
    idle = {name for name, parameter in task.student.named_parameters() if parameter.grad is None}
    assert not idle
    assert all(parameter.grad is None for parameter in task.teacher.parameters())


def test_dinov2_judges_hidden_patches_by_what_the_teacher_sees_there(dinov2_task: dinov2.Dinov2Task) -> None:
    """The loss of patches by loops over all pictures, and their masks, on the whole pictures for the teacher."""
    task = dinov2_task.eval()
    batch = task.prepare(batch_of(4), 0)
    (terms,) = task.losses(batch, 0.5)
    crops = torch.cat(batch.crops[:2])
    seen = task.student.backbone(crops, batch.masks).patches
    known = task.teacher.backbone(crops).patches
    logits = [task.teacher.patch_head(known[i][batch.masks[i]]) for i in range(8)]
    targets = ssl.sinkhorn_knopp(torch.cat(logits), task.teacher_temperature(0.5)).split([len(part) for part in logits])
    losses = []
    for i in range(8):
        answers = (task.student.patch_head(seen[i][batch.masks[i]]) / 0.1).log_softmax(-1)
        if len(answers):
            losses.append(-(targets[i] * answers).sum(-1).mean())
    assert 0 < len(losses) < 8
    torch.testing.assert_close(terms["ibot"], torch.stack(losses).sum().detach() / 8)


def test_tied_heads_are_one_and_untied_ones_two() -> None:
    tied = small("dinov2", model="vit_nano8", heads="tied")
    assert tied.student.patch_head is tied.student.head
    assert len(list(tied.last_layers())) == 2
    untied = small("dinov2", model="vit_nano8", patch_prototypes=48)
    assert untied.student.patch_head.last_layer.weight.shape[0] == 48
    assert len(list(untied.last_layers())) == 4
    assert untied.patch_targets.centre.shape == (1, 48)


def test_both_last_layers_stand_still_at_first(dinov2_task: dinov2.Dinov2Task) -> None:
    backward(dinov2_task, batch_of())
    dinov2_task.before_step(0.49)
    assert all(parameter.grad is None for parameter in dinov2_task.last_layers())


def test_dinov2_without_patches_is_dino_with_its_own_defaults() -> None:
    task = small("dinov2", model="vit_nano8", ibot=0.0)
    assert task.student.own_patch_head is None and task.student.backbone.mask_token is None
    terms = backward(task, batch_of())
    assert "ibot" not in terms
    task.after_step(0.0)


@pytest.mark.parametrize("method", ["dino", "dinov2"])
def test_every_preset_makes_a_task_of_any_folder_of_pictures(method: str) -> None:
    recipe = get_method(method)
    for preset in recipe.presets:
        config = from_layers(recipe.config, {"data": "d", "out": "o"}, method, preset=preset, presets=recipe.presets)
        task = recipe.build(recipe.resolve(config, 5000), source_of())
        assert task.expected_losses()["dino"] == pytest.approx(math.log(task.config.prototypes))


def test_ibot_is_a_preset_with_one_head_and_no_spreading() -> None:
    recipe = get_method("dinov2")
    shared = {"data": "d", "out": "o", "model": "vit_nano8", "size": 32, "batch": 4, "steps": 10}
    config = from_layers(recipe.config, shared | HEADS, "dinov2", preset="ibot", presets=recipe.presets)
    task = recipe.build(recipe.resolve(config, 4), source_of()).train()
    terms = backward(task, batch_of())
    assert task.student.patch_head is task.student.head
    assert "koleo" not in terms and float(terms["ibot"]) > 0
    task.after_step(0.0)
    assert task.patch_targets.centre.abs().sum() > 0


def test_the_last_phase_shows_larger_crops() -> None:
    values = {"model": "vit_nano8", "high_resolution": {"share": 0.3, "scale": 2.0}}
    task = small("dinov2", **values)
    sides = [task.prepare(batch_of(4, start=4 * step), 0).crops for step in (0, 6, 7, 9)]
    assert [crops[0].shape[-1] for crops in sides] == [32, 32, 64, 64]
    assert [crops[-1].shape[-1] for crops in sides] == [16, 16, 32, 32]
    assert task.reads == task.resolution == 64
    assert small("dinov2", model="vit_nano8").resolution is None
    late = batch_of(4, start=28)
    assert task.prepare(late, 0).masks.shape == (8, 64)
    backward(task, late, progress=0.7)


@pytest.mark.parametrize(("steps", "share", "first"), [(10, 0.3, 7), (3, 0.1, 2), (1, 0.5, 0), (7, 0.57, 3)])
def test_the_last_phase_has_its_first_step_and_schedules_of_its_own(steps: int, share: float, first: int) -> None:
    phase = {"share": share, "scale": 2.0}
    values = {"steps": steps, "teacher_temperature": 0.07, "teacher_temperature_start": 0.04, "momentum": 0.9}
    task = small("dinov2", model="vit_nano8", high_resolution=phase, **values)
    sides = [task.prepare(batch_of(4, start=4 * step), 0).crops[0].shape[-1] for step in range(steps)]
    assert sides == [32] * first + [64] * (steps - first)
    assert task.teacher_temperature(first / steps) == 0.04
    assert task.teacher_momentum(first / steps) == pytest.approx(0.9)
    assert task.teacher_temperature(1.0) == pytest.approx(0.07)
    assert task.teacher_momentum(1.0) == 1.0


def test_masks_follow_the_position_alone(dinov2_task: dinov2.Dinov2Task) -> None:
    """A batch cut in two is masked as the whole, first crops before second ones."""
    whole = dinov2_task.prepare(batch_of(4), 7).masks
    first, second = (dinov2_task.prepare(part, 7).masks for part in batch_of(4).split(2))
    assert torch.equal(whole, torch.cat((first[:2], second[:2], first[2:], second[2:])))
    assert not torch.equal(whole, dinov2_task.prepare(batch_of(4), 8).masks)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"masks": {"share": 1.5}}, "share=1.5"),
        ({"masks": {"ratio": [0.5, 0.1]}}, "ratio"),
        ({"high_resolution": {"share": 1.0}}, "high_resolution.share=1"),
        ({"layer_decay": 0.0}, "layer_decay=0"),
        ({"heads": "glued"}, "heads"),
        ({"registers": -1}, "registers"),
    ],
)
def test_dinov2_refuses_what_it_cannot_train_with(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        small("dinov2", **values)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("method", "parts"), [("dino", 2), ("dinov2", 3)])
def test_backbone_and_heads_are_networks_apart(method: str, parts: int) -> None:
    """Gradients may be bounded for each; all that is trained belongs to one of them."""
    task = small(method)
    members = [{id(parameter) for parameter in network.parameters()} for network in task.networks()]
    assert len(members) == parts and sum(map(len, members)) == len(set.union(*members))
    trained = {id(parameter) for group in task.parameter_groups() for parameter in group.params}
    assert trained <= set.union(*members)
