"""Multi-scale deformable attention: ways to read points agree, with gradients, on packed pictures, at extremes."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed

from synoptic.models import deform_attn
from synoptic.models.deform_attn import DeformableAttention, Levels, Path, sample

AT = Levels((((5, 7), (3, 4), (1, 1)), ((2, 3), (1, 2), (1, 1))))  # two pictures
COUNTS = (6, 4)


def case(spread: float = 2.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(sum(AT.counts), 2, 4, dtype=dtype, generator=generator)
    places = torch.randn(sum(COUNTS), 2, 3, 2, 2, dtype=dtype, generator=generator) * spread + 1
    weights = torch.rand(sum(COUNTS), 2, 3, 2, dtype=dtype, generator=generator)
    return values, places, weights


def by_definition(values: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Cell by cell, in Python."""
    seen = torch.zeros(len(places), *values.shape[1:], dtype=values.dtype)
    pictures = [0] * COUNTS[0] + [1] * COUNTS[1]
    for query, picture in enumerate(pictures):
        for head in range(values.shape[1]):
            for level, (height, width) in enumerate(AT.shapes[picture]):
                for point in range(places.shape[3]):
                    x, y = places[query, head, level, point].tolist()
                    for row in range(height):
                        for column in range(width):
                            share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
                            place = AT.starts[picture][level] + row * width + column
                            seen[query, head] += weights[query, head, level, point] * share * values[place, head]
    return seen.flatten(1)


@pytest.mark.parametrize("way", ["grid_sample", "gather"])
@pytest.mark.parametrize("spread", [0.3, 2.0, 50.0])
def test_points_are_read_as_defined(way: Path, spread: float) -> None:
    values, places, weights = case(spread)
    found = sample(values, places, weights, COUNTS, AT, way)
    torch.testing.assert_close(found, by_definition(values, places, weights), rtol=0, atol=1e-9)


@given(x=st.floats(-3, 9), y=st.floats(-3, 7))
def test_both_ways_agree_at_any_place(x: float, y: float) -> None:
    values, places, weights = case()
    places = torch.tensor([x, y], dtype=torch.float64).expand_as(places)
    ways = [sample(values, places, weights, COUNTS, AT, way) for way in ("grid_sample", "gather")]
    torch.testing.assert_close(*ways, rtol=0, atol=1e-9)


def test_gradients_of_both_ways_agree() -> None:
    gradients = []
    for way in ("grid_sample", "gather"):
        given = [each.requires_grad_() for each in case()]
        sample(*given, COUNTS, AT, way).square().sum().backward()  # type: ignore[arg-type]
        gradients.append([each.grad for each in given])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("way", ["grid_sample", "gather"])
def test_places_are_exact_in_half_precision(way: Path) -> None:
    """A bfloat16 knows whole cells alone where a level is 200 wide; places are never of it."""
    at = Levels((((1, 200),),))
    values = torch.arange(200, dtype=torch.float32).view(200, 1, 1)
    places = torch.tensor([150.5, 0.0]).view(1, 1, 1, 1, 2)
    weights = torch.ones(1, 1, 1, 1)
    found = sample(values.bfloat16(), places, weights, (1,), at, way)
    assert found.dtype == torch.bfloat16
    assert abs(found.item() - 150.5) <= 0.5  # what the values themselves are rounded to


def test_a_batch_equals_its_pictures() -> None:
    torch.manual_seed(0)
    layer = DeformableAttention(16, 2, 3, 2).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens, queries = torch.randn(sum(AT.counts), 16), torch.randn(sum(COUNTS), 16)
    for references in (torch.rand(sum(COUNTS), 2), torch.rand(sum(COUNTS), 4)):
        together = layer(queries, references, COUNTS, tokens, AT)
        parts = zip(
            *(each.split(list(COUNTS)) for each in (queries, references)),
            tokens.split(list(AT.counts)),
            AT.shapes,
            strict=True,
        )
        alone = [layer(asked, where, (len(asked),), seen, Levels((shapes,))) for asked, where, seen, shapes in parts]
        torch.testing.assert_close(together, torch.cat(alone))


def test_heads_begin_by_looking_around() -> None:
    """Two heads look right and left, one cell further with each point; all cells weigh the same."""
    layer = DeformableAttention(16, 2, 3, 2)
    offsets = layer.sampling_offsets(torch.randn(1, 16)).view(2, 3, 2, 2)
    torch.testing.assert_close(offsets[:, 0], torch.tensor([[[1.0, 0], [2, 0]], [[-1, 0], [-2, 0]]]), atol=1e-6, rtol=0)


def test_without_a_compiler_it_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    deform_attn.can_compile.cache_clear()
    layer = DeformableAttention(16, 2, 3, 2)
    layer.path = "compiled"
    tokens, queries = torch.randn(sum(AT.counts), 16), torch.randn(sum(COUNTS), 16)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        for _ in range(2):
            layer(queries, torch.rand(sum(COUNTS), 2), COUNTS, tokens, AT)
    deform_attn.can_compile.cache_clear()
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "g++" in caplog.text


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles C++")
def test_compiled_code_agrees_with_gradients_and_without() -> None:
    values, places, weights = case()
    with torch.no_grad():
        found = sample(values, places, weights, COUNTS, AT, "compiled")
        torch.testing.assert_close(found, sample(values, places, weights, COUNTS, AT, "gather"), rtol=0, atol=1e-9)
    gradients = []
    for way in ("grid_sample", "compiled"):
        given = [each.requires_grad_() for each in case()]
        sample(*given, COUNTS, AT, way).square().sum().backward()  # type: ignore[arg-type]
        gradients.append([each.grad for each in given])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_a_compilation_that_fails_is_told_and_made_up_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*given: Tensor) -> Tensor:
        raise BackendCompilerFailed(lambda: None, RuntimeError("no such header"), None)

    monkeypatch.setattr(torch, "compile", lambda *given, **options: broken)
    deform_attn._compiled.cache_clear()
    values, places, weights = case()
    with caplog.at_level(logging.WARNING):
        found = [sample(values, places, weights, COUNTS, AT, "compiled") for _ in range(2)]
    deform_attn._compiled.cache_clear()
    torch.testing.assert_close(found[1], sample(values, places, weights, COUNTS, AT, "gather"))
    assert caplog.text.count("compilation failed") == 1
