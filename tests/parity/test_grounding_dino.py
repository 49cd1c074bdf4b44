"""Grounding DINO answers as its authors' code was recorded to, and as transformers does, stage by stage."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_equal, normalised
from grounding_twins import INSIDE, OWN_HEADS, PROMPTS, their_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GroundingDinoForObjectDetection,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
)
from transformers import (
    BertConfig as TheirBertConfig,
)
from transformers import GroundingDinoConfig as TheirConfig
from transformers import SwinConfig as TheirSwinConfig

from synoptic.models.deform_attn import Path as Way
from synoptic.models.grounding_dino import Grounded, GroundingDino, phrases_of
from synoptic.models.pyramid import grid_positions
from synoptic.models.reference_boxes import proposed
from synoptic.models.vit import IMAGENET_MEAN
from synoptic.weights import formats
from synoptic.weights.options import LoadOptions
from synoptic.weights.writing import convert

CASES = [
    *(("names", size) for size in ("72x96", "76x60", "64x80")),
    *(("sentence", size) for size in ("72x96", "76x60")),
    ("mixed", "72x96"),
]
PADDED = (88, 80)
WAYS: tuple[Way, ...] = ("grid_sample", "gather")


@pytest.fixture(scope="module")
def record(fixtures_dir: Path) -> dict[str, Tensor]:
    return load_file(fixtures_dir / "grounding_dino" / "io.safetensors")


@pytest.fixture
def model(fixtures_dir: Path) -> GroundingDino:
    options = LoadOptions(heads=4, text_heads=2)
    loaded = formats.load(fixtures_dir / "grounding_dino" / "weights.pth", options)[0]
    assert isinstance(loaded, GroundingDino)
    return loaded


def ids_of(record: Mapping[str, Tensor], caption: str, size: str) -> list[int]:
    return record[f"{caption}/{size}/input_ids"][0].tolist()


def grounded(model: GroundingDino, record: Mapping[str, Tensor], caption: str, size: str, **options: Any) -> Grounded:
    images = record[f"image/{size}"].to(next(model.parameters()).dtype)
    with torch.no_grad():
        return model([images], [ids_of(record, caption, size)], every=True, **options)


def filled(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures on a larger canvas, which is zero behind the normalisation."""
    mean = images.new_tensor(IMAGENET_MEAN)[:, None, None]
    return F.pad(images - mean, (0, size[1] - images.shape[3], 0, size[0] - images.shape[2])) + mean


@pytest.mark.parametrize(("caption", "size"), CASES)
def test_prompts_are_cut_and_masked_as_recorded(
    model: GroundingDino, record: dict[str, Tensor], caption: str, size: str
) -> None:
    ids = ids_of(record, caption, size)
    phrases = phrases_of(ids, model.config.stops)
    assert [each for phrase in phrases for each in phrase] == ids
    places = [place for phrase in phrases for place in range(len(phrase))]
    assert places == record[f"{caption}/{size}/position_ids"][0].tolist()
    number = torch.arange(len(phrases)).repeat_interleave(torch.tensor([len(phrase) for phrase in phrases]))
    assert torch.equal((number[:, None] == number).byte(), record[f"{caption}/{size}/text_self_attention_masks"][0])
    with torch.no_grad():
        assert_equal(model.read([ids]).tokens, record[f"{caption}/{size}/encoded_text"][0])


def test_the_tokenizer_reads_the_captions_as_recorded(
    model: GroundingDino, record: dict[str, Tensor], fixtures_dir: Path
) -> None:
    captions = json.loads((fixtures_dir / "grounding_dino" / "captions.json").read_text())
    words = model.tokenizer
    assert words is not None
    for caption, size in CASES:
        ids = [words.start, *words.encode([captions[caption]])[0], words.end]
        assert ids == ids_of(record, caption, size)


def test_a_picture_is_seen_as_recorded(model: GroundingDino, record: dict[str, Tensor]) -> None:
    size, case = "76x60", "names/76x60"
    images = record[f"image/{size}"]
    with torch.no_grad():
        stages = model.backbone(images, layers=(1, 2, 3)).layers
        pyramid = model.see([images])
    for place, stage in enumerate(stages):
        assert_equal(stage.patches.mT.unflatten(-1, stage.grid), record[f"{case}/backbone{place}"])
    shapes = pyramid.levels.shapes[0]
    last = pyramid.tokens[-shapes[-1][0] * shapes[-1][1] :]
    assert_equal(last.T.unflatten(-1, shapes[-1])[None], record[f"{case}/src3"])
    for level in (0, 3):
        places = grid_positions(shapes[level], model.config.width, model.config.temperature, images.device)
        assert_equal(places.T.unflatten(-1, shapes[level])[None], record[f"{case}/pos{level}"])


def test_the_first_fusion_is_as_recorded(model: GroundingDino, record: dict[str, Tensor]) -> None:
    found: list[tuple[Tensor, Tensor]] = []
    model.fusions[0].register_forward_hook(lambda layer, given, answer: found.append(answer))
    grounded(model, record, "names", "76x60")
    assert_equal(found[0][0], record["names/76x60/fusion0_image"][0])
    assert_equal(found[0][1], record["names/76x60/fusion0_text"][0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("caption", "size"), CASES)
def test_all_that_was_recorded_is_answered(
    model: GroundingDino, record: dict[str, Tensor], caption: str, size: str, way: Way
) -> None:
    model.look_by(way)
    assert_recorded(grounded(model, record, caption, size), record, f"{caption}/{size}")


@pytest.mark.parametrize("way", WAYS)
def test_a_picture_on_a_larger_canvas_is_answered_as_recorded(
    model: GroundingDino, record: dict[str, Tensor], way: Way
) -> None:
    model.look_by(way)
    case, images = f"names_padded_to_{PADDED[0]}x{PADDED[1]}/76x60", record["image/76x60"]
    ids = record[f"{case}/input_ids"][0].tolist()
    with torch.no_grad():
        answer = model([filled(images, PADDED)], [ids], sizes=[(76, 60)], every=True)
    assert_recorded(answer, record, case)


def assert_recorded(answer: Grounded, record: Mapping[str, Tensor], case: str) -> None:
    answers = {
        "memory": answer.image,
        "memory_text": answer.text,
        "enc_selected_boxes": answer.selected.boxes[0],
        "hs": torch.stack(answer.states),
        "pred_boxes": answer.last.boxes[0],
        "pred_logits": answer.last.logits[0],
    }
    told = {name: record[f"{case}/{name}"] for name in answers if f"{case}/{name}" in record}
    assert {"memory_text", "enc_selected_boxes", "pred_boxes", "pred_logits"} <= told.keys()
    for name, tensor in told.items():
        assert_equal(answers[name], tensor.reshape(answers[name].shape))


def test_places_are_chosen_as_recorded(model: GroundingDino, record: dict[str, Tensor]) -> None:
    answer = grounded(model, record, "names", "76x60")
    (shapes,) = model.see([record["image/76x60"]]).levels.shapes
    proposals = proposed(shapes, answer.image).sigmoid()
    wanted = record["names/76x60/init_box_proposal"][0]
    distances = torch.cdist(wanted, proposals)
    assert distances.min(1).values.max() < 1e-6
    chosen = proposals[distances.argmin(1)]
    assert_equal(chosen, wanted)


@pytest.mark.parametrize("size", ["76x60", "72x96"])
def test_it_answers_as_recorded_in_float64(model: GroundingDino, record: dict[str, Tensor], size: str) -> None:
    """The authors' codes of places are of float32 there, too, which leaves 1e-7."""
    answer = grounded(model.double(), record, "names", size)
    for name, tensor in (("pred_boxes", answer.last.boxes[0]), ("pred_logits", answer.last.logits[0])):
        wanted = record[f"names/{size}/{name}_f64"][0]
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=2e-7 * wanted.abs().max().item())


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_of_other_sizes_and_prompts_equals_one_by_one(
    model: GroundingDino, record: dict[str, Tensor], way: Way
) -> None:
    model.look_by(way)
    cases = [("names", "72x96"), ("sentence", "76x60"), ("mixed", "72x96"), ("names", "64x80")]
    images = [record[f"image/{size}"] for _, size in cases]
    with torch.no_grad():
        together = model(images, [ids_of(record, *case) for case in cases]).last
    for place, case in enumerate(cases):
        alone = grounded(model, record, *case).last
        assert_equal(together.boxes[place], alone.boxes[0])
        assert_equal(together.logits[place], alone.logits[0])


@pytest.fixture(scope="module", params=["plain", "scaled", "own_heads"])
def theirs(request: pytest.FixtureRequest) -> Any:
    return their_model(
        "plain" if request.param == "plain" else "scaled", **(OWN_HEADS if request.param == "own_heads" else {})
    )


@pytest.fixture
def folder(theirs: Any, tmp_path: Path) -> Path:
    theirs.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def their_answers(model: Any, images: Tensor) -> Any:
    """Of two pictures, the second of which is smaller, with their prompts."""
    longest = max(map(len, PROMPTS))
    ids, mask = torch.zeros(2, longest, dtype=torch.long), torch.zeros(2, longest, dtype=torch.long)
    for place, prompt in enumerate(PROMPTS):
        ids[place, : len(prompt)], mask[place, : len(prompt)] = torch.tensor(prompt), 1
    inside = torch.ones(images.shape[0], *images.shape[2:], dtype=torch.long)
    inside[1, INSIDE[0] :], inside[1, :, INSIDE[1] :] = 0, 0
    with torch.no_grad():
        return model(
            pixel_values=normalised(images) * inside[:, None],
            input_ids=ids,
            attention_mask=mask,
            pixel_mask=inside,
            output_hidden_states=True,
        )


@torch.no_grad()
def their_layers(model: Any, answer: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes and logits of each layer of the decoder, which it makes and does not tell."""
    boxes, logits = [], []
    ids = torch.zeros(2, max(map(len, PROMPTS)), dtype=torch.bool)
    for place, prompt in enumerate(PROMPTS):
        ids[place, : len(prompt)] = True
    before = [answer.init_reference_points, *answer.intermediate_reference_points.unbind(1)]
    for layer, states in enumerate(answer.intermediate_hidden_states.unbind(1)):
        moved = model.bbox_embed[layer](states) + torch.special.logit(before[layer], eps=1e-5)
        boxes.append(moved.sigmoid())
        logits.append(model.class_embed[layer](states, answer.encoder_last_hidden_state_text, ids))
    return boxes, logits


def test_a_folder_sees_pictures_as_transformers_does(theirs: Any, folder: Path) -> None:
    """The levels of the backbone."""
    ours: Any = formats.load(folder, LoadOptions())[0]
    images = torch.rand(1, 3, 72, 100)
    with torch.no_grad():
        levels, _ = theirs.model.backbone(normalised(images), torch.ones(1, 72, 100, dtype=torch.long))
        stages = ours.backbone(images, layers=(1, 2, 3)).layers
    assert len(levels) == 3
    for (wanted, _), stage in zip(levels, stages, strict=True):
        assert_equal(stage.patches.mT.unflatten(-1, stage.grid), wanted)


def test_a_folder_answers_as_transformers_does(theirs: Any, folder: Path) -> None:
    """Every layer, of a batch of two sizes and two prompts; in float64, which tells places apart that are nearly as
    good as each other."""
    torch.manual_seed(2)
    images = torch.rand(2, 3, 96, 128, dtype=torch.float64)
    images[1] = filled(images[1:, :, : INSIDE[0], : INSIDE[1]], (96, 128))[0]
    wide = copy.deepcopy(theirs).double()
    wanted = their_answers(wide, images)
    boxes, logits = their_layers(wide, wanted)
    ours: Any = formats.load(folder, LoadOptions())[0].double()
    with torch.no_grad():
        found = ours([images], PROMPTS, sizes=[(96, 128), INSIDE], every=True)
        tokens = ours.see([images[:1]]).levels.counts[0]
    assert_equal(found.image[:tokens], wanted.encoder_last_hidden_state_vision[0])
    text = found.text.split(list(map(len, PROMPTS)))
    for place, prompt in enumerate(PROMPTS):
        assert_equal(text[place], wanted.encoder_last_hidden_state_text[place, : len(prompt)])
        assert_equal(found.selected.boxes[place], wanted.init_reference_points[place])
        for layer, states in enumerate(found.states):
            assert_equal(states.split([20, 20])[place], wanted.intermediate_hidden_states[place, layer])
        for layer, each in enumerate(found.layers):
            assert_equal(each.boxes[place], boxes[layer][place])
            assert_equal(each.logits[place].float(), logits[layer][place, :, : len(prompt)])  # theirs are in float32
        assert_equal(found.last.boxes[place], wanted.pred_boxes[place])
        assert_equal(found.last.logits[place].float(), wanted.logits[place, :, : len(prompt)])


def tensors_in(path: Path) -> Iterator[tuple[str, Tensor]]:
    yield from load_file(path / "model.safetensors").items()


def test_a_folder_is_written_back_bit_by_bit(theirs: Any, folder: Path, tmp_path: Path) -> None:
    done = convert(folder, "huggingface", tmp_path / "ours")
    written, before = dict(tensors_in(done.out)), dict(tensors_in(folder))
    unused = {key for key in before if ".swin.layernorm." in key}
    assert written.keys() == before.keys() - unused
    assert all(torch.equal(tensor, before[key]) for key, tensor in written.items())
    again = type(theirs).from_pretrained(done.out).eval()
    images = torch.rand(2, 3, 64, 96)
    assert torch.equal(their_answers(again, images).logits, their_answers(theirs, images).logits)


def test_a_file_of_the_authors_becomes_a_folder_with_its_words(
    fixtures_dir: Path, data_dir: Path, tmp_path: Path, record: dict[str, Tensor]
) -> None:
    """That transformers reads, which keeps boxes less far from the border; and that is read back."""
    path, options = fixtures_dir / "grounding_dino" / "weights.pth", LoadOptions(heads=4, text_heads=2)
    done = convert(path, "huggingface", tmp_path / "folder", options)
    assert any("refine_eps=0.001, there 1e-05" in note for note in done.notes)
    words = AutoTokenizer.from_pretrained(done.out)
    captions = json.loads((fixtures_dir / "grounding_dino" / "captions.json").read_text())
    assert words(captions["names"])["input_ids"] == ids_of(record, "names", "72x96")
    assert (words.pad_token, words.unk_token) == ("[PAD]", "[UNK]")
    theirs = GroundingDinoForObjectDetection.from_pretrained(done.out).eval()
    ours: Any = formats.load(done.out, LoadOptions())[0]
    assert (ours.config.refine_eps, ours.tokenizer.end) == (1e-5, words.convert_tokens_to_ids("[SEP]"))
    images, ids = record["image/72x96"], ids_of(record, "names", "72x96")
    with torch.no_grad():
        wanted = theirs(pixel_values=normalised(images), input_ids=torch.tensor([ids])).logits[0, :, : len(ids)]
        assert_equal(ours([images], [ids]).last.logits[0], wanted)


@pytest.mark.slow
@pytest.mark.parametrize("scaled", [False, True])
def test_a_full_swin_t_answers_as_transformers_does(scaled: bool, tmp_path: Path) -> None:
    """In float64, since of thousands of places some are as good as each other to rounding in float32."""
    torch.manual_seed(0)
    swin = TheirSwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], out_features=["stage2", "stage3", "stage4"]
    )
    config: Any = (MMGroundingDinoConfig if scaled else TheirConfig)(
        backbone_config=swin, text_config=TheirBertConfig()
    )
    theirs: Any = (MMGroundingDinoForObjectDetection if scaled else GroundingDinoForObjectDetection)(config).eval()
    for name, parameter in theirs.named_parameters():
        if any(part in name for part in ("bbox_embed", "_param", "relative_position")):
            torch.nn.init.normal_(parameter, std=0.02)
    theirs.save_pretrained(tmp_path)
    ours: Any = formats.load(tmp_path, LoadOptions())[0].double()
    theirs.double()
    images = torch.rand(1, 3, 480, 640, dtype=torch.float64)
    prompt = [101, 1037, 4937, 1012, 1037, 6556, 2491, 1012, 102]
    with torch.no_grad():
        found = ours([images], [prompt], every=True)
        wanted = theirs(pixel_values=normalised(images), input_ids=torch.tensor([prompt]))
    pairs = [
        (found.image, wanted.encoder_last_hidden_state_vision[0]),
        (found.text, wanted.encoder_last_hidden_state_text[0]),
        (found.selected.boxes[0], wanted.init_reference_points[0]),
        *((states, wanted.intermediate_hidden_states[0, layer]) for layer, states in enumerate(found.states)),
        (found.last.boxes[0], wanted.pred_boxes[0]),
        (found.last.logits[0].float(), wanted.logits[0, :, : len(prompt)]),
    ]
    for mine, its in pairs:
        assert_equal(mine, its)
