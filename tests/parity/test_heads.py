"""Our heads against their definitions, the formulas written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparison import assert_equal
from torch import Tensor, nn

from synoptic.models.heads import DinoHead, MlpHead


def randomised(head: nn.Module, seed: int = 0) -> Any:
    """The head in float64 with every parameter and statistic drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    head = head.double()
    with torch.no_grad():
        for name, tensor in head.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5 * name.endswith("running_var"))
    return head


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return torch.einsum("...i,oi->...o", x, layer.weight) + layer.bias


@pytest.mark.parametrize("training", [True, False])
def test_a_dino_head_with_batch_normalisation_is_its_definition(training: bool) -> None:
    head = randomised(DinoHead(5, 7, hidden=6, bottleneck=4, norm=True)).train(training)
    summary = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first, norm1, _, second, norm2, _, third = head.mlp

    def normalised(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
        mean, variance = (x.mean(0), x.var(0, unbiased=False)) if training else (norm.running_mean, norm.running_var)
        return (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias

    hidden = gelu(normalised(norm1, linear(first, summary)))
    hidden = linear(third, gelu(normalised(norm2, linear(second, hidden))))
    unit = hidden / hidden.square().sum(1, keepdim=True).sqrt()
    lengths, directions = (getattr(head.last_layer.parametrizations.weight, f"original{n}") for n in (0, 1))
    prototypes = lengths * directions / directions.square().sum(1, keepdim=True).sqrt()
    expected = unit @ prototypes.T
    assert_equal(head(summary), expected)


def test_prototypes_start_at_unit_length_and_stay_so_unless_they_may_grow() -> None:
    for fixed in (True, False):
        head = DinoHead(5, 7, hidden=6, bottleneck=4, fixed_norm=fixed)
        torch.testing.assert_close(head.last_layer.weight.norm(dim=1), torch.ones(7))
        learned = [name for name, parameter in head.last_layer.named_parameters() if parameter.requires_grad]
        assert len(learned) == (1 if fixed else 2)


def test_under_autocast_the_logits_are_those_of_float32() -> None:
    """Temperatures down to 0.01 divide them, so that the rounding of half precision would decide."""
    torch.manual_seed(0)
    head = DinoHead(8, 50, hidden=16, bottleneck=12)
    nn.init.normal_(head.last_layer.parametrizations.weight.original1)
    with torch.autocast("cpu", torch.bfloat16):
        bottleneck = head.mlp(torch.randn(6, 8))
        head.mlp = nn.Identity()
        logits = head(bottleneck)
    assert bottleneck.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, head(bottleneck.float()), rtol=0, atol=1e-5)


def test_an_mlp_head_is_its_definition() -> None:
    head = randomised(MlpHead(5, 6, 3))
    tokens = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hidden = linear(head.fc1, tokens)
    centred = hidden - hidden.mean(-1, keepdim=True)
    normalised = centred / (centred.square().mean(-1, keepdim=True) + head.norm.eps).sqrt()
    expected = linear(head.fc2, gelu(normalised * head.norm.weight + head.norm.bias))
    assert_equal(head(tokens), expected)
