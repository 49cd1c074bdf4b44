"""How our models are compared with their references."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from synoptic.models import positions
from synoptic.models.vit import IMAGENET_MEAN, IMAGENET_STD, ViT
from synoptic.weights.convert import Table, from_ours, to_ours

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}  # of the reference's largest absolute value


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    bound = TOLERANCE[theirs.dtype] * theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=bound)


def normalised(images: Tensor) -> Tensor:
    """Pictures as their networks want them; ours normalise by themselves."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images.double() - mean) / std).to(images.dtype)


def all_tokens(
    model: ViT, images: Tensor, masks: Tensor | None = None, layers: tuple[int, ...] = ()
) -> list[tuple[Tensor, Tensor]]:
    """All tokens before and after the final norm, (B, T + R + h*w, D) each: of `layers` in order, then of the last."""
    kept = []

    def keep(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept.append(tuple(tokens.unflatten(0, (len(images), -1)) for tokens in (inputs[0], output)))

    hook = model.norm.register_forward_hook(keep)
    model(images, masks=masks, layers=layers)
    hook.remove()
    return kept


def resample_positions_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ours do what some references do in float64 too, so that the rest can be compared in float64."""
    exact = positions._planes
    monkeypatch.setattr(positions, "_planes", lambda table, grid: exact(table.float(), grid))


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
            if parameter.grad is not None:
                parameter.copy_(parameter.grad)
    expected_gradients = to_ours(file_of(theirs, folder), table)
    # Without masks the mask token takes no part.
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters() if name != "mask_token"}
    assert gradients.keys() <= expected_gradients.keys()
    for name, gradient in gradients.items():
        assert_equal(gradient, expected_gradients[name])


def assert_survives_the_way_there_and_back(ours: nn.Module, theirs: nn.Module, table: Table, folder: Path) -> None:
    back = from_ours(ours.state_dict(), table)
    file = file_of(theirs, folder)
    assert back.keys() == file.keys()
    assert all(torch.equal(back[name], file[name]) for name in file)
