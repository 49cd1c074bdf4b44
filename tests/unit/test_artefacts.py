"""Position artefacts: one of known energy is measured, pictures alone have none, and chance is told from it."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from synoptic.data.sources import Source, open_source
from synoptic.evaluation.artefacts import PositionArtefacts
from synoptic.evaluation.features import RawPixels
from synoptic.judging import evaluate
from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.vit import ViT, ViTConfig
from synoptic.predict import VisionModel
from synoptic.types import Features, Preprocess

PATCH, SIDE = 4, 32
GRID, COUNT = SIDE // PATCH, 120


class Placed:
    """Patches are colours, and from `above` pixels on a pattern of their places besides.

    Args:
        strength: of the pattern, whose values are 1 and -1 in one channel.
    """

    stride, step, any_size, adaptors = PATCH, PATCH, True, ("far",)
    preprocess = Preprocess(SIDE)

    def __init__(self, strength: float, above: int = 0, offset: float = 0.0):
        self.strength, self.above, self.offset = strength, above, offset
        self.asked: list[int] = []

    def encode_image(self, images: Tensor) -> Features:
        self.asked.append(images.shape[-1])
        colours = F.avg_pool2d(images, PATCH)
        grid = tuple(colours.shape[2:])
        pattern = (torch.arange(grid[1]) % 2 * 2.0 - 1).expand(len(images), 1, *grid)
        here = self.strength if images.shape[-1] >= self.above else 0.0
        patches = torch.cat([colours, here * pattern], 1).flatten(2).transpose(1, 2) + self.offset
        far = Features(3 * patches[..., :3], grid)
        return Features(patches, grid, adaptors={"far": far})


def write(root: Path, count: int) -> Source:
    """Pictures whose patches are independent grey levels, evenly from 0 to 255."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    for number in range(count):
        levels = rng.integers(0, 256, (GRID, GRID), dtype=np.uint8).repeat(PATCH, 0).repeat(PATCH, 1)
        Image.fromarray(levels).convert("RGB").save(root / f"{number:03}.png")
    return open_source(str(root), "all")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return write(tmp_path_factory.mktemp("artefacts") / "pictures", COUNT)


def scores(source: Source, model: Placed, **keys) -> dict[str, float]:
    return dict(PositionArtefacts(source, **keys).run(model))


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("strength", [0.1, 0.5, 3.0])
def test_an_artefact_of_known_energy_is_measured(pictures: Source, strength: float, offset: float):
    colours = 3 * (256**2 - 1) / 12 / 255**2  # variance of three equal channels of even levels
    known = strength**2 / (strength**2 + colours)
    found = scores(pictures, Placed(strength, offset=offset), sizes=[SIDE])
    assert found[f"artefacts_unbiased@{SIDE}"] == pytest.approx(known, abs=0.02)
    assert found[f"artefacts@{SIDE}"] == pytest.approx(known + (1 - known) / COUNT, abs=0.02)


def test_pictures_alone_have_what_chance_gives(pictures: Source):
    """The mean over n pictures has 1 / n of their variance by chance; two different ones know nothing of each other."""
    found = scores(pictures, Placed(0.0), sizes=[SIDE])
    assert found[f"artefacts@{SIDE}"] == pytest.approx(1 / COUNT, rel=0.3)
    assert abs(found[f"artefacts_unbiased@{SIDE}"]) < 0.005


def test_an_artefact_that_begins_at_a_size_shows_there(pictures: Source):
    model = Placed(1.0, above=48)
    found = scores(pictures, model, sizes=[64, 32, 48])
    assert list(found) == [f"artefacts{kind}@{size}" for size in (32, 48, 64) for kind in ("", "_unbiased")]
    assert abs(found["artefacts_unbiased@32"]) < 0.005
    assert min(found["artefacts_unbiased@48"], found["artefacts_unbiased@64"]) > 0.7
    assert sorted(set(model.asked)) == [32, 48, 64]


def test_chance_is_taken_out_as_by_halving_the_pictures_in_all_ways(tmp_path: Path):
    source = write(tmp_path / "few", 6)
    model = Placed(0.3)
    found = scores(source, model, sizes=[SIDE])[f"artefacts_unbiased@{SIDE}"]
    pictures = torch.stack([torch.from_numpy(source.read(i)).permute(2, 0, 1) / 255 for i in range(6)])
    patches = model.encode_image(pictures).patches.double()
    variance = (patches - patches.mean((0, 1))).square().sum(2).mean()
    deviations = patches - patches.mean(1, keepdim=True)
    halves = [(part, [i for i in range(6) if i not in part]) for part in combinations(range(6), 3)]
    products = [(deviations[list(one)].mean(0) * deviations[other].mean(0)).sum(1).mean() for one, other in halves]
    assert found == pytest.approx(float(torch.stack(products).mean() / variance), rel=1e-9)


def test_the_map_shows_where(pictures: Source):
    found = PositionArtefacts(pictures).judge(Placed(2.0), [SIDE])[SIDE]
    assert found.deviation.shape == (GRID, GRID)
    assert float(found.deviation.square().mean()) == pytest.approx(found.share)
    np.testing.assert_allclose(found.deviation, 1, atol=0.1)


def test_an_adaptor_is_judged_in_its_own_space(pictures: Source):
    found = scores(pictures, Placed(3.0), adaptor="far", sizes=[SIDE])
    assert list(found) == [f"artefacts_far@{SIDE}", f"artefacts_unbiased_far@{SIDE}"]
    assert abs(found[f"artefacts_unbiased_far@{SIDE}"]) < 0.005, "the pattern is in a channel that it does not have"


def test_scores_do_not_depend_on_batches(pictures: Source, monkeypatch: pytest.MonkeyPatch):
    before = scores(pictures, Placed(0.2), sizes=[SIDE])
    monkeypatch.setattr("synoptic.evaluation.features.BATCH", 7)
    assert scores(pictures, Placed(0.2), sizes=[SIDE]) == pytest.approx(before, rel=1e-9)


def test_what_says_nothing_says_nothing_of_its_place(pictures: Source):
    model = Placed(0.0)
    model.encode_image = lambda images: Features(torch.ones(len(images), 4, 3), (2, 2))  # type: ignore[method-assign]
    assert set(scores(pictures, model, sizes=[SIDE]).values()) == {0.0}


def vit(**changes: object) -> ViTConfig:
    return ViTConfig(**{"patch_size": 4, "width": 12, "depth": 1, "heads": 3, "image_size": 16, **changes})  # type: ignore[arg-type]


def test_any_model_of_patches_is_judged(pictures: Source):
    torch.manual_seed(0)
    plain = VisionModel(ViT(vit()), Preprocess(16), "plain")
    adaptors = {"dino": AdaptorConfig(patches=5, summary=None, hidden=8)}
    student = VisionModel(Student(StudentConfig(backbone=vit(), adaptors=adaptors)), Preprocess(16), "student")
    for each, adaptor, suffix in ((plain, None, ""), (student, "dino", "_dino")):
        found = evaluate(each, ["artefacts"], str(pictures.root), adaptor=adaptor, sizes=[8, 32])
        assert list(found) == [f"artefacts{kind}{suffix}@{size}" for size in (8, 32) for kind in ("", "_unbiased")]
        assert all(0 <= found[f"artefacts{suffix}@{size}"] <= 1 for size in (8, 32))
    assert len(evaluate(plain, "artefacts", str(pictures.root))) == 2 * 8


def test_users_mistakes(pictures: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="holds a single picture"):
        PositionArtefacts(write(tmp_path / "one", 1))
    monkeypatch.setattr(Source, "read", lambda *_, **__: pytest.fail("a picture was read"))
    with pytest.raises(ValueError, match="sizes=30: patches of 4 pixels do not tile it"):
        PositionArtefacts(pictures, sizes=[30]).run(Placed(0.0))
    with pytest.raises(ValueError, match="sizes=: the model tells nothing of its patches"):
        PositionArtefacts(pictures).run(RawPixels())
