"""Masks: how many patches are hidden, stratified over the batch; where; the same however the batch is cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synoptic.config import from_dict
from synoptic.data.masking import MaskConfig, draw_masks
from synoptic.methods import get_method


def masks_of(config: MaskConfig, batch: int = 32, grid: tuple[int, int] = (14, 14), seed: int = 0) -> torch.Tensor:
    return draw_masks(config, grid, torch.arange(batch), batch, seed)


@pytest.mark.parametrize("shape", ["block", "random"])
def test_masked_crops_share_the_span_of_ratios_evenly(shape: str) -> None:
    """Of 64 crops 32 are masked; the k-th least masked one hides the k-th part of the span from 10 to 50 %."""
    counts = masks_of(MaskConfig(shape=shape)).sum(1).sort().values
    assert (counts[:32] == 0).all()
    edges = torch.linspace(0.1, 0.5, 33) * 196
    assert (counts[32:] >= edges[:-1].floor() - 2).all()  # laying rectangles may end a patch or two short
    assert (counts[32:] <= edges[1:]).all()


def test_rectangles_hide_patches_in_blocks_and_random_masks_do_not() -> None:
    """A hidden patch's right neighbour is hidden, too, far more often in blocks."""

    def neighbours(shape: str) -> float:
        masks = masks_of(MaskConfig(share=1.0, ratio=(0.3, 0.3), shape=shape)).view(-1, 14, 14)
        return float((masks[:, :, 1:] & masks[:, :, :-1]).sum() / masks[:, :, :-1].sum())

    assert neighbours("block") > 0.6
    assert neighbours("random") == pytest.approx(0.3, abs=0.05)


@settings(deadline=None, max_examples=25)
@given(
    batch=st.sampled_from([1, 2, 6, 8]),
    parts=st.sampled_from([1, 2]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    shape=st.sampled_from(["block", "random"]),
)
def test_masks_are_those_of_the_whole_batch(batch: int, parts: int, height: int, width: int, shape: str) -> None:
    config = MaskConfig(shape=shape)
    position = torch.arange(3 * batch, 4 * batch)
    whole = draw_masks(config, (height, width), position, batch, 5)
    assert whole.shape == (2 * batch, height * width)
    cut = [draw_masks(config, (height, width), part, batch, 5) for part in position.chunk(parts)]
    firsts, seconds = zip(*(masks.chunk(2) for masks in cut), strict=True)
    assert torch.equal(whole, torch.cat((*firsts, *seconds)))


def test_a_share_that_is_no_whole_number_of_crops_is_made_up_for_by_later_batches() -> None:
    config = MaskConfig(share=0.3, ratio=(0.5, 0.5))
    masks = [draw_masks(config, (4, 4), torch.tensor([step]), 1, 0) for step in range(50)]
    assert int(torch.cat(masks).any(dim=1).sum()) == 30, "of 100 crops"


def test_a_masked_crop_hides_something_on_the_smallest_grid() -> None:
    assert int(masks_of(MaskConfig(), grid=(2, 2)).any(dim=1).sum()) == 32, "half of 64"
    assert not masks_of(MaskConfig(ratio=(0.0, 0.0)), grid=(2, 2)).any()


def test_seeds_and_steps_differ() -> None:
    config = MaskConfig()
    masks = masks_of(config)
    assert torch.equal(masks, masks_of(config))
    assert not torch.equal(masks, masks_of(config, seed=1))
    assert not torch.equal(masks, draw_masks(config, (14, 14), torch.arange(32, 64), 32, 0))


def test_every_crop_is_masked_at_times() -> None:
    """Which crops of a batch are masked is drawn anew each step."""
    ever = sum(
        draw_masks(MaskConfig(), (6, 6), torch.arange(8 * step, 8 * step + 8), 8, 0).any(1).long() for step in range(40)
    )
    assert (ever > 5).all() and (ever < 35).all()


@pytest.mark.parametrize("values", [{"share": -0.1}, {"ratio": (0.6, 0.5)}, {"ratio": (0.0, 1.0)}, {"shape": "blok"}])
def test_impossible_masks_are_refused(values: dict[str, object]) -> None:
    name = next(iter(values))
    with pytest.raises(ValueError, match=rf"masks.*{name}"):
        from_dict(get_method("dinov2").config, {"data": "d", "out": "o", "masks": values}, "dinov2")
