"""How our models are compared with their references."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from synoptic.weights.convert import Table, from_ours, to_ours

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}  # of the reference's largest absolute value


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    bound = TOLERANCE[theirs.dtype] * theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=bound)


def file_of(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The tensors of a model of transformers under the names that its files have."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def assert_equal_forward_and_backward(
    ours: nn.Module, theirs: nn.Module, answer: Tensor, expected: Tensor, table: Table, folder: Path
) -> None:
    """Compares outputs, and the gradients of all weights from random gradients of the outputs.

    Args:
        answer, expected: the outputs of ours and of theirs.
        table: names the weights of theirs as ours.
        folder: for temporary files.
    """
    assert_equal(answer, expected)
    weights = torch.randn_like(expected)
    (answer * weights).sum().backward()
    (expected * weights).sum().backward()
    with torch.no_grad():  # gradients go through the same converter as weights
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    expected_gradients = to_ours(file_of(theirs, folder), table)
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert gradients.keys() <= expected_gradients.keys()
    for name, gradient in gradients.items():
        assert_equal(gradient, expected_gradients[name])


def assert_survives_the_way_there_and_back(ours: nn.Module, theirs: nn.Module, table: Table, folder: Path) -> None:
    back = from_ours(ours.state_dict(), table)
    file = file_of(theirs, folder)
    assert back.keys() == file.keys()
    assert all(torch.equal(back[name], file[name]) for name in file)
