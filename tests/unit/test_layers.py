"""Blocks of transformers: whichever library multiplies, and however few answers are wanted, they are the same."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch.func import functional_call
from torch.nn import functional as F

from synoptic.models.layers import Block, Linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(0,), (1,), (13,), (300,), (3, 5)])
def test_a_linear_layer_infers_what_it_learns_with(shape: tuple[int, ...], bias: bool):
    torch.manual_seed(0)
    layer, tokens = Linear(48, 96, bias=bias), torch.randn(*shape, 48)
    for quiet in (torch.no_grad, torch.inference_mode):
        with quiet():
            torch.testing.assert_close(layer(tokens), F.linear(tokens, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_linear_layer_keeps_other_dtypes(dtype: torch.dtype):
    torch.manual_seed(0)
    layer, tokens = Linear(48, 96).to(dtype), torch.randn(13, 48, dtype=dtype)
    with torch.inference_mode():
        assert torch.equal(layer(tokens), F.linear(tokens, layer.weight, layer.bias))


def test_a_linear_layer_follows_autocast():
    layer, tokens = Linear(48, 96), torch.randn(13, 48)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert layer(tokens).dtype == torch.bfloat16


def test_a_linear_layer_refuses_what_pytorch_refuses():
    layer, tokens = Linear(48, 96), torch.randn(13, 48)
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="dtype"):
            layer(tokens.bfloat16())
        with pytest.raises(RuntimeError, match=r"cannot be multiplied \(13x47 and 48x96\)"):
            layer(tokens[:, :47])
        with pytest.raises(RuntimeError, match="meta"):
            layer.to("meta")(tokens)


def test_views_are_read_in_their_order():
    torch.manual_seed(0)
    layer, tokens = Linear(48, 96), torch.randn(48, 13).T
    layer.bias = torch.nn.Parameter(torch.randn(192)[::2])
    with torch.inference_mode():
        expected = tokens.contiguous() @ layer.weight.T + layer.bias
        torch.testing.assert_close(layer(tokens), expected, rtol=1e-5, atol=1e-5)


def test_forward_derivatives_need_no_gradients_and_are_kept():
    """Of the tokens and of the weights, which PyTorch tracks without gradients too."""
    torch.manual_seed(0)
    layer, tokens = Linear(48, 96), torch.randn(13, 48)
    weights = {"weight": layer.weight.detach(), "bias": layer.bias.detach()}
    with torch.no_grad():
        _, tangent = torch.func.jvp(layer, (tokens,), (tokens,))
        torch.testing.assert_close(tangent, tokens @ layer.weight.T, rtol=1e-5, atol=1e-5)
        answer, tangent = torch.func.jvp(lambda w: functional_call(layer, w, (tokens,)), (weights,), (weights,))
        torch.testing.assert_close(tangent, answer, rtol=1e-5, atol=1e-5)
        with fwAD.dual_level():
            dual = layer(fwAD.make_dual(tokens, tokens))
            torch.testing.assert_close(fwAD.unpack_dual(dual).tangent, tokens @ layer.weight.T, rtol=1e-5, atol=1e-5)


def test_it_is_traced_as_pytorchs_own():
    layer, tokens = Linear(48, 96), torch.randn(13, 48)
    with torch.no_grad():
        traced = torch.jit.trace(layer, tokens)
        torch.testing.assert_close(traced(tokens), layer(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_the_answers_wanted_alone_are_those_among_all(causal: bool, training: bool):
    torch.manual_seed(0)
    block = Block(48, 3, 96, causal=causal, layer_scale=0.5).train(training)
    tokens, groups, rows = torch.randn(3 * 4 + 2 * 7, 48), ((3, 4), (2, 7)), torch.tensor([25, 0, 11, 18, 7])
    torch.testing.assert_close(block(tokens, groups, rows=rows), block(tokens, groups)[rows])
