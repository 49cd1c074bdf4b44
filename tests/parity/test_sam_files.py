"""SAM answers as its makers' code was recorded to, and as SamModel of transformers does, from the pixels to the masks.

In float64 the makers' code still finds the positions of prompts in float32: the decoder is compared in float32 alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import assert_equal, normalised
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import SamConfig as TheirConfig
from transformers import SamModel, SamProcessor, SamVisionConfig, SamVisionModel
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

import synoptic
from synoptic.data.inputs import read_batches
from synoptic.data.transforms import fit, inside
from synoptic.models.sam import Sam, upscaled
from synoptic.models.vit import IMAGENET_MEAN
from synoptic.types import present
from synoptic.weights import formats, sam_tables
from synoptic.weights.convert import from_ours, load_state
from synoptic.weights.folder import shapes_alone
from synoptic.weights.options import LoadOptions
from synoptic.weights.reading import read_parts
from synoptic.weights.writing import convert

SIDE = 112  # of the recorded pictures after padding
SIZES = ("72x96", "60x40", "100x70")
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of the makers' code, in levels of 255


@pytest.fixture(scope="module")
def record(fixtures_dir: Path) -> dict[str, Tensor]:
    return load_file(fixtures_dir / "sam" / "io.safetensors")


@pytest.fixture
def recorded_model(fixtures_dir: Path) -> Sam:
    model = formats.load(fixtures_dir / "sam" / "weights.pth", LoadOptions(decoder_heads=4))[0]
    assert isinstance(model, Sam)
    return model


def original(record: Mapping[str, Tensor], size: str) -> Tensor:
    """A recorded picture, (1, 3, H, W) uint8."""
    return (record[f"image/{size}"] * 255).round().to(torch.uint8)


def padded(record: Mapping[str, Tensor], size: str) -> Tensor:
    """It as ours reads it, (1, 3, 112, 112) in [0, 1]."""
    pixels = original(record, size)
    return fit(pixels, torch.tensor([pixels.shape[2:]]), SIDE, "pad", 1.0, "bilinear", IMAGENET_MEAN)


def about(record: Mapping[str, Tensor], size: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """All that was recorded of what the model says of a picture, in one precision."""
    twin = "_f64" if dtype == torch.float64 else ""
    for key, tensor in record.items():
        name, _, of = key.rpartition("/")
        if of == size + twin and name not in ("image", "in/boxes", "in/mask", "in/point_coords", "in/point_labels"):
            yield name, tensor


def asked(record: Mapping[str, Tensor], name: str, size: str) -> dict[str, Tensor]:
    """The prompts of a name, in pixels of what the network reads."""
    height, width = record[f"image/{size}"].shape[2:]
    high, wide = inside((height, width), SIDE)
    scale = torch.tensor([wide / width, high / height])
    points = {"points": record[f"in/point_coords/{size}"] * scale, "labels": record[f"in/point_labels/{size}"]}
    boxes = {"boxes": record[f"in/boxes/{size}"] * scale.repeat(2)}
    mask = {"masks": record[f"in/mask/{size}"]}
    kinds = {"boxes": boxes, "points_and_boxes": points | boxes, "mask": points | mask}
    return kinds.get(name, points)


def said(model: Sam, record: Mapping[str, Tensor], name: str, size: str, images: Tensor) -> Tensor:
    """What ours says where `name` was recorded of normalised pictures."""
    if name == "preprocessed":
        return images
    model.encoder.normalize = nn.Identity()  # type: ignore[assignment]
    features = model(images, layers=(0, -1))
    first, last = (layer.patches.unflatten(1, layer.grid) for layer in features.layers)
    embedding = features.patches.mT.unflatten(2, features.grid)
    encoded = {"after_block0": first, "pre_neck": last.permute(0, 3, 1, 2), "image_embedding": embedding}
    if name in encoded:
        return encoded[name]
    kind, what = name.split("/")
    prompts, decoder = asked(record, kind, size), present(model.decoder)
    if what in ("sparse", "dense"):
        parts = (prompts[key][:, None] if key in prompts else None for key in ("points", "labels", "boxes"))
        sparse, dense = decoder.prompts(*parts, prompts.get("masks"))
        return {"sparse": sparse[:, 0], "dense": dense}[what]
    logits, scores = decoder(embedding, **prompts, several=kind != "points_single")
    if what == "iou_predictions":
        return scores
    if what == "low_res_masks":
        return logits[:1] if kind == "points_and_boxes" else logits  # of the first prompt alone
    assert what == "upscaled_masks"  # of the first box, the first mask
    height, width = record[f"image/{size}"].shape[2:]
    return upscaled(logits[:1, :1], SIDE, inside((height, width), SIDE), (height, width))


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_and_its_prompts_are_answered_as_they_were(
    record: dict[str, Tensor], recorded_model: Sam, size: str
) -> None:
    images, names = normalised(padded(record, size)), set()
    with torch.no_grad():
        for name, expected in about(record, size, torch.float32):
            assert_equal(said(recorded_model, record, name, size, images), expected)
            names.add(name.split("/")[0])
    assert names >= {"pre_neck", "image_embedding", "points", "points_single", "boxes", "points_and_boxes", "mask"}


@pytest.mark.parametrize("size", SIZES)
def test_the_encoder_is_right_in_double_precision(record: dict[str, Tensor], recorded_model: Sam, size: str) -> None:
    """The statistics of pixels are rounded to float32, as in the makers' code, which keeps them as such."""
    pixels = (padded(record, size) * 255).round().double()
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    height, width = record[f"image/{size}"].shape[2:]
    high, wide = inside((height, width), SIDE)
    images = F.pad(((pixels - mean) / std)[..., :high, :wide], (0, SIDE - wide, 0, SIDE - high))
    found = list(about(record, size, torch.float64))
    assert found
    with torch.no_grad():
        for name, expected in found:
            assert_equal(said(recorded_model.double(), record, name, size, images), expected)


def test_what_is_beside_a_picture_is_nothing_to_the_network(record: dict[str, Tensor], recorded_model: Sam) -> None:
    images = recorded_model.encoder.normalize(padded(record, "72x96"))
    assert torch.equal(images == 0, record["preprocessed/72x96"] == 0)


def test_patches_lie_where_the_makers_code_has_them(record: dict[str, Tensor], recorded_model: Sam) -> None:
    with torch.no_grad():
        assert_equal(present(recorded_model.decoder).positions(), record["dense_pe"])


def test_a_file_tells_all_but_the_heads_of_its_decoder(fixtures_dir: Path, recorded_model: Sam) -> None:
    told, config = json.loads((fixtures_dir / "sam" / "config.json").read_text()), recorded_model.config
    assert (config.image_size, config.patch_size, config.width) == (told["img"], told["patch"], told["dim"])
    assert (config.depth, config.heads, config.window) == (told["depth"], told["heads"], told["window"])
    assert (list(config.global_blocks), config.embedding) == (told["glob"], told["out"])
    decoder = present(config.decoder)
    assert (decoder.mask_channels, decoder.hidden) == (told["mask_in"], told["dec_mlp"])
    assert (decoder.iou_hidden, decoder.heads) == (told["iou_hidden"], told["dec_heads"])
    assert (decoder.depth, decoder.downsample, decoder.masks, decoder.norm_eps) == (2, 2, 3, 1e-5)
    with pytest.raises(ValueError, match=r"decoder of 256 channels, and it has 32; say .*load\.decoder_heads=N"):
        synoptic.load(fixtures_dir / "sam" / "weights.pth")


def test_from_the_picture_to_the_mask_in_one_call(fixtures_dir: Path, record: dict[str, Tensor]) -> None:
    """The three masks of each of two boxes; the first mask of the first box was recorded at the picture's size."""
    vision = synoptic.load(fixtures_dir / "sam" / "weights.pth", "cpu", decoder_heads=4)
    scores = record["boxes/iou_predictions/60x40"]
    found = vision.segment(original(record, "60x40")[0], boxes=record["in/boxes/60x40"], alternatives=True)
    assert_equal(torch.from_numpy(found.scores).view(2, 3), scores.sort(descending=True).values)
    first = scores[0].argsort(descending=True).tolist().index(0)
    assert np.array_equal(found.masks[first], (record["boxes/upscaled_masks/60x40"][0, 0] > 0).numpy())


def test_keys_go_there_and_back(fixtures_dir: Path, recorded_model: Sam) -> None:
    state = read_parts(fixtures_dir / "sam" / "weights.pth")[""]
    back = from_ours(recorded_model.state_dict(), sam_tables.SAM)
    assert back.keys() == state.keys()
    assert all(back[key].shape == state[key].shape and torch.equal(back[key], state[key]) for key in state)


RELEASED = {"sam_vit_b": (768, 12, 12, (2, 5, 8, 11)), "sam_vit_l": (1024, 24, 16, (5, 11, 17, 23))}
RELEASED["sam_vit_h"] = (1280, 32, 16, (7, 15, 23, 31))


def test_released_files_are_known_and_map_one_to_one(fixtures_dir: Path) -> None:
    manifest = json.loads((fixtures_dir / "sam" / "manifest.json").read_text())
    assert manifest.keys() == RELEASED.keys()
    for name, (width, depth, heads, whole) in RELEASED.items():
        state = {key: torch.empty(shape, device="meta") for key, shape in manifest[name].items()}
        found = formats.identify({"": state}, {}, LoadOptions(), name)
        config = found.config
        assert found.format.name == "SAM"
        assert (config.width, config.depth, config.heads, config.global_blocks) == (width, depth, heads, whole)
        assert (config.image_size, config.window, config.embedding) == (1024, 14, 256)
        assert present(config.decoder).heads == 8 and present(config.decoder).hidden == 2048
        with shapes_alone():
            model = Sam(config)
        load_state(model, found.state, name)
        back = from_ours(model.state_dict(), sam_tables.SAM)
        assert {key: list(tensor.shape) for key, tensor in back.items()} == manifest[name]


VISION = {
    **{"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64},
    **{"patch_size": 8, "window_size": 3, "global_attn_indexes": [1], "mlp_dim": 40, "num_pos_feats": 8},
}
PROMPTS = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 8}
MASKS = {"hidden_size": 16, "mlp_dim": 24, "num_attention_heads": 4, "iou_head_hidden_dim": 20}


@torch.no_grad()
def randomly(model: nn.Module) -> Any:
    """The model with weights so large that every part shows, of a seed whose masks are neither empty nor full."""
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=1.0 if "positional_embedding" in name else 0.3)
    return model.eval()


def theirs(**vision: Any) -> SamModel:
    config = TheirConfig(vision_config=VISION | vision, prompt_encoder_config=PROMPTS, mask_decoder_config=MASKS)
    return randomly(SamModel(config))


def processor(size: int) -> SamProcessor:
    whole = {"height": size, "width": size}
    return SamProcessor(SamImageProcessorPil(size={"longest_edge": size}, pad_size=whole))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sam") / "tiny"
    theirs().save_pretrained(place)
    processor(64).image_processor.save_pretrained(place)
    return place


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8, smooth enough that nothing hangs on single pixels."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 5, 6, generator=generator)
    large = F.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)[0]
    return (large.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


@pytest.mark.parametrize("shape", [(40, 70), (90, 60), (64, 64), (31, 150)])
def test_a_folder_of_transformers_says_the_same_of_a_picture(folder: Path, shape: tuple[int, int]) -> None:
    picture = photograph(*shape)
    model, ours = theirs(), synoptic.load(folder, "cpu")
    inputs = processor(64)(images=Image.fromarray(picture), return_tensors="pt")
    features = ours.features(picture)
    expected = model.get_image_embeddings(inputs["pixel_values"])
    assert ours.preprocess.fill == ours.model.config.mean == IMAGENET_MEAN
    assert_equal(features.patches.mT.unflatten(2, features.grid), expected)
    assert features.summary is None


QUESTIONS: dict[str, dict[str, Any]] = {
    "a point": {"points": [(12, 20)]},
    "a point beside": {"points": [(12.5, 20)], "labels": [0]},
    "points": {"points": [(12, 20), (30, 31), (3, 3)], "labels": [1, 1, 0]},
    "a box": {"boxes": [(5, 6, 30, 28)]},
    "boxes": {"boxes": [(5, 6, 30, 28), (0, 0, 40, 39), (20, 3, 21, 35)]},
    "a point in a box": {"points": [(12, 20)], "boxes": [(5, 6, 30, 28)]},
    "points in boxes": {"points": [[(12, 20), (9, 9)], [(1, 2), (8, 8)]], "boxes": [(5, 6, 30, 28), (0, 0, 40, 39)]},
    "points of several": {"points": [[(12, 20)], [(1, 2)]]},
}


@pytest.mark.parametrize("alternatives", [False, True])
@pytest.mark.parametrize("name", QUESTIONS)
def test_prompts_are_answered_as_transformers_does(folder: Path, name: str, alternatives: bool) -> None:
    """Its processor, its model and its post-processing, against one call."""
    asked, picture = QUESTIONS[name], photograph(40, 70)
    nested = name in ("points in boxes", "points of several")
    points = asked.get("points")
    ours = synoptic.load(folder, "cpu").segment(picture, alternatives=alternatives, **asked)
    lists = points if nested or points is None else [points]
    several = alternatives or name in ("a point", "a point beside", "points of several")
    inputs = processor(64)(
        images=Image.fromarray(picture),
        input_points=None if lists is None else [[[list(point) for point in each] for each in lists]],
        input_labels=[[asked["labels"]]] if "labels" in asked else None,
        input_boxes=[[list(box) for box in asked["boxes"]]] if "boxes" in asked else None,
        return_tensors="pt",
    )
    sizes, inner = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
    with torch.no_grad():
        answer = theirs()(**inputs, multimask_output=several)
    (masks,) = processor(64).post_process_masks(answer.pred_masks, sizes, inner)  # (n, m, H, W)
    order = answer.iou_scores[0].argsort(dim=1, descending=True)
    order = order if alternatives else order[:, :1]
    rows = torch.arange(len(order))[:, None]
    assert_equal(torch.from_numpy(ours.scores), answer.iou_scores[0][rows, order].flatten())
    expected = masks[rows, order].flatten(0, 1).numpy()
    assert ours.masks.dtype == bool and np.array_equal(ours.masks, expected)
    assert 0 < expected.mean() < 1


def test_the_image_encoder_alone_is_a_model_too(tmp_path: Path) -> None:
    model = randomly(SamVisionModel(SamVisionConfig(**VISION)))
    model.save_pretrained(tmp_path / "vision")
    ours = synoptic.load(tmp_path / "vision", "cpu")
    assert ours.trained == {"from": "SamVisionModel of transformers"} and ours.model.decoder is None
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(normalised(images)).last_hidden_state
    assert_equal(ours(images).patches.mT.unflatten(2, (8, 8)), expected)


def test_a_file_without_its_folder_is_known_by_its_keys(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file(state, tmp_path / "whole.safetensors")
    vision = {key: tensor for key, tensor in state.items() if key.startswith("vision_encoder.")}
    save_file(vision, tmp_path / "vision.safetensors")
    whole = synoptic.load(tmp_path / "whole.safetensors", "cpu", decoder_heads=4)
    assert whole.trained == {"from": "SamModel of transformers"}
    assert whole.model.config == synoptic.load(folder, "cpu").model.config
    alone = synoptic.load(tmp_path / "vision.safetensors", "cpu")
    assert alone.trained == {"from": "SamVisionModel of transformers"}


SAID: dict[str, tuple[str, Any, str]] = {
    "more blocks": ("vision_config.num_hidden_layers", 4, r"missing .encoder\.blocks\.3\."),
    "fewer blocks": ("vision_config.num_hidden_layers", 2, r"unexpected .encoder\.blocks\.2\."),
    "another width": ("vision_config.hidden_size", 64, "misshapen"),
    "another neck": ("vision_config.output_channels", 32, "misshapen"),
    "another window": (
        "vision_config.window_size",
        4,
        r"misshapen .encoder\.blocks\.0\.attn\.down .5, 16. for .7, 16.",
    ),
    "other global blocks": ("vision_config.global_attn_indexes", [0], r"misshapen .encoder\.blocks\.0\.attn\.down"),
    "no such block": ("vision_config.global_attn_indexes", [3], r"global_blocks=\(3,\) should be blocks from 0 to 2"),
    "no positions": ("vision_config.use_abs_pos", False, "use_abs_pos=False is not known here, only True"),
    "another activation": ("vision_config.hidden_act", "relu", "hidden_act=relu is not known here, only gelu"),
    "more layers": ("mask_decoder_config.num_hidden_layers", 3, r"missing .decoder\.masks\.transformer\.layers\.2"),
    "uneven heads": (
        "mask_decoder_config.num_attention_heads",
        5,
        r"decoder\.heads=5 and 8 should divide embedding=16",
    ),
    "nothing of a part": ("mask_decoder_config", "none", "transformers refuses its configuration"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_a_folder_says_of_itself_has_to_fit_its_weights(folder: Path, tmp_path: Path, case: str) -> None:
    key, value, message = SAID[case]
    header = json.loads((folder / "config.json").read_text())
    section, _, name = key.partition(".")
    header[section] = {**header[section], name: value} if name else value
    (tmp_path / "config.json").write_text(json.dumps(header))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=message) as error:
        synoptic.load(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_windows_as_large_as_the_grid_are_told_by_who_knows(tmp_path: Path) -> None:
    """Shapes are the same; at the trained size so are answers, at others not."""
    twin = randomly(SamVisionModel(SamVisionConfig(**VISION | {"window_size": 8})))
    twin.save_pretrained(tmp_path / "folder")
    state, images = load_file(tmp_path / "folder" / "model.safetensors"), torch.rand(1, 3, 96, 96)
    save_file(state, tmp_path / "alone.safetensors")
    said = synoptic.load(tmp_path / "folder", "cpu")
    given = synoptic.load(tmp_path / "alone.safetensors", "cpu", window=8, global_blocks=(1,))
    silent = synoptic.load(tmp_path / "alone.safetensors", "cpu")
    assert said.model.config == given.model.config and silent.model.config.global_blocks == (0, 1, 2)
    assert torch.equal(said(images).patches, given(images).patches)
    assert not torch.allclose(said(images).patches, silent(images).patches)
    small = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(said(small).patches, silent(small).patches)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 96), (48, 48), (40, 88), (136, 24)])
def test_other_sizes_resample_positions_as_sams_code_does(height: int, width: int) -> None:
    """transformers takes one size alone; its layers take others once they are told, and resample the relative ones."""
    model = randomly(SamVisionModel(SamVisionConfig(**VISION))).double()
    found = formats.identify({"": model.state_dict()}, {}, LoadOptions(), "twin")
    ours, grid = Sam(found.config).double().eval(), (height // 8, width // 8)
    load_state(ours, {key: tensor.clone() for key, tensor in found.state.items()}, "twin")
    encoder = model.vision_encoder
    encoder.patch_embed.image_size = (height, width)
    if grid != (8, 8):
        table = F.interpolate(encoder.pos_embed.permute(0, 3, 1, 2), grid, mode="bicubic")
        encoder.pos_embed = nn.Parameter(table.permute(0, 2, 3, 1))
    images = torch.rand(1, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        expected, answer = encoder(normalised(images)).last_hidden_state, ours(images)
    assert answer.grid == grid
    assert_equal(answer.patches.mT.unflatten(2, grid), expected)


def test_what_is_converted_loads_in_transformers_and_says_the_same(folder: Path, tmp_path: Path) -> None:
    ours = synoptic.load(folder, "cpu")
    state = from_ours(ours.model.state_dict(), sam_tables.HUGGINGFACE_SAM)
    file = load_file(folder / "model.safetensors")
    assert state.keys() == file.keys() and all(torch.equal(state[key], file[key]) for key in file)
    (tmp_path / "back").mkdir()
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "back" / "model.safetensors")
    (tmp_path / "back" / "config.json").write_text(json.dumps(sam_tables.header(ours.model.config)))
    model, said = SamModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    images, boxes = torch.rand(1, 3, 64, 64), torch.tensor([[[5.0, 6.0, 30.0, 28.0]]])
    with torch.no_grad():
        one, other = (each(pixel_values=images, input_boxes=boxes) for each in (model.eval(), theirs()))
    assert_equal(one.pred_masks, other.pred_masks)
    assert_equal(one.iou_scores, other.iou_scores)


def test_a_sam_is_kept_whole(folder: Path, tmp_path: Path) -> None:
    ours = synoptic.load(folder, "cpu")
    ours.save(tmp_path / "kept")
    again = synoptic.load(tmp_path / "kept", "cpu")
    assert again.model.config == ours.model.config and again.preprocess == ours.preprocess
    picture = photograph(90, 60)
    one, other = (each.segment(picture, points=[(12, 20)]) for each in (ours, again))
    assert np.array_equal(one.masks, other.masks)
    assert np.allclose(one.scores, other.scores, rtol=1e-6)
    card = (tmp_path / "kept" / "README.md").read_text()
    assert 'model.segment("a.jpg", points=[(10, 20)])' in card and "model.embed" not in card


def test_a_written_sam_is_prepared_as_transformers_prepares_it(folder: Path, tmp_path: Path) -> None:
    convert(folder, "huggingface", tmp_path / "theirs")
    processor = SamImageProcessorPil.from_pretrained(tmp_path / "theirs")
    ours, picture = synoptic.load(folder, "cpu"), photograph(90, 60)
    expected = torch.as_tensor(np.asarray(processor(picture)["pixel_values"]))
    (batch,) = read_batches(picture, ours.preprocess)
    torch.testing.assert_close(ours.model.encoder.normalize(batch.images), expected, rtol=0, atol=0.02)


@pytest.mark.slow
def test_a_full_size_sam_says_what_transformers_says(tmp_path: Path) -> None:
    """The ViT-B, a photograph's shape, its embedding, and a mask at its own size."""
    torch.manual_seed(0)
    model = SamModel(TheirConfig()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "positional_embedding" not in name:
                nn.init.normal_(parameter, std=0.03)
        model.shared_image_embedding.positional_embedding.normal_()
    model.save_pretrained(tmp_path / "base")
    ours, picture = synoptic.load(tmp_path / "base", "cpu"), photograph(300, 500)
    inputs = processor(1024)(images=Image.fromarray(picture), input_boxes=[[[50, 60, 300, 280]]], return_tensors="pt")
    sizes, inner = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
    with torch.no_grad():
        embedding = model.get_image_embeddings(inputs.pop("pixel_values"))
        answer = model(image_embeddings=embedding, **inputs, multimask_output=False)
    segmenter = ours.segmenter(picture)
    bound = 1e-4 * embedding.abs().max().item()
    torch.testing.assert_close(segmenter.embedding, embedding, rtol=0, atol=bound)
    found = segmenter.segment(boxes=[(50, 60, 300, 280)])
    (masks,) = processor(1024).post_process_masks(answer.pred_masks, sizes, inner)
    assert 0.01 < masks.float().mean() < 0.99
    assert (found.masks[0] == masks[0, 0].numpy()).mean() > 0.999
    np.testing.assert_allclose(found.scores, answer.iou_scores.flatten().numpy(), atol=1e-3)
