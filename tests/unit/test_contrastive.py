"""Losses of pictures and words, against their definitions written out in loops, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synoptic.losses import contrastive

SCALE, BIAS = torch.tensor(1.3, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)


def pairs(count: int = 7, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, width, generator=random, dtype=torch.float64).requires_grad_() for _ in range(2))


def similarity(images: Tensor, texts: Tensor, one: int, other: int) -> Tensor:
    return SCALE.exp() * (images[one] / images[one].norm()) @ (texts[other] / texts[other].norm())


def same_gradients(loss: Tensor, expected: Tensor, of: tuple[Tensor, Tensor]) -> None:
    for mine, wanted in zip(torch.autograd.grad(loss, of), torch.autograd.grad(expected, of), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gathering", ["local", "whole", "detached"])
def test_each_picks_its_partner(gathering: contrastive.Gathering) -> None:
    images, texts = pairs()
    total = torch.zeros((), dtype=torch.float64)
    for one in range(7):
        row = torch.stack([similarity(images, texts, one, other) for other in range(7)])
        column = torch.stack([similarity(images, texts, other, one) for other in range(7)])
        total = total + (row.logsumexp(0) - row[one] + column.logsumexp(0) - column[one]) / 14
    loss = contrastive.clip(images, texts, SCALE, gathering=gathering)
    torch.testing.assert_close(loss, total, rtol=1e-12, atol=0)
    same_gradients(loss, total, (images, texts))


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_each_pair_is_judged_by_itself(chunk: int) -> None:
    images, texts = pairs()
    total = torch.zeros((), dtype=torch.float64)
    for one in range(7):
        for other in range(7):
            sign = 1 if one == other else -1
            total = total + torch.log1p(torch.exp(-sign * (similarity(images, texts, one, other) + BIAS))) / 7
    loss = contrastive.siglip(images, texts, SCALE, BIAS, chunk=chunk)
    torch.testing.assert_close(loss, total, rtol=1e-12, atol=0)
    same_gradients(loss, total, (images, texts))


def test_a_student_chooses_as_its_teacher() -> None:
    images, texts = pairs()
    teacher_images, teacher_texts = pairs(width=3, seed=1)
    sharp = torch.tensor(0.7, dtype=torch.float64)

    def choices(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        return scale.exp() * F.normalize(a, dim=1) @ F.normalize(b, dim=1).T

    total = torch.zeros((), dtype=torch.float64)
    mine, theirs = choices(images, texts, SCALE), choices(teacher_images, teacher_texts, sharp)
    for student, teacher in ((mine, theirs), (mine.T, theirs.T)):
        for row in range(7):
            p = teacher[row].softmax(0).detach()
            total = total - sum(p[k] * student[row].log_softmax(0)[k] for k in range(7)) / 14
    loss = contrastive.distillation(images, texts, SCALE, teacher_images, teacher_texts, sharp)
    torch.testing.assert_close(loss, total, rtol=1e-12, atol=0)
    same_gradients(loss, total, (images, texts))


def test_embeddings_that_know_nothing() -> None:
    same = torch.ones(9, 4)
    assert float(contrastive.clip(same, same, torch.tensor(4.6))) == pytest.approx(math.log(9), rel=1e-5)
    start = contrastive.siglip(same, -same, torch.tensor(math.log(10)), torch.tensor(-10.0))
    assert float(start) == pytest.approx(20.0 + 8 * math.exp(-20.0), rel=1e-5), "a partner is 20 off, the others told"
