"""Linear layers that are quick without gradients on a CPU.

PyTorch multiplies float32 matrices with MKL, and those of bfloat16 with oneDNN. Where the rows are few and the
processor is not Intel's, oneDNN is the quicker one for float32 as well, and quicker again where the weight lies in the
order in which it reads (docs/log.md: 13 rows in two thirds and in a third of MKL's time, 1,600 rows in 0.97 and 0.78 of
it). Its operators, which PyTorch's own compiler emits, know no derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual


class Linear(nn.Linear):
    """nn.Linear, which takes the quicker of two libraries where no gradients are wanted, on a CPU.

    Attributes:
        reordered: the weight as oneDNN reads it, where `quicken` asked for it.
    """

    reordered: Reordered | None = None

    def forward(self, input: Tensor) -> Tensor:
        quick = self.quickly(input)
        return super().forward(input) if quick is None else quick

    def quickly(self, input: Tensor, activation: str = "none", form: str = "") -> Tensor | None:
        """What oneDNN makes of an input, an activation by its names behind it; None where it does not take the two, or
        should not."""
        if torch.is_grad_enabled() or _watched():
            return None
        weight, bias = self._parameters.get("weight"), self._parameters.get("bias")  # modules look attributes up slowly
        if weight is None:  # computed with every call, as by weight normalisation
            return None
        copy = None if self.reordered is None or self.training else self.reordered.of(weight, bias)
        if (copy is None and not (weight.dtype == torch.float32 and _taken(weight, bias))) or not _fits(input, weight):
            return None
        chosen = weight if copy is None else copy
        return torch.ops.mkldnn._linear_pointwise(input, chosen, bias, activation, [], form)

    def train(self, mode: bool = True) -> Linear:
        if mode and self.reordered is not None:
            self.reordered.drop()
        return super().train(mode)

    def _apply(self, *args: Any, **options: Any) -> nn.Module:  # .to(), .half(), .cuda(), ...
        if self.reordered is not None:
            self.reordered.drop()
        return super()._apply(*args, **options)


def activated(layer: nn.Module, input: Tensor, act: nn.Module) -> Tensor:
    """act(layer(input)), in one step where oneDNN takes it, which spares writing and reading what lies between; not of
    a layer whose own answer is listened to."""
    named = _activation(act)
    heard = layer._forward_hooks or layer._forward_pre_hooks or act._forward_hooks or act._forward_pre_hooks
    quick = layer.quickly(input, *named) if named and type(layer) is Linear and not heard else None
    return act(layer(input)) if quick is None else quick


def quicken(model: nn.Module) -> None:
    """Lets every linear layer of a model keep its weight a second time, as oneDNN reads it, for inference on a CPU.

    The copy is made when a layer is first asked in evaluation mode, and made anew when the weight has changed; what is
    written through `weight.data` or NumPy, past PyTorch's count of versions, is not noticed.
    """
    for layer in model.modules():
        if isinstance(layer, Linear) and layer.reordered is None:
            layer.reordered = Reordered()


class Reordered:
    """A weight as oneDNN reads it, and what tells whether the weight is still the one that it was made of.

    Neither copies nor files of a model have it: oneDNN's tensors know neither.
    """

    def __init__(self) -> None:
        self._kept: tuple[Tensor, int, Tensor | None, Tensor] | None = None  # weight, its version, bias, copy

    def of(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """The copy, to be used with that bias; None where oneDNN does not take the two."""
        if weight.is_inference():  # PyTorch does not count their versions
            return None
        kept = self._kept
        if kept is None or kept[1] != weight._version or not _same(weight, kept[0]) or not _same(bias, kept[2]):
            kept = self._kept = self._made(weight, bias)
        return None if kept is None else kept[3]

    def _made(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, int, Tensor | None, Tensor] | None:
        """The two themselves are held, so that none other can take their place in memory while the copy stands."""
        if type(weight) is not nn.Parameter or not weight.is_contiguous() or not _taken(weight, bias):
            return None
        held = weight.detach(), weight._version, None if bias is None else bias.detach()
        return *held, torch.ops.mkldnn._reorder_linear_weight(held[0], None)

    def drop(self) -> None:
        self._kept = None

    def __reduce__(self) -> tuple[type[Reordered], tuple[()]]:
        return Reordered, ()


def _activation(act: nn.Module) -> tuple[str, str] | None:
    """An activation by oneDNN's name for it and for its form; None for others."""
    if isinstance(act, nn.ReLU):
        return "relu", ""
    return ("gelu", act.approximate) if isinstance(act, nn.GELU) else None


def _same(tensor: Tensor | None, other: Tensor | None) -> bool:
    """Whether both are the same place in memory, read the same way."""
    return tensor is other if tensor is None or other is None else tensor.is_set_to(other)


def _watched() -> bool:
    """Whether something looks on that wants to see PyTorch's own operator."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")


def _fits(input: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's operator, which checks little itself, takes this input with such a weight."""
    return (
        _plain(input)
        and input.dtype == weight.dtype
        and input.numel() > 0
        and input.ndim > 0
        and input.shape[-1] == weight.shape[1]
    )


def _taken(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN's operator takes these on this machine; it reads biases as if they were contiguous."""
    return (
        hasattr(torch.ops.mkldnn, "_linear_pointwise")  # not in every build
        and _plain(weight)
        and (weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and _has_bfloat16()))
        and (
            bias is None
            or (_plain(bias) and bias.dtype == weight.dtype and bias.is_contiguous() and len(bias) == len(weight))
        )
    )


def _has_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 on this processor."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _plain(tensor: Tensor) -> bool:
    """On the host, laid out as usual, without a forward derivative."""
    return (
        tensor.is_cpu
        and tensor.layout == torch.strided
        and not tensor.is_nested
        and unpack_dual(tensor).tangent is None
    )
