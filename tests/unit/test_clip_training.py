"""CLIP's training in parts: no picture waits in memory, and the gradients are those of the whole batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_tasks import batch_of, config_of, source_of

from synoptic.methods import clip


def task_of(loss: str, accumulate: int) -> clip.ClipTask:
    torch.manual_seed(0)
    small = {"text_width": 32, "text_depth": 1, "text_heads": 1, "embedding": 24, "vocabulary": 300}
    return clip.build(config_of("clip", loss=loss, accumulate=accumulate, **small), source_of()).double().train()


@pytest.mark.parametrize("loss", ["clip", "siglip"])
@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_parts_have_the_gradients_of_the_whole(loss: str, accumulate: int) -> None:
    found = []
    for parts in (1, accumulate):
        task = task_of(loss, parts)
        batch = task.prepare(batch_of(4), 0)
        batch = replace(batch, crops=tuple(crop.double() for crop in batch.crops))
        told = list(map(backward, task.losses(batch, 0.0)))
        assert len(told) == task.passes and task.whole_batches is (parts > 1)
        gradients = {name: parameter.grad for name, parameter in task.named_parameters()}
        found.append((sum(told), gradients))
    (whole, expected), (cut, gradients) = found
    assert cut == pytest.approx(whole, rel=1e-12)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-12 * largest)


def backward(terms: dict[str, torch.Tensor]) -> float:
    terms["loss"].backward()
    return float(terms["loss"].detach())


def test_a_bias_comes_with_the_loss_that_needs_it() -> None:
    plain, task = task_of("clip", 1), task_of("siglip", 1)
    assert plain.model.logit_bias is None and plain.expected_losses().keys() == {"contrastive"}
    assert not task.expected_losses()
    model = task.model
    assert (model.logit_bias.item(), model.logit_scale.exp().item()) == pytest.approx((-10.0, 10.0))


def test_parts_are_embedded_twice_with_the_same_draws() -> None:
    """Stochastic depth, and the viewports of cropped positions, would else give gradients of another network."""
    found = []
    for cut in (True, False):
        task = task_of("clip", 2)
        for block in task.model.image.blocks:
            block.drop_path = 0.5
        batch = task.prepare(batch_of(8), 0)
        parts = replace(batch, crops=tuple(crop.double() for crop in batch.crops)).split(2)
        torch.manual_seed(1)
        if cut:
            for terms in task.cached(parts):
                terms["loss"].backward()
        else:
            task.terms(clip.Pairs.joined([task.embed(part) for part in parts]))["loss"].backward()
        found.append({name: parameter.grad for name, parameter in task.named_parameters()})
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-9, atol=1e-12)
