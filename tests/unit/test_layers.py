"""Blocks of transformers: whichever library multiplies, and however few answers are wanted, they are the same."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from synoptic.models.layers import Block, Linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(0,), (1,), (13,), (300,), (3, 5)])
def test_a_linear_layer_without_gradients_is_the_one_with_them(shape: tuple[int, ...], bias: bool):
    torch.manual_seed(0)
    layer, tokens = Linear(48, 96, bias=bias), torch.randn(*shape, 48)
    expected = F.linear(tokens, layer.weight, layer.bias)
    assert expected.requires_grad
    for quiet in (torch.no_grad, torch.inference_mode):
        with quiet():
            torch.testing.assert_close(layer(tokens), expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_linear_layer_keeps_other_dtypes(dtype: torch.dtype):
    torch.manual_seed(0)
    layer, tokens = Linear(48, 96).to(dtype), torch.randn(13, 48, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(layer(tokens), F.linear(tokens, layer.weight, layer.bias))


def test_a_linear_layer_follows_autocast_and_refuses_mixed_dtypes():
    layer, tokens = Linear(48, 96), torch.randn(13, 48)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(tokens).dtype == torch.bfloat16
    with torch.no_grad(), pytest.raises(RuntimeError, match="dtype"):
        layer(tokens.bfloat16())


def test_tokens_that_are_a_view_are_read_in_their_order():
    torch.manual_seed(0)
    layer, tokens = Linear(48, 96), torch.randn(48, 13).T
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens), layer(tokens.contiguous()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_the_answers_wanted_alone_are_those_among_all(causal: bool, training: bool):
    torch.manual_seed(0)
    block = Block(48, 3, 96, causal=causal, layer_scale=0.5).train(training)
    tokens, groups, rows = torch.randn(3 * 4 + 2 * 7, 48), ((3, 4), (2, 7)), torch.tensor([25, 0, 11, 18, 7])
    torch.testing.assert_close(block(tokens, groups, rows=rows), block(tokens, groups)[rows])
