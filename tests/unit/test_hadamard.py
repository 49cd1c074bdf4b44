"""Rotations: orthonormal, of entries of one magnitude where a Hadamard matrix is known, and levelling everywhere."""

import math

import pytest
import torch

from synoptic.losses.hadamard import hadamard, is_known, levelling

ORDERS = range(1, 301)
# Multiples of 4 that need prime powers or other constructions than Sylvester's and Paley's for primes.
MISSING = {52, 92, 100, 116, 156, 172, 184, 188, 232, 236, 244, 260, 268, 292}
# Widths of released teachers and their heads (notes of PHI-S: all are reached by Sylvester and Paley).
WIDTHS = (192, 256, 384, 512, 768, 832, 1024, 1152, 1280, 1408, 1536, 1664, 1792, 2048, 4096)


def assert_orthonormal(matrix: torch.Tensor) -> None:
    identity = torch.eye(len(matrix), dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, identity, rtol=0, atol=1e-13)


def spectrum(n: int) -> torch.Tensor:
    """Variances over five orders of magnitude, as features have them, a few of them zero."""
    values = 10.0 ** (-5.0 * torch.rand(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64))
    values[n - n // 5 :] = 0.0
    return values


def test_orders_without_a_known_matrix_are_these_alone() -> None:
    known = {n for n in ORDERS if is_known(n)}
    assert known == {1, 2} | {n for n in ORDERS if n % 4 == 0} - MISSING


def test_every_order_has_an_orthonormal_matrix() -> None:
    for n in ORDERS:
        assert_orthonormal(hadamard(n))


def test_entries_are_of_one_magnitude_where_a_matrix_is_known_and_near_it_elsewhere() -> None:
    for n in ORDERS:
        magnitudes = hadamard(n).abs() * math.sqrt(n)
        if is_known(n):
            torch.testing.assert_close(magnitudes, torch.ones(n, n, dtype=torch.float64), rtol=1e-14, atol=0)
        else:
            assert float(magnitudes.max()) <= math.sqrt(2.0) + 1e-12


def test_channels_of_any_variances_become_channels_of_their_mean_variance() -> None:
    for n in ORDERS:
        variances = spectrum(n)
        rotation = levelling(variances)
        assert_orthonormal(rotation)
        level = (rotation * variances * rotation).sum(1) / variances.mean()
        torch.testing.assert_close(level, torch.ones(n, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_known_matrix_levels_whatever_the_variances_are() -> None:
    for n in (20, 28, 36, 44):
        assert torch.equal(levelling(spectrum(n)), hadamard(n))


@pytest.mark.parametrize("n", [3, 52, 77])
@pytest.mark.parametrize("factor", [0.0, 1e-200, 1e200])
def test_variances_of_any_size_are_levelled(n: int, factor: float) -> None:
    rotation = levelling(factor * spectrum(n))
    assert_orthonormal(rotation)
    level = (rotation * spectrum(n) * rotation).sum(1) if factor else torch.ones(n, dtype=torch.float64)
    torch.testing.assert_close(level, level.mean().expand(n), rtol=1e-12, atol=0)


@pytest.mark.parametrize("n", WIDTHS)
def test_the_widths_of_teachers_have_hadamard_matrices(n: int) -> None:
    matrix = hadamard(n, torch.float32) * math.sqrt(n)
    assert matrix.dtype == torch.float32 and torch.equal(matrix.abs().round(), torch.ones(n, n))
    rows = matrix.round()[:: max(n // 64, 1)]  # some of them with all: sums of whole numbers, exact in float32
    expected = torch.zeros(len(rows), n)
    expected[torch.arange(len(rows)), torch.arange(0, n, max(n // 64, 1))] = n
    assert torch.equal(rows @ matrix.round().T, expected)


def test_a_matrix_is_the_same_each_time() -> None:
    for n in (7, 12, 36):
        assert torch.equal(hadamard(n), hadamard(n)) and torch.equal(levelling(spectrum(n)), levelling(spectrum(n)))


def test_there_is_none_of_order_0() -> None:
    with pytest.raises(ValueError, match="n=0 should be 1 or more"):
        hadamard(0)
