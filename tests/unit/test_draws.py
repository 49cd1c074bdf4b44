"""Random numbers belong to a sample: they follow from (seed, position, name) and from nothing else."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synoptic.data.draws import Draws

MANY = 100_000
positions = st.lists(st.integers(0, 2**50), min_size=1, max_size=30)
seeds = st.integers(-(2**63), 2**64 - 1)


def many(seed: int = 0, start: int = 0) -> Draws:
    return Draws(seed, torch.arange(start, start + MANY))


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1].item()


def chi_square(counts: torch.Tensor) -> float:
    """Standard deviations by which the counts are less even than chance allows."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    return ((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)).item()


@given(seeds, positions, st.text(max_size=10), st.integers(1, 5))
def test_a_draw_does_not_know_its_batch(seed, where, name, count):
    position = torch.tensor(where)
    together = Draws(seed, position).uniform(name, count=count)
    assert together.shape == (len(where), count) and together.dtype == torch.float32
    for place, one in enumerate(where):
        alone = Draws(seed, torch.tensor([one]))
        assert torch.equal(alone.uniform(name, count=count)[0], together[place])
    assert torch.equal(Draws(seed, position.flip(0)).uniform(name, count=count).flip(0), together)


@given(seeds, positions)
def test_the_number_of_draws_and_their_order_do_not_matter(seed, where):
    draws = Draws(seed, torch.tensor(where))
    first = draws.uniform("a")
    assert first.shape == (len(where),) and len(draws) == len(where)
    draws.uniform("b", count=3)
    assert torch.equal(draws.uniform("a"), first)
    assert torch.equal(draws.uniform("a", count=1)[:, 0], first)
    assert torch.equal(draws.uniform("a", count=4)[:, 0], first)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63])
def test_uniform_is_uniform(seed):
    values = many(seed).uniform("crop")
    assert values.min() >= 0 and values.max() < 1
    assert abs(chi_square(torch.histc(values, 1000, 0, 1))) < 5
    assert len(values.unique()) > 0.99 * MANY  # 24 bits: a few of 100,000 coincide


@given(st.floats(-100, 100, width=32), st.floats(0.001953125, 100, width=32))
def test_uniform_keeps_its_range(low, span):
    values = Draws(0, torch.arange(1000)).uniform("x", low, low + span)
    # In float32 the sum may round up to the upper end itself.
    assert low <= values.min() and values.max() <= low + span * 1.0001
    assert values.max() - values.min() > 0.97 * span - 1e-4


@pytest.mark.parametrize("shift", [1, 2, 64, 1000])
def test_neighbours_are_independent(shift):
    values = many().uniform("crop", count=2)
    assert abs(correlation(values[:-shift, 0], values[shift:, 0])) < 5 / math.sqrt(MANY)
    assert abs(correlation(values[:, 0], values[:, 1])) < 5 / math.sqrt(MANY)
    assert abs(correlation(values[:-shift, 0], values[shift:, 1])) < 5 / math.sqrt(MANY)


@pytest.mark.parametrize(("one", "other"), [("flip", "crop"), ("crop1", "crop2"), ("", "a"), ("ab", "ba")])
def test_names_are_independent(one, other):
    draws = many()
    assert abs(correlation(draws.uniform(one), draws.uniform(other))) < 5 / math.sqrt(MANY)


@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 2), (0, 2**32), (-1, 1)])
def test_seeds_are_independent(one, other):
    assert abs(correlation(many(one).uniform("a"), many(other).uniform("a"))) < 5 / math.sqrt(MANY)


def test_pairs_fill_the_square():
    cells = (many().uniform("point", count=2) * 30).long()
    assert abs(chi_square(torch.bincount(cells[:, 0] * 30 + cells[:, 1], minlength=900).float())) < 5


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_flags_come_with_their_probability(probability):
    flags = many().flags("flip", probability)
    deviation = math.sqrt(probability * (1 - probability) / MANY)
    assert flags.dtype == torch.bool
    assert abs(flags.float().mean().item() - probability) <= 5 * deviation


def test_integers_cover_their_range_evenly():
    values = many().integers("caption", 7)
    assert values.dtype == torch.int64
    assert values.min() == 0 and values.max() == 6
    assert abs(chi_square(torch.bincount(values, minlength=7).float())) < 5


@given(st.lists(st.integers(1, 10_000_000), min_size=1, max_size=50))
def test_integers_stay_below_each_samples_own_bound(bounds):
    high = torch.tensor(bounds)
    values = Draws(3, torch.arange(len(bounds))).integers("caption", high)
    assert (values >= 0).all() and (values < high).all()


def test_torchs_own_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    many().uniform("a")
    assert torch.equal(torch.get_rng_state(), before)
