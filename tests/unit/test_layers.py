"""Blocks of transformers: whichever library multiplies, and however few answers are wanted, they are the same."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch.func import functional_call
from torch.nn import functional as F

import synoptic
from synoptic.models.layers import Block
from synoptic.models.linear import Linear, quicken


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


class Quick:
    """A linear layer that `quicken` was asked for, and what tells whether it works with a copy."""

    def __init__(self, dtype: torch.dtype = torch.float32, bias: bool = True):
        torch.manual_seed(0)
        self.layer = Linear(48, 96, bias=bias).to(dtype).eval()
        quicken(self.layer)
        self.tokens = torch.randn(13, 48, dtype=dtype)

    @torch.no_grad()
    def answers(self) -> None:
        """It says what PyTorch says, and the same again."""
        within = 2e-2 if self.tokens.dtype == torch.bfloat16 else 1e-5
        answer, again = self.layer(self.tokens), self.layer(self.tokens)
        assert torch.equal(answer, again)
        expected = F.linear(self.tokens, self.layer.weight, self.layer.bias)
        torch.testing.assert_close(answer, expected, rtol=within, atol=within)

    @property
    def copied(self) -> bool:
        """Whether a copy of the weight is there."""
        kept = self.layer.reordered._kept
        return kept is not None and kept[0].is_set_to(self.layer.weight)


BFLOAT16 = pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="a processor without bfloat16")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=BFLOAT16)])
def test_a_quickened_layer_answers_the_same_from_a_copy(dtype: torch.dtype, bias: bool):
    quick = Quick(dtype, bias)
    quick.answers()
    assert quick.copied


def _moved(layer: Linear) -> None:
    layer.weight.data = layer.weight.data + 1


def _replaced(layer: Linear) -> None:
    layer.weight = torch.nn.Parameter(torch.randn(96, 48))


def _loaded(layer: Linear) -> None:
    layer.load_state_dict({"weight": torch.randn(96, 48), "bias": torch.randn(96)})


def _stepped(layer: Linear) -> None:
    layer(torch.randn(5, 48)).square().sum().backward()
    torch.optim.SGD(layer.parameters(), 0.1).step()


def _averaged(layer: Linear) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(list(layer.parameters()), [torch.randn(96, 48), torch.randn(96)], 0.5)


def _there_and_back(layer: Linear) -> None:
    layer.double().float()
    with torch.no_grad():
        layer.weight.add_(1)


def _biased(layer: Linear) -> None:
    layer.bias = torch.nn.Parameter(torch.randn(192)[::2])


def _parametrized(layer: Linear) -> None:
    torch.nn.utils.parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)


@pytest.mark.parametrize(
    "change", [_moved, _replaced, _loaded, _stepped, _averaged, _there_and_back, _biased, _parametrized]
)
def test_a_copy_does_not_outlive_its_weight(change: Callable[[Linear], None]):
    quick = Quick()
    quick.answers()
    assert quick.copied
    change(quick.layer)
    quick.answers()


def test_weights_whose_versions_nobody_counts_are_taken_as_they_are():
    quick = Quick()
    quick.answers()
    with torch.inference_mode():
        quick.layer.to(torch.float64).to(torch.float32)
        quick.answers()
        quick.layer.weight.add_(1)
        quick.answers()
    assert not quick.copied


def test_weights_given_from_outside_are_taken():
    quick = Quick()
    quick.answers()
    for _ in range(3):
        weights = {"weight": torch.randn(96, 48), "bias": torch.randn(96)}
        with torch.no_grad():
            answer = functional_call(quick.layer, weights, (quick.tokens,))
        torch.testing.assert_close(answer, F.linear(quick.tokens, *weights.values()), rtol=1e-5, atol=1e-5)


def test_what_is_copied_saved_or_trained_has_no_second_weight(tmp_path: Path):
    quick = Quick()
    quick.answers()
    assert set(quick.layer.state_dict()) == {"weight", "bias"}
    torch.save(quick.layer, tmp_path / "layer.pt")
    for other in (copy.deepcopy(quick.layer), pickle.loads(pickle.dumps(quick.layer))):
        assert other.reordered is not quick.layer.reordered and other.reordered._kept is None
        assert torch.equal(other.weight, quick.layer.weight)
    quick.layer.train()
    assert not quick.copied
    quick.answers()
    assert not quick.copied


def test_a_quickened_layer_has_gradients_and_is_mapped():
    quick = Quick()
    quick.answers()
    quick.layer(quick.tokens).sum().backward()
    assert torch.equal(quick.layer.bias.grad, torch.full((96,), 13.0))
    with torch.no_grad():
        stacked = torch.func.vmap(quick.layer)(quick.tokens[:, None])
        torch.testing.assert_close(stacked[:, 0], quick.layer(quick.tokens), rtol=1e-5, atol=1e-5)


def test_a_loaded_model_is_quick():
    vision = synoptic.load("vit_mini16", "cpu")
    vision(torch.rand(1, 3, 32, 32))
    layers = [layer for layer in vision.model.modules() if isinstance(layer, Linear)]
    assert layers and all(layer.reordered._kept is not None for layer in layers)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_the_answers_wanted_alone_are_those_among_all(causal: bool, training: bool):
    torch.manual_seed(0)
    block = Block(48, 3, 96, causal=causal, layer_scale=0.5).train(training)
    tokens, groups, rows = torch.randn(3 * 4 + 2 * 7, 48), ((3, 4), (2, 7)), torch.tensor([25, 0, 11, 18, 7])
    torch.testing.assert_close(block(tokens, groups, rows=rows), block(tokens, groups)[rows])
