"""The linear grid: every head is trained as if it were alone, and the judged pictures decide nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synoptic.data.sources import Source
from synoptic.evaluation import linear
from synoptic.evaluation.features import Embeddings, Space
from synoptic.evaluation.linear import RATES, Head, Linear, fit
from synoptic.evaluation.recognition import set_apart

CLASSES = ("a", "b", "c", "d", "e", "f")


def source(labels: Sequence[int], classes: Sequence[str] = CLASSES) -> Source:
    """Pictures that are never read."""
    return Source(Path("nowhere"), [Path(f"{i}.jpg") for i in range(len(labels))], classes, np.array(labels))


def seen(linear: Linear, labels: np.ndarray, telling: Space | None = None, seed: int = 0) -> Embeddings:
    """Noise in all spaces but one, whose vectors tell the class."""
    rng = torch.Generator().manual_seed(seed)
    noise = {space: 0.1 * torch.randn(len(labels), 7, generator=rng) for space in linear.spaces}
    if telling is not None:
        noise[telling][:, : len(CLASSES)] += F.one_hot(torch.from_numpy(labels), len(CLASSES))
    return Embeddings(np.arange(len(labels)), noise)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "STEPS", (150, 150))


@pytest.fixture
def labels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 6, 200), rng.integers(0, 6, 60)


def plain_sgd(rows: Tensor, labels: Tensor, start: Tensor, batches: Sequence[Tensor], rate: float) -> nn.Linear:
    """One head, by PyTorch's own layer, gradient, optimiser and schedule."""
    head = nn.Linear(rows.shape[1], start.shape[1], dtype=rows.dtype)
    with torch.no_grad():
        head.weight.copy_(start.T)
        head.bias.zero_()
    sgd = torch.optim.SGD(head.parameters(), lr=rate * len(batches[0]) / 256, momentum=0.9, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, len(batches), eta_min=0)
    for batch in batches:
        sgd.zero_grad()
        F.cross_entropy(head(rows[batch]), labels[batch]).backward()
        sgd.step()
        schedule.step()
    return head


def test_heads_side_by_side_are_those_of_plain_sgd_one_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(linear, "STEPS", (30, 30))
    monkeypatch.setattr(linear, "BATCH", 16)
    generator = torch.Generator().manual_seed(3)
    rows, labels = torch.randn(50, 6, generator=generator).double(), torch.randint(0, 4, (50,), generator=generator)
    reads = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]).T.double()
    rates = [0.1, 5.0, 2.0]
    found = fit(rows, labels, 4, reads, rates, seed=7)

    generator = torch.Generator().manual_seed(7)
    start = 0.01 * torch.randn(6, 1, 4, generator=generator)[:, 0]
    batches = list(linear._batches(50, 16, 30, generator))
    logits = found.logits(rows)
    assert logits.shape == (50, 3, 4)
    for place, rate in enumerate(rates):
        read = reads[:, place].bool()
        head = plain_sgd(rows[:, read], labels, start[read].double(), batches, rate)
        torch.testing.assert_close(logits[:, place], head(rows[:, read]).detach(), rtol=1e-9, atol=1e-9)
        assert (found.weight[~read, place] == 0).all()


def test_the_grid_is_that_of_dinov2():
    assert len(RATES) == 13
    assert (RATES[0], RATES[-1]) == (1e-5, 0.1)
    widths = [2, 2, 2, 2, 3]
    reads = {(head.blocks, head.mean_patch): linear._reads(head, widths).int().tolist() for head in GRID}
    assert reads == {
        (1, False): [0] * 6 + [1] * 2 + [0] * 3,
        (1, True): [0] * 6 + [1] * 5,
        (4, False): [1] * 8 + [0] * 3,
        (4, True): [1] * 11,
    }


GRID = [Head(0.1, blocks, mean_patch) for blocks in (1, 4) for mean_patch in (False, True)]


@pytest.mark.parametrize(("pictures", "steps"), [(48, 1250), (5000, 3907), (1_281_167, 12500)])
def test_steps_follow_from_the_pictures(pictures: int, steps: int):
    assert linear._steps(pictures) == steps


def test_no_picture_comes_again_before_all_have_come():
    batches = list(linear._batches(10, 4, 5, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [4] * 5
    order = torch.cat(batches)
    assert sorted(order[:10].tolist()) == sorted(order[10:].tolist()) == list(range(10))


@pytest.mark.parametrize("telling", [-4, -1, "patches"])
def test_the_head_that_reads_what_tells_the_classes_is_found(few_steps: None, labels, telling: int | str):
    probe = Linear(source(labels[0]), source(labels[1]))
    space = Space(block=telling, unit=False) if isinstance(telling, int) else Space(pooling="patches", unit=False)
    parts = [seen(probe, part, space, seed) for seed, part in enumerate(labels)]
    scores = dict(probe.scores(*parts))
    assert list(scores) == ["linear", "linear_top5"]
    assert scores["linear"] > 0.95
    assert scores["linear"] <= scores["linear_top5"] <= 1


def test_noise_scores_chance(few_steps: None, labels):
    probe = Linear(source(labels[0]), source(labels[1]))
    score = dict(probe.scores(*(seen(probe, part, seed=seed) for seed, part in enumerate(labels))))["linear"]
    assert score == pytest.approx(1 / 6, abs=0.17)  # 60 pictures: 3.5 standard errors


def test_a_run_repeats_and_the_judged_classes_decide_nothing(few_steps: None, labels):
    """If they chose the head, other classes would choose another one, and say other things of the same pictures."""
    train, judged = labels
    probes = [Linear(source(train), source(part)) for part in (judged, judged, judged[::-1])]
    said = [probe.judge(seen(probe, train), seen(probe, judged, seed=1)).scores for probe in probes]
    np.testing.assert_array_equal(said[0], said[1])
    np.testing.assert_array_equal(said[0], said[2])


def test_the_tenth_set_apart_follows_from_the_seed():
    held, rest = set_apart(200, 0)
    assert len(held) == 20
    assert sorted([*held, *rest]) == list(range(200))
    assert held.tolist() == set_apart(200, 0)[0].tolist() != set_apart(200, 1)[0].tolist()
    assert [part.tolist() for part in set_apart(1, 0)] == [[0], [0]]


def test_unreadable_pictures_keep_their_neighbours_classes(few_steps: None, labels):
    probe = Linear(source(labels[0]), source(labels[1]))
    parts = []
    for seed, part in enumerate(labels):
        read = np.arange(1, len(part), 2)
        whole = seen(probe, part, Space(block=-1, unit=False), seed)
        parts.append(Embeddings(read, {space: vectors[read] for space, vectors in whole.vectors.items()}))
    recognised = probe.judge(*parts)
    assert recognised.truth.tolist() == labels[1][1::2].tolist()
    assert recognised.accuracy() > 0.95


def test_a_model_of_fewer_blocks_is_read_in_those_it_has(few_steps: None, labels):
    probe = Linear(source(labels[0]), source(labels[1]))
    for left_out in ([-4, -3, -2], [-4, -3, -2, -1]):
        parts = [seen(probe, part, Space(unit=False), seed) for seed, part in enumerate(labels)]
        for part in parts:
            part.vectors[Space(block=-1, unit=False)] = part.vectors[Space(unit=False)]
            for block in left_out:
                del part.vectors[Space(block=block, unit=False)]
        assert dict(probe.scores(*parts))["linear"] > 0.95


def test_in_a_teachers_space_there_are_no_blocks(few_steps: None, labels):
    probe = Linear(source(labels[0]), source(labels[1]), adaptor="clip")
    assert probe.spaces == (Space("clip", unit=False), Space("clip", "patches", unit=False))
    parts = [seen(probe, part, Space("clip", unit=False), seed) for seed, part in enumerate(labels)]
    assert list(dict(probe.scores(*parts))) == ["linear_clip", "linear_top5_clip"]


def test_with_five_classes_or_fewer_the_top_five_say_nothing(few_steps: None):
    labels = np.tile([0, 1, 2], 20)
    probe = Linear(source(labels, "abc"), source(labels, "abc"))
    assert list(dict(probe.scores(seen(probe, labels), seen(probe, labels)))) == ["linear"]


def test_memory_is_bounded_and_that_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, labels):
    monkeypatch.setattr(linear, "MOST_PICTURES", 50)
    probe = Linear(source(labels[0]), source(labels[1]))
    assert len(probe.train) == len(probe.sources[0]) == 50
    assert "linear: learns from 50 of the 200 training pictures" in caplog.text
