"""Linear-probe segmentation: the regression, the score, and that nothing of the test pictures is learned from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch import Tensor

from synoptic.data import scenes
from synoptic.data.sources import Source, open_source
from synoptic.evaluation.dense import IGNORE, Confusion, Segmentation, class_shares, read_mask, segment
from synoptic.evaluation.protocols import build_evaluator
from synoptic.evaluation.ridge import NormalEquations
from synoptic.models.vit import ViT, vit_config
from synoptic.predict import VisionModel
from synoptic.types import Features, Preprocess

SIDE, PATCH = 32, 4


class Patches:
    """A model whose patch features are a function of the patch's pixels."""

    preprocess = Preprocess(SIDE)

    def __init__(self, see: Callable[[Tensor], Tensor]):
        self.see = see  # (B, 3, h, w) mean colours of patches -> (B, D, h, w)

    def encode_image(self, images: Tensor) -> Features:
        features = self.see(torch.nn.functional.avg_pool2d(images, PATCH))
        return Features(features.flatten(2).transpose(1, 2), tuple(features.shape[2:]))


def colour(pooled: Tensor) -> Tensor:
    return pooled


def noise(pooled: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(pooled), 6, *pooled.shape[2:], generator=generator)


def write_shapes(
    root: Path, count: int, seed: int, size: tuple[int, int] = (SIDE, SIDE), ignored: float = 0.0
) -> Source:
    """Pictures of rectangles, red (class 1) and green (class 3), on grey (class 0), with their masks."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    width, height = size
    for number in range(count):
        picture = np.full((height, width, 3), 128, np.uint8)
        mask = np.zeros((height, width), np.uint8)
        for klass, rgb in ((1, (200, 40, 40)), (3, (40, 200, 40))):
            top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
            box = slice(top, top + height // 3), slice(left, left + width // 3)
            picture[box], mask[box] = rgb, klass
        mask[rng.random(mask.shape) < ignored] = IGNORE
        Image.fromarray(picture).save(root / "images" / f"{number:03}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number:03}.png")
    return open_source(str(root), "all")


@pytest.fixture
def shapes(tmp_path: Path) -> tuple[Source, Source]:
    return write_shapes(tmp_path / "train", 30, seed=0), write_shapes(tmp_path / "test", 10, seed=1)


amounts_of = arrays(np.float64, (25, 3), elements=st.floats(0, 2, allow_subnormal=False).map(lambda x: round(x, 2)))


@settings(max_examples=40, deadline=None)
@given(amounts=amounts_of, seed=st.integers(0, 10**6), ridge=st.sampled_from([1e-4, 1e-2, 1.0]), cut=st.integers(0, 25))
def test_ridge_is_the_least_squares_solution_of_all_observations(amounts, seed: int, ridge: float, cut: int):
    if amounts.sum() == 0:
        amounts[0, 0] = 1.0
    rng = np.random.default_rng(seed)
    features = rng.normal(3.0, [1.0, 5.0, 0.1, 2.0], (25, 4)).astype(np.float32)
    equations = NormalEquations()
    for part in (slice(0, cut), slice(cut, None)):  # in two pieces or one
        equations.add(torch.from_numpy(features[part]), torch.from_numpy(amounts[part]))
    probe = equations.solve(ridge)

    # The same as one row for each patch and class, and the penalty as rows of their own.
    weights = amounts.T.ravel()  # class by class
    rows = np.tile(features.astype(np.float64), (3, 1))
    targets = np.repeat(np.eye(3), 25, axis=0)
    mean = np.average(rows, axis=0, weights=weights)
    std = np.sqrt(np.average((rows - mean) ** 2, axis=0, weights=weights))
    if (std < 1e-3).any():
        return  # a single patch: nothing varies, tested below
    root = np.sqrt(weights / weights.sum())[:, None]
    standard = np.concatenate([(rows - mean) / std, np.ones((75, 1))], 1)
    penalty = np.sqrt(ridge) * np.eye(5)[:4]
    stacked = np.concatenate([root * standard, penalty])
    solution = np.linalg.lstsq(stacked, np.concatenate([root * targets, np.zeros((4, 3))]), rcond=None)[0]
    expected = standard[:25] @ solution
    answer = features @ probe.weight.numpy() + probe.bias.numpy()
    np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-4)


def test_features_that_do_not_vary_are_left_out():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (200,), generator=generator)
    features = torch.stack([labels + 0.1 * torch.randn(200, generator=generator), torch.full((200,), 7.3)], 1)
    equations = NormalEquations()
    equations.add(features, torch.eye(2)[labels])
    probe = equations.solve(1e-4)
    assert (probe.weight[1] == 0).all()
    assert ((features @ probe.weight + probe.bias).argmax(1) == labels).all()


def test_nothing_to_fit_is_told():
    equations = NormalEquations()
    equations.add(torch.randn(5, 3), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="nothing to fit"):
        equations.solve(0.1)


def test_a_fit_means_the_same_for_features_of_another_scale():
    generator = torch.Generator().manual_seed(0)
    features, amounts = torch.randn(60, 5, generator=generator), torch.rand(60, 3, generator=generator)
    scale, shift = torch.tensor([1e-3, 1.0, 50.0, 1e4, 2.0]), torch.tensor([0.0, 10.0, -3.0, 1e4, 0.5])
    answers = []
    for moved in (features, features * scale + shift):
        equations = NormalEquations()
        equations.add(moved, amounts)
        probe = equations.solve(0.1)
        answers.append(moved @ probe.weight + probe.bias)
    torch.testing.assert_close(*answers, rtol=1e-3, atol=1e-4)


def test_confusion():
    confusion = Confusion(np.array([[50, 10, 0, 0], [5, 15, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0]]))
    np.testing.assert_allclose(confusion.iou, [50 / 69, 15 / 30, 0.0, np.nan])
    assert confusion.miou == pytest.approx((50 / 69 + 0.5 + 0.0) / 3), "a class never there nor said does not count"


@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 1000),
)
def test_class_shares_are_counted_pixels(shape: tuple[int, int], grid: tuple[int, int], seed: int):
    mask = np.random.default_rng(seed).choice([0, 1, 2, IGNORE], shape)
    counted = np.zeros((grid[0], grid[1], 4))
    total = np.zeros(grid)
    for y in range(shape[0]):
        for x in range(shape[1]):
            row, column = y * grid[0] // shape[0], x * grid[1] // shape[1]
            total[row, column] += 1
            if mask[y, x] != IGNORE:
                counted[row, column, mask[y, x]] += 1
    expected = (counted / np.maximum(total, 1)[..., None]).reshape(-1, 4)
    np.testing.assert_allclose(class_shares(mask, grid, 4).numpy(), expected)


def test_logits_are_read_at_the_centres_of_their_patches():
    logits = torch.zeros(2, 1, 2)
    logits[1, 0] = torch.tensor([-3.0, 1.0])  # class 1 where it passes 0, a quarter of the way before the right centre
    said = segment(logits, (1, 16))
    centres = (np.arange(16) + 0.5) / 16  # patch centres are at 0.25 and 0.75
    np.testing.assert_array_equal(said[0], centres > 0.25 + 0.5 * 0.75)


def test_what_can_be_read_off_the_features_is_found(shapes: tuple[Source, Source]):
    evaluator = Segmentation(*shapes)
    assert evaluator.classes == 4
    confusion = evaluator.judge(Patches(colour), evaluator.fit(Patches(colour)))
    assert dict(evaluator.run(Patches(colour))) == {"segmentation_miou": confusion.miou}
    assert confusion.counts.sum() == 10 * SIDE * SIDE
    assert np.isnan(confusion.iou[2]), "class 2 is nowhere"
    assert confusion.miou > 0.85, "edges inside patches are all that is lost"


def test_noise_scores_no_better_than_one_class_everywhere(shapes: tuple[Source, Source]):
    test = shapes[1]
    pixels = np.bincount(np.concatenate([read_mask(path).ravel() for path in test.masks]), minlength=4)
    everything_background = pixels[0] / pixels.sum() / 3
    (score,) = dict(Segmentation(*shapes).run(Patches(noise))).values()
    assert score < everything_background + 0.05


def test_a_rare_class_is_not_lost_to_the_background(tmp_path: Path):
    """Half the rare patches look like background: unweighted least squares would never say the rare class."""

    def hazy(pooled: Tensor) -> Tensor:
        return (pooled[:, :1] - pooled[:, 1:2]) * 3 + 1.2 * noise(pooled)[:, :1]

    train = write_shapes(tmp_path / "train", 40, seed=0)
    test = write_shapes(tmp_path / "test", 20, seed=1)
    for source in (train, test):
        for path in source.masks:
            mask = read_mask(path)
            Image.fromarray(np.where(mask == 3, 0, mask).astype(np.uint8)).save(path)
    evaluator = Segmentation(train, test)
    confusion = evaluator.judge(Patches(hazy), evaluator.fit(Patches(hazy)))
    assert confusion.iou[1] > 0.15
    assert confusion.miou > 0.5


def test_the_probe_is_fitted_without_the_test_masks(shapes: tuple[Source, Source], tmp_path: Path):
    other = write_shapes(tmp_path / "other", 3, seed=5)
    probes = [Segmentation(shapes[0], test).fit(Patches(colour)) for test in (shapes[1], other)]
    assert torch.equal(probes[0].weight, probes[1].weight)
    assert torch.equal(probes[0].bias, probes[1].bias)


def test_ignored_pixels_neither_teach_nor_count(tmp_path: Path):
    train = write_shapes(tmp_path / "train", 20, seed=0, ignored=0.4)
    test = write_shapes(tmp_path / "test", 8, seed=1, ignored=0.4)
    evaluator = Segmentation(train, test)
    confusion = evaluator.judge(Patches(colour), evaluator.fit(Patches(colour)))
    known = sum(int((read_mask(path) != IGNORE).sum()) for path in test.masks)
    assert confusion.counts.sum() == known < 8 * SIDE * SIDE
    assert confusion.miou > 0.8


def test_pictures_are_squashed_whole_and_judged_at_their_masks_resolution(tmp_path: Path):
    size = (48, 30)  # width, height
    train, test = (write_shapes(tmp_path / part, 20, seed, size) for seed, part in enumerate(("train", "test")))
    evaluator = Segmentation(train, test)
    confusion = evaluator.judge(Patches(colour), evaluator.fit(Patches(colour)))
    assert confusion.counts.sum() == 20 * 48 * 30
    assert confusion.miou > 0.75


def test_adaptors_are_judged_in_their_own_space(shapes: tuple[Source, Source]):
    class Merged(Patches):
        def encode_image(self, images: Tensor) -> Features:
            own = super().encode_image(images)
            blind = Features(torch.zeros(len(images), 4, 2), (2, 2))
            return Features(blind.patches, (2, 2), adaptors={"dino": own})

    (own,) = dict(Segmentation(*shapes).run(Merged(colour))).values()
    (name, through), *_ = Segmentation(*shapes, adaptor="dino").run(Merged(colour))
    assert name == "segmentation_miou_dino"
    assert through > 0.85 > 0.5 > own


def test_few_pictures_both_fit_and_choose(tmp_path: Path):
    train = write_shapes(tmp_path / "train", 2, seed=0)
    assert dict(Segmentation(train, train).run(Patches(colour)))["segmentation_miou"] > 0.8


def test_users_mistakes(tmp_path: Path, shapes: tuple[Source, Source]):
    train, test = shapes
    bare = Source(tmp_path, train.paths)
    with pytest.raises(ValueError, match="has no masks"):
        Segmentation(bare, test)
    empty = write_shapes(tmp_path / "empty", 2, seed=0, ignored=1.1)
    with pytest.raises(ValueError, match="all are 255"):
        Segmentation(empty, test)
    Image.new("RGB", (SIDE, SIDE)).save(train.masks[3])
    with pytest.raises(ValueError, match=r"003\.png should hold one class a pixel"):
        Segmentation(train, test)
    train.masks[3].write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"003\.png cannot be read"):
        Segmentation(train, test)


def test_a_mask_of_another_shape_is_refused(shapes: tuple[Source, Source]):
    train, test = shapes
    Image.new("L", (SIDE, SIDE // 2)).save(train.masks[0])
    with pytest.raises(ValueError, match=r"000\.png is 32 x 16 pixels, a shape unlike .* 32 x 32"):
        dict(Segmentation(train, test).run(Patches(colour)))


def test_palette_masks_hold_their_indices(tmp_path: Path):
    indices = np.array([[0, 3], [255, 1]], np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette([value for index in range(256) for value in (index // 2, 7, 9)])
    image.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), indices)


def test_an_untrained_network_on_scenes(tmp_path: Path):
    folder = scenes.write(tmp_path / "multi", scenes.SceneConfig(count=40, size=48, objects=(2, 4)), workers=1)
    torch.manual_seed(0)
    model = VisionModel(ViT(vit_config("vit_mini16", depth=1, width=48, hidden=96)), Preprocess(48), "tiny")
    evaluator = build_evaluator("segmentation", str(folder))
    assert isinstance(evaluator, Segmentation)
    assert evaluator.classes == 11
    scores = dict(evaluator.run(model))
    assert scores == dict(evaluator.run(model)), "no chance is involved"
    assert 0.03 < scores["segmentation_miou"] < 0.4
