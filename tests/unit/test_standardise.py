"""Standard forms of teachers' features: each against its definition, on correlated features with a mean far from 0."""

import copy
from typing import get_args

import pytest
import torch
from torch import nn

from synoptic.losses.hadamard import hadamard, levelling
from synoptic.losses.standardise import Moments, Standard, Standardiser

KINDS: tuple[Standard, ...] = get_args(Standard)
STATISTICAL = tuple(kind for kind in KINDS if kind != "none")


def features_of(rows: int = 400, width: int = 12, rank: int | None = None, mean: float = 1e4) -> torch.Tensor:
    """(rows, width) float64, correlated, channels of deviations from 0.01 to 10."""
    rng = torch.Generator().manual_seed(width)
    hidden = torch.randn(rows, rank or width, generator=rng, dtype=torch.float64)
    mixing = torch.randn(rank or width, width, generator=rng, dtype=torch.float64)
    scales = torch.logspace(-2, 1, width, dtype=torch.float64)
    return mean + (hidden @ mixing) * scales + torch.arange(width)


def well_conditioned(rank: int | None = None) -> torch.Tensor:
    """(400, 12) float64 of equal variances in all of its `rank` dimensions but for a factor of 100."""
    rng = torch.Generator().manual_seed(5)
    hidden = torch.randn(400, rank or 12, generator=rng, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(12, rank or 12, generator=rng, dtype=torch.float64))[0]
    return hidden * torch.logspace(-1, 0, rank or 12, dtype=torch.float64) @ basis.T + 10.0


def covariance_of(rows: torch.Tensor) -> torch.Tensor:
    apart = rows.double() - rows.double().mean(0)
    return apart.T @ apart / len(rows)


def settled(kind: Standard, rows: torch.Tensor) -> Standardiser:
    standardiser = Standardiser(rows.shape[1], kind)
    for part in rows.split(150):
        standardiser.observe(part)
    standardiser.settle()
    return standardiser


@pytest.mark.parametrize(("mean", "digits"), [(0.0, 1e-12), (1e4, 1e-11), (-1e8, 1e-6)])
def test_moments_gathered_in_parts_are_those_of_all_rows(mean: float, digits: float) -> None:
    """As far as float64 tells numbers of such a mean apart, whose smallest deviation is 0.04."""
    rows = features_of(mean=0.0) + mean
    moments, channels = Moments(12), Moments(12, correlated=False)
    for part in (rows[:1], rows[1:1], rows[1:300], rows[300:]):
        moments.update(part)
        channels.update(part)
    expected = covariance_of(rows)
    scale = expected.diagonal().sqrt()
    assert moments.rows == 400
    assert float(((moments.covariance - expected) / torch.outer(scale, scale)).abs().max()) < digits
    torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(channels.variances, moments.variances, rtol=digits, atol=0)


def test_moments_of_half_precision_features_are_found_in_float64() -> None:
    rows = (features_of(mean=0.0) + 100.0).to(torch.bfloat16)
    moments = Moments(12)
    moments.update(rows)
    torch.testing.assert_close(moments.covariance, covariance_of(rows), rtol=1e-10, atol=1e-10)


def test_moments_can_be_forgotten() -> None:
    moments = Moments(12)
    moments.update(features_of())
    moments.reset()
    moments.update(features_of(50))
    torch.testing.assert_close(moments.covariance, covariance_of(features_of(50)), rtol=1e-9, atol=1e-12)


def test_none_leaves_features_as_they_are() -> None:
    standardiser = Standardiser(12, "none")
    assert standardiser.settled
    standardiser.observe(features_of())
    standardiser.settle()
    assert torch.equal(standardiser(features_of()), features_of())


@pytest.mark.parametrize("kind", STATISTICAL)
def test_features_are_answered_as_they_are_until_it_is_settled(kind: Standard) -> None:
    standardiser = Standardiser(12, kind)
    standardiser.observe(features_of())
    assert not standardiser.settled and torch.equal(standardiser(features_of()), features_of())
    standardiser.settle()
    assert standardiser.settled and float(standardiser(features_of()).abs().mean()) < 10


def test_global_divides_by_the_root_of_the_mean_variance() -> None:
    rows = features_of()
    variances = rows.var(0, correction=0)
    expected = (rows - rows.mean(0)) / variances.mean().sqrt()
    torch.testing.assert_close(settled("global", rows)(rows), expected, rtol=1e-9, atol=1e-9)


def test_channel_gives_every_channel_a_variance_of_1() -> None:
    rows = features_of()
    expected = (rows - rows.mean(0)) / rows.std(0, correction=0)
    torch.testing.assert_close(settled("channel", rows)(rows), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_whitening_leaves_no_covariance(kind: Standard) -> None:
    rows = well_conditioned()
    whitened = covariance_of(settled(kind, rows)(rows))
    torch.testing.assert_close(whitened, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_whitening_of_fewer_dimensions_than_channels_whitens_those(kind: Standard) -> None:
    rows = well_conditioned(rank=4)
    values = torch.linalg.eigvalsh(covariance_of(settled(kind, rows)(rows)))
    torch.testing.assert_close(values, torch.tensor([0.0] * 8 + [1.0] * 4).double(), rtol=0, atol=1e-9)


def test_pca_answers_with_the_components_the_largest_first() -> None:
    rows = features_of()
    values, vectors = torch.linalg.eigh(covariance_of(rows))
    component = (rows - rows.mean(0)) @ vectors[:, -1] / values[-1].sqrt()
    given = settled("pca", rows)(rows)[:, 0]
    assert values[-1] > 1.5 * values[-2], "else the direction is not well told apart"
    torch.testing.assert_close(given.abs(), component.abs(), rtol=1e-6, atol=1e-8)


def test_zca_is_the_inverse_root_of_the_covariance() -> None:
    rows = well_conditioned()
    root = settled("zca", rows).projection
    torch.testing.assert_close(root, root.T)
    identity = torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(root @ root @ covariance_of(rows), identity, rtol=0, atol=1e-9)
    assert (torch.linalg.eigvalsh(root) > 0).all()


@pytest.mark.parametrize("width", [12, 13, 20, 50])
@pytest.mark.parametrize("rank", [None, 5])
def test_phi_s_gives_every_channel_a_variance_of_1_by_a_rotation_and_one_number(width: int, rank: int | None) -> None:
    rows = features_of(width=width, rank=rank)
    standardiser = settled("phi_s", rows)
    answer = standardiser(rows)
    assert float(answer.mean(0).abs().max()) < 1e-8
    variances = answer.var(0, correction=0)
    torch.testing.assert_close(variances, torch.ones(width, dtype=torch.float64), rtol=1e-9, atol=0)
    phi = torch.linalg.eigvalsh(covariance_of(rows)).mean().sqrt()
    rotation = standardiser.projection * phi
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-9)


def test_phi_s_is_its_definition() -> None:
    """y' = H U^T (y - mu) / phi, up to the signs of the columns of U, which are such that their largest entry is
    positive."""
    rows = features_of()
    values, vectors = torch.linalg.eigh(covariance_of(rows))
    vectors = vectors.flip(1)
    for column in vectors.T:
        column *= column[column.abs().argmax()].sign()
    expected = (rows - rows.mean(0)) @ vectors @ hadamard(12).T / values.mean().sqrt()
    torch.testing.assert_close(settled("phi_s", rows)(rows), expected, rtol=1e-6, atol=1e-7)


def test_the_squared_error_of_who_knows_the_mean_alone_is_1() -> None:
    rows = features_of()
    for kind in ("global", "channel", "phi_s"):
        assert float(settled(kind, rows)(rows).square().mean()) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("kind", STATISTICAL)
def test_float32_and_half_precision_features_are_answered_in_float32(kind: Standard) -> None:
    rows = features_of(mean=1e4)
    standardiser = settled(kind, rows.float())
    exact = standardiser(rows.float().double())
    given = standardiser(rows.float())
    assert given.dtype == torch.float32 and standardiser(rows.half()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(standardiser(rows.float()), given, rtol=0, atol=0)
    # Rounding the mean of 1e4 to float32 would move a channel of deviation 0.01 by a twentieth of it.
    assert float((given - exact).abs().max()) < 1e-5 * float(exact.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_invert_takes_back_what_forward_did(kind: Standard) -> None:
    rows = features_of().view(20, 20, 12)
    standardiser = settled(kind, rows.flatten(0, 1))
    torch.testing.assert_close(standardiser.invert(standardiser(rows)), rows, rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_a_folded_head_answers_in_the_teachers_own_space(kind: Standard, dtype: torch.dtype, digits: float) -> None:
    standardiser = settled(kind, features_of())
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(7, 9), nn.GELU(), nn.Linear(9, 12)).to(dtype)
    tokens = torch.randn(30, 7, dtype=dtype)
    expected = standardiser.invert(head(tokens))
    last = head[-1]
    assert isinstance(last, nn.Linear)
    standardiser.fold(last)
    assert last.weight.dtype == dtype and last.weight.requires_grad
    assert float((head(tokens) - expected).detach().abs().max()) <= digits * float(expected.detach().abs().max())


@pytest.mark.parametrize("kind", STATISTICAL)
def test_constant_features_are_answered_with_zeros(kind: Standard) -> None:
    rows = torch.full((50, 6), 12345.678)
    standardiser = settled(kind, rows)
    assert float(standardiser(rows).abs().max()) < 1e-6
    torch.testing.assert_close(standardiser.invert(standardiser(rows)), rows)
    assert standardiser(rows + 1.0).isfinite().all()


@pytest.mark.parametrize("kind", STATISTICAL)
def test_channels_without_variance_give_no_infinities(kind: Standard) -> None:
    rows = torch.cat((features_of(), torch.full((400, 3), 7.0)), dim=1)
    standardiser = settled(kind, rows)
    for answer in (standardiser(rows), standardiser.invert(standardiser(rows)), standardiser.projection):
        assert answer.isfinite().all()
    assert float(standardiser(rows).square().mean()) <= 1.0 + 1e-9


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_whitening_makes_no_direction_more_than_316_times_as_large(kind: Standard) -> None:
    """1e-5, the floor, is of the mean eigenvalue."""
    rows = features_of(rank=4)
    phi = float(covariance_of(rows).diagonal().mean().sqrt())
    assert float(torch.linalg.matrix_norm(settled(kind, rows).projection, 2)) <= 1e5**0.5 / phi * (1 + 1e-9)


@pytest.mark.parametrize(
    ("kind", "rows", "needed"), [("global", 1, 2), ("phi_s", 1, 2), ("pca", 12, 13), ("zca", 0, 13)]
)
def test_too_few_rows_are_told_with_how_many_are_needed(kind: Standard, rows: int, needed: int) -> None:
    standardiser = Standardiser(12, kind)
    standardiser.observe(features_of()[:rows])
    mend = "phi_s or channel" if needed > 2 else "at least"
    with pytest.raises(
        ValueError, match=f"standardise={kind}: {rows} features of 12 channels were .* {needed} .*{mend}"
    ):
        standardiser.settle()
    standardiser.observe(features_of()[: needed - rows])
    standardiser.settle()


def test_features_that_are_not_finite_are_told() -> None:
    standardiser = Standardiser(12, "phi_s")
    standardiser.observe(torch.cat((features_of(), torch.full((1, 12), torch.inf))))
    with pytest.raises(ValueError, match="not all features that were observed are finite"):
        standardiser.settle()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind='phi' is none of none, global, channel, pca, zca, phi_s"):
        Standardiser(12, "phi")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", STATISTICAL)
def test_a_new_stage_forgets_the_moments_and_keeps_the_projection(kind: Standard) -> None:
    standardiser, other = settled(kind, features_of()), 3.0 * features_of(200) + 1.0
    before = standardiser(other)
    standardiser.restart()
    assert standardiser.settled and torch.equal(standardiser(other), before)
    standardiser.observe(other)
    standardiser.settle()
    torch.testing.assert_close(standardiser(other), settled(kind, other)(other))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_all_that_is_needed_to_go_on(kind: Standard) -> None:
    rows = features_of()
    whole, parts, fresh = (Standardiser(12, kind) for _ in range(3))
    for standardiser in (whole, parts):
        standardiser.observe(rows[:200])
        standardiser.settle()
    fresh.load_state_dict(copy.deepcopy(parts.state_dict()))
    assert fresh.settled and torch.equal(fresh(rows), parts(rows))
    for standardiser in (whole, fresh):
        standardiser.observe(rows[200:])
        standardiser.settle()
    assert torch.equal(fresh(rows), whole(rows))


def test_the_same_moments_give_the_same_matrix() -> None:
    one, other = (settled("phi_s", features_of(width=13)) for _ in range(2))
    assert torch.equal(one.projection, other.projection)
    values = torch.linalg.eigvalsh(covariance_of(features_of(width=13))).flip(0)
    vectors = (levelling(values).T @ one.projection).T  # what is left is U^T / phi
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()
