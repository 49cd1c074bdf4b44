"""Balance of losses: what each term counts, and which teacher counts for a picture."""

import math

import numpy as np
import pytest
import torch

from synoptic.losses.balance import Balance, Balancer, teacher_weights

WEIGHTS = {"clip.patches": 1.0, "clip.summary": 0.5, "sam.patches": 2.0}


def terms_of(*values: float) -> dict[str, torch.Tensor]:
    """Losses of which gradients are wanted."""
    return {name: torch.tensor(value, requires_grad=True) for name, value in zip(WEIGHTS, values, strict=True)}


def test_fixed_is_the_weighted_sum() -> None:
    balancer = Balancer(WEIGHTS, "fixed")
    assert balancer(terms_of(1.0, 2.0, 3.0)).item() == 1.0 + 0.5 * 2.0 + 2.0 * 3.0
    assert {name: float(factor) for name, factor in balancer.factors().items()} == WEIGHTS
    assert not list(balancer.parameters()) and all(not tensor.numel() for tensor in balancer.state_dict().values())


def test_a_term_that_is_absent_adds_nothing() -> None:
    for kind in ("fixed", "uncertainty", "adaloss"):
        given = Balancer(WEIGHTS, kind)({"sam.patches": torch.tensor(3.0)})
        softplus = math.log(2.0) if kind == "uncertainty" else 0.0
        assert given.item() == pytest.approx(2.0 if kind == "adaloss" else 2.0 * (3.0 + softplus), rel=1e-6)


def test_uncertainty_is_its_definition() -> None:
    balancer = Balancer(WEIGHTS, "uncertainty")
    assert {name: float(factor) for name, factor in balancer.factors().items()} == WEIGHTS, "factors of 1 at first"
    assert balancer.log_scale is not None
    with torch.no_grad():
        balancer.log_scale.copy_(torch.tensor([0.5, -1.0, 2.0]))
    parts = [
        weight * (math.exp(-b) * loss + math.log1p(math.exp(b)))
        for weight, b, loss in zip(WEIGHTS.values(), (0.5, -1.0, 2.0), (1.0, 2.0, 3.0), strict=True)
    ]
    terms = terms_of(1.0, 2.0, 3.0)
    total = balancer(terms)
    assert total.item() == pytest.approx(sum(parts), rel=1e-6)
    total.backward()
    assert float(terms["sam.patches"].grad) == pytest.approx(2.0 * math.exp(-2.0), rel=1e-6)
    assert float(balancer.factors()["clip.summary"]) == pytest.approx(0.5 * math.exp(1.0), rel=1e-6)


def test_uncertainty_learns_factors_that_fall_with_the_loss() -> None:
    """At its best x = exp(b) solves x^2 = L (1 + x)."""
    balancer = Balancer(WEIGHTS, "uncertainty").double()
    optimiser = torch.optim.LBFGS(balancer.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=0)
    losses = dict(zip(WEIGHTS, (0.01, 1.0, 50.0), strict=True))

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        total = balancer({name: torch.tensor(loss, dtype=torch.float64) for name, loss in losses.items()})
        total.backward()
        return total

    optimiser.step(closure)
    factors = balancer.factors()
    for name, weight in WEIGHTS.items():
        x = weight / float(factors[name])
        assert x * x == pytest.approx(losses[name] * (1 + x), rel=1e-5)


def test_the_gradient_of_uncertainty_is_there_in_every_step_also_of_terms_that_are_absent() -> None:
    balancer = Balancer(WEIGHTS, "uncertainty")
    balancer({"sam.patches": torch.tensor(3.0)}).backward()
    assert balancer.log_scale is not None and balancer.log_scale.grad is not None
    assert balancer.log_scale.grad[:2].tolist() == [0.0, 0.0] and float(balancer.log_scale.grad[2]) != 0


def test_adaloss_divides_by_the_running_mean_without_a_bias_at_the_start() -> None:
    balancer = Balancer(WEIGHTS, "adaloss")
    seen: list[float] = []
    for step in range(5):
        value = 10.0 / (1 + step)
        seen.append(value)
        total = balancer(terms_of(value, 7.0, 0.001))
        mean = np.average(seen, weights=[0.99 ** (len(seen) - 1 - place) for place in range(len(seen))])
        assert total.item() == pytest.approx(value / mean + 0.5 + 2.0, rel=1e-6)
        assert float(balancer.factors()["clip.patches"]) == pytest.approx(1.0 / mean, rel=1e-6)


def test_no_gradient_goes_through_the_running_mean() -> None:
    balancer, terms = Balancer(WEIGHTS, "adaloss"), terms_of(4.0, 2.0, 3.0)
    balancer(terms).backward()
    assert float(terms["clip.patches"].grad) == pytest.approx(1.0 / 4.0)
    assert float(terms["sam.patches"].grad) == pytest.approx(2.0 / 3.0)


def test_a_term_that_is_absent_keeps_its_running_mean() -> None:
    balancer, other = Balancer(WEIGHTS, "adaloss"), Balancer(WEIGHTS, "adaloss")
    for each in (balancer, other):
        each(terms_of(4.0, 2.0, 3.0))
    balancer({"clip.patches": torch.tensor(1.0)})
    assert float(balancer.factors()["clip.patches"]) > float(other.factors()["clip.patches"])
    for name in ("clip.summary", "sam.patches"):
        assert torch.equal(balancer.factors()[name], other.factors()[name])


def test_in_evaluation_mode_running_means_stand_still() -> None:
    balancer = Balancer(WEIGHTS, "adaloss")
    balancer(terms_of(4.0, 2.0, 3.0))
    before = balancer.factors()
    balancer.eval()
    assert balancer(terms_of(8.0, 2.0, 3.0)).item() == pytest.approx(2.0 + 0.5 + 2.0)
    assert all(torch.equal(before[name], factor) for name, factor in balancer.factors().items())


def test_a_loss_of_zero_counts_as_zero() -> None:
    balancer, terms = Balancer(WEIGHTS, "adaloss"), terms_of(0.0, 2.0, 3.0)
    total = balancer(terms)
    total.backward()
    assert total.item() == pytest.approx(2.5) and all(term.grad.isfinite() for term in terms.values())


@pytest.mark.parametrize("kind", ["fixed", "uncertainty", "adaloss"])
def test_the_state_is_kept_by_a_checkpoint(kind: Balance) -> None:
    one, other = Balancer(WEIGHTS, kind), Balancer(WEIGHTS, kind)
    if one.log_scale is not None:
        torch.nn.init.normal_(one.log_scale)
    one(terms_of(4.0, 2.0, 3.0))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(terms_of(1.0, 2.0, 3.0)), other(terms_of(1.0, 2.0, 3.0)))


@pytest.mark.parametrize("kind", ["fixed", "uncertainty", "adaloss"])
def test_totals_are_float32_or_better(kind: Balance) -> None:
    for given, kept in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        terms = {name: torch.tensor(1.0, dtype=given) for name in WEIGHTS}
        assert Balancer(WEIGHTS, kind)(terms).dtype == kept


def test_unknown_kinds_and_terms_are_refused() -> None:
    with pytest.raises(ValueError, match="kind='ada' is none of fixed, uncertainty, adaloss"):
        Balancer(WEIGHTS, "ada")  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match=r"without a weight: dino\.patches"):
        Balancer(WEIGHTS, "fixed")({"dino.patches": torch.tensor(1.0)})


def draws_of(pictures: int, teachers: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(pictures, teachers, generator=rng), torch.rand(pictures, teachers, generator=rng)


def test_teacher_dropping_is_its_definition() -> None:
    losses, draws = draws_of(16, 4)
    kept = np.zeros((16, 4))
    for picture in range(16):
        for teacher in range(4):
            hardest = teacher == int(losses[picture].argmax())
            kept[picture, teacher] = hardest or draws[picture, teacher] >= 0.5
    np.testing.assert_allclose(teacher_weights(losses, draws, 0.5).numpy(), kept * 64 / kept.sum(), rtol=1e-6)


def test_the_hardest_teacher_is_kept_and_the_others_at_the_rate() -> None:
    losses, draws = draws_of(20000, 3)
    kept = teacher_weights(losses, draws, 0.3) > 0
    hardest = torch.zeros_like(kept).scatter(1, losses.argmax(1, keepdim=True), True)
    assert kept[hardest].all()
    assert float(kept[~hardest].float().mean()) == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize(("rate", "each"), [(0.0, [1.0, 1.0, 1.0]), (1.0, [0.0, 3.0, 0.0])])
def test_a_rate_of_0_drops_none_and_of_1_all_but_the_hardest(rate: float, each: list[float]) -> None:
    losses = torch.tensor([[0.1, 0.9, 0.5]]).expand(5, 3)
    assert teacher_weights(losses, torch.zeros(5, 3), rate).tolist() == [each] * 5


def test_teacher_weights_have_no_gradient_and_sum_to_that_of_no_dropping() -> None:
    losses, draws = draws_of(16, 4)
    weights = teacher_weights(losses.requires_grad_(), draws, 0.5)
    assert not weights.requires_grad and weights.dtype == losses.dtype
    assert float(weights.sum()) == pytest.approx(64.0)
