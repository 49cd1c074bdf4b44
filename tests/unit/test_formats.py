"""What a file is, told by its keys, shapes and config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_files import BY_NAME, CONFIGS, dino, dino_training, huggingface, model_of, theirs
from safetensors.torch import load_file, save_file
from torch import Tensor

import synoptic
from synoptic.models.clip import TEXT_OF, Clip, ClipConfig
from synoptic.models.text import TextConfig
from synoptic.models.vit import ViT, ViTConfig
from synoptic.types import Preprocess
from synoptic.weights import formats, zoo
from synoptic.weights.convert import from_ours
from synoptic.weights.folder import shapes_alone
from synoptic.weights.formats import identify, networks
from synoptic.weights.options import LoadOptions


def found(state: Mapping[str, Tensor], **options: Any) -> formats.Identified:
    return identify({"": dict(state)}, {}, LoadOptions(**{"heads": 3, **options}), "file")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layout_is_told_by_its_keys(name: str) -> None:
    answer = found(theirs(BY_NAME[name]))
    assert answer.format is BY_NAME[name]
    assert answer.config == CONFIGS[name]


def test_every_layout_has_a_test() -> None:
    """Those of RADIO in tests/parity/test_radio_files.py and test_radio_hub.py."""
    plain = {name for name, form in BY_NAME.items() if form.kind == "vit" and "radio" not in name.lower()}
    assert CONFIGS.keys() == plain


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(CONFIGS)),
    patch=st.integers(1, 20),
    cells=st.integers(1, 9),
    width=st.integers(1, 6),
    depth=st.integers(1, 12),
    hidden=st.integers(1, 9),
    gated=st.booleans(),
    bias=st.booleans(),
)
def test_shapes_tell_the_configuration(
    name: str, patch: int, cells: int, width: int, depth: int, hidden: int, gated: bool, bias: bool
) -> None:
    config = replace(
        CONFIGS[name],
        patch_size=patch,
        image_size=patch * cells,
        width=3 * width,
        depth=depth,
        hidden=12 * hidden,  # gated layers are 8 channels wide for every 12 of the plain ones that they replace
        feed_forward="swiglu" if gated and "DINOv2" in name.replace("Dinov2", "DINOv2") else "mlp",
        qkv_bias=bias,
    )
    with shapes_alone():
        state = from_ours(ViT(config).state_dict(), BY_NAME[name].table)
    assert found(state).config == config


def test_heads_are_64_channels_wide_unless_something_else_is_said(tmp_path: Path) -> None:
    state = theirs(BY_NAME["DINO"], replace(CONFIGS["DINO"], width=128, heads=2))
    assert found(state, heads=None).config.heads == 2
    assert found(state, heads=4).config.heads == 4
    with pytest.raises(ValueError, match=r"file: looks like DINO, but heads of 64 .* width of 24; say .*load\.heads=N"):
        found(theirs(BY_NAME["DINO"]), heads=None)
    with pytest.raises(ValueError, match="heads=5 does not divide width=24"):
        found(theirs(BY_NAME["DINO"]), heads=5)


def test_siglips_widest_towers_have_16_heads() -> None:
    """Those of SO400M are 72 channels wide, which divides as well by the 64 of all others."""
    sizes: dict[str, Any] = {"width": 1152, "depth": 1, "heads": 16, "hidden": 64}
    image = ViTConfig(**sizes, patch_size=14, image_size=28, summary_tokens=0, pool="attention")
    text = TextConfig(
        **sizes, **{**TEXT_OF["siglip"], "activation": "gelu"}, vocabulary=9, context=4, end=1, embedding=1152
    )
    form = BY_NAME["SigLIP of open_clip"]
    with shapes_alone():
        state = from_ours(Clip(ClipConfig(image=image, text=text, bias=True), None).state_dict(), form.table)
    config = found(state, heads=None).config
    assert (config.image.heads, config.text.heads) == (16, 16)


WRAPPED = {
    "of several devices": lambda key: f"module.{key}",
    "of a training": lambda key: f"backbone.{key}",
    "of both": lambda key: f"module.backbone.{key}",
    "compiled, of several devices": lambda key: f"_orig_mod.module.{key}",
    "in chunks": lambda key: key.replace("blocks.1.", "blocks.0.1."),
    "in shards and chunks": lambda key: (
        "_fsdp_wrapped_module.backbone._fsdp_wrapped_module."
        + key.replace("blocks.1.", "blocks.3._fsdp_wrapped_module.1._fsdp_wrapped_module.")
    ),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_what_a_training_adds_to_keys_is_taken_away(case: str) -> None:
    state = theirs(BY_NAME["DINOv2"])
    wrapped = {WRAPPED[case](key): tensor for key, tensor in state.items()}
    assert wrapped.keys() != state.keys()
    plain = networks({"": wrapped}, None, "file")["backbone"]
    assert plain.keys() == state.keys()
    assert all(plain[key] is state[key] for key in state)


def test_a_training_has_heads_beside_its_backbone() -> None:
    state = {"backbone.cls_token": 0, "dino_head.mlp.0.bias": 1, "ibot_head.mlp.0.bias": 2}
    inside = networks({"teacher": {key: torch.tensor(value) for key, value in state.items()}}, None, "file")
    assert {name: list(part) for name, part in inside.items()} == {
        "backbone": ["cls_token"],
        "dino_head": ["mlp.0.bias"],
        "ibot_head": ["mlp.0.bias"],
    }


def test_the_teacher_is_taken_unless_the_student_is_wanted(tmp_path: Path) -> None:
    path = dino_training(tmp_path)
    for part, zero in (("student", False), ("teacher", True), (None, True)):
        model, _, record = formats.load(path, LoadOptions(heads=3, part=part))
        assert (model.positions.table.abs().max().item() == 0) == zero
        assert record.trained == {"from": "DINO"} | ({"part": part} if part else {})


def test_files_of_ibot_are_read(tmp_path: Path) -> None:
    """A backbone lies in `state_dict`; of a training the student alone has the token in place of hidden patches."""
    student = theirs(BY_NAME["iBOT"])
    teacher = {key: tensor for key, tensor in student.items() if key != "masked_embed"}
    head = {"head.mlp.0.weight": torch.ones(5, 24), "head.last_layer.weight_g": torch.ones(7, 1)}
    head |= {"head.last_layer2.weight_g": torch.ones(7, 1)}
    torch.save({"state_dict": student, "epoch": 100}, tmp_path / "checkpoint_student.pth")
    torch.save({"state_dict": teacher}, tmp_path / "checkpoint_teacher.pth")
    parts = {
        "student": {f"module.{key}": tensor for key, tensor in {**wrapped(student), **head}.items()},
        "teacher": {**wrapped(teacher), **head},
        "ibot_loss": {"center": torch.ones(1, 7), "center2": torch.ones(1, 1, 7)},
    }
    torch.save(parts, tmp_path / "checkpoint.pth")
    for name, part, form in (
        ("checkpoint_student.pth", None, "iBOT"),
        ("checkpoint_teacher.pth", None, "DINO"),  # nothing tells it from DINO's, which answers the same
        ("checkpoint.pth", "student", "iBOT"),
        ("checkpoint.pth", None, "DINO"),
    ):
        model, _, record = formats.load(tmp_path / name, LoadOptions(heads=3, part=part))
        assert record.trained["from"] == form
        assert (model.mask_token is not None) == (form == "iBOT")
        assert model.config == replace(CONFIGS["iBOT"], mask_token=form == "iBOT")
        assert torch.equal(model.norm.weight, student["norm.weight"])


def wrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"backbone.{key}": tensor for key, tensor in state.items()}


def test_the_whole_list_of_keys_is_in_the_notes(tmp_path: Path) -> None:
    """The message counts and names three; a traceback shows the notes."""
    state = theirs(BY_NAME["DINO"])
    extra = [f"gate{place}" for place in range(5)]
    torch.save({**state, **{key: torch.ones(1) for key in extra}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"5 unknown \(gate0, gate1, gate2, \.\.\.\)\n") as error:
        synoptic.load(tmp_path / "a.pth", heads=3)
    assert error.value.__notes__ == ["\n  ".join(["unknown:", *extra])]


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    state = theirs(BY_NAME["Dinov2Model of transformers"])
    query = "encoder.layer.0.attention.attention.query.weight"
    del state[query], state["layernorm.bias"]
    state |= {"gate": torch.ones(1), "encoder.layer.1.norm2.bias": torch.ones(23)}
    torch.save(state, tmp_path / "a.bin")
    told = (
        r"a\.bin: looks like Dinov2Model of transformers, but the keys do not fit: 1 unknown \(gate\); "
        r"1 incomplete \(blocks\.0\.attn\.qkv\.weight\); 2 missing \(blocks\.0\.attn\.qkv\.weight, norm\.bias\); "
        r"1 misshapen \(blocks\.1\.norm2\.bias \(23,\) for \(24,\)\)$"
    )
    with pytest.raises(ValueError, match=told):
        synoptic.load(tmp_path / "a.bin", heads=3)


def change(key: str, value: Any) -> Any:
    return lambda state: state.update({key: value})


SPOILED: dict[str, tuple[Any, str]] = {
    "another key": (change("nonsense", torch.ones(1)), r"looks like DINO, but .* 1 unknown .nonsense."),
    "another block": (
        change("blocks.1.attn.gate.weight", torch.ones(1)),
        r"1 unexpected .blocks\.1\.attn\.gate\.weight",
    ),
    "a block without some": (lambda s: s.pop("blocks.1.norm2.bias"), r"1 missing .blocks\.1\.norm2\.bias"),
    "a block with little": (change("blocks.2.norm1.bias", torch.ones(24)), "11 missing"),
    "blocks without end": (change("blocks.9999999999.norm1.bias", torch.ones(24)), "depth=10000000000 should be"),
    "another shape": (change("norm.weight", torch.ones(23)), r"1 misshapen .norm\.weight .23,. for .24,."),
    "numbers without fractions": (
        change("norm.weight", torch.ones(24, dtype=torch.int64)),
        r"1 mistyped .norm\.weight",
    ),
    "no square": (change("pos_embed", torch.ones(1, 16, 24)), "15 positions of patches of 4 x 4 pixels make no square"),
    "no positions": (change("pos_embed", torch.ones(1, 1, 24)), "0 positions"),
    "flat positions": (change("pos_embed", torch.ones(17, 24)), r"positions\.table .* is of the shape .17, 24"),
    "oblong patches": (change("patch_embed.proj.weight", torch.ones(24, 3, 4, 2)), "patches of 4 x 2 pixels make no"),
    "no patches": (lambda s: s.pop("patch_embed.proj.weight"), r"it has no patch_embed\.weight"),
    "no feed-forward": (lambda s: s.pop("blocks.0.mlp.fc1.weight"), r"it has no blocks\.0\.mlp\.fc1\.weight"),
    "one band": (change("patch_embed.proj.weight", torch.ones(24, 1, 4, 4)), "channels=1 needs as many values in mean"),
    "a key twice": (change("module.norm.bias", torch.ones(24)), "differ in nothing but the wrappers"),
    "of something else": (
        lambda s: s.clear() or s.update(weight=torch.ones(2)),
        "no layout .* begins with weight; known are",
    ),
    "nothing": (lambda s: s.clear(), "holds no tensors by name"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_file_that_makes_no_model_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    spoil, message = SPOILED[case]
    state = theirs(BY_NAME["DINO"])
    spoil(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message) as error:
        synoptic.load(tmp_path / "a.pth", heads=3)
    assert "\n" not in str(error.value)
    assert str(tmp_path / "a.pth") in str(error.value)


@pytest.mark.parametrize("files", ["safetensors", "shards", "bin"])
@pytest.mark.parametrize("name", [name for name in CONFIGS if BY_NAME[name].model_type])
def test_a_folder_of_hugging_face_says_what_it_is(tmp_path: Path, name: str, files: str) -> None:
    folder = huggingface(tmp_path / "dinov2-tiny", BY_NAME[name])
    processor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 99}, "resample": 3}
    processor["image_processor_type"] = "ViTImageProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    whole = folder / "model.safetensors"
    state = theirs(BY_NAME[name])
    if files == "shards":
        whole.unlink()
        halves = [dict(list(state.items())[place::2]) for place in (0, 1)]
        for place, half in enumerate(halves):
            save_file(half, folder / f"{place}.safetensors")
        places = {key: f"{place}.safetensors" for place, half in enumerate(halves) for key in half}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    if files == "bin":
        whole.unlink()
        torch.save(state, folder / "pytorch_model.bin")
    model = synoptic.load(folder, "cpu")
    assert model.model.config == replace(CONFIGS[name], mean=(0.5,) * 3, std=(0.25,) * 3)
    assert (model.name, model.trained, model.preprocess) == ("dinov2-tiny", {"from": name}, Preprocess(16, "squash"))
    assert all(
        torch.equal(ours, mine)
        for ours, mine in zip(model.model.parameters(), model_of(CONFIGS[name]).parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}, "do_center_crop": True}, Preprocess(8)),
        ({"size": {"height": 8, "width": 8}, "do_center_crop": False}, Preprocess(8, "squash")),
        ({"size": {"height": 8, "width": 8}}, Preprocess(8, "squash")),
        (
            {"size": {"shortest_edge": 9}, "crop_size": {"height": 8, "width": 8}, "do_center_crop": True},
            Preprocess(8, share=8 / 9),
        ),
        ({"size": {"height": 9, "width": 9}, "resample": 2}, Preprocess(16, "squash", interpolation="bilinear")),
        ({"size": 8, "crop_size": 8, "do_center_crop": True}, Preprocess(8)),
        ({"size": {"height": 8, "width": 4}}, "only squares are read here"),
        ({"size": {"height": 4 * 10**9, "width": 4 * 10**9}}, "is no side of a square in pixels"),
        ({"size": {"height": "8", "width": "8"}}, "is no side of a square in pixels"),
        ({"size": ["shortest_edge"]}, "is no side of a square in pixels"),
    ],
)
def test_a_processor_is_taken_at_its_word(said: dict[str, Any], expected: Preprocess | str, tmp_path: Path) -> None:
    """But for sizes that the patches of 4 do not tile."""
    folder = huggingface(tmp_path, BY_NAME["ViTModel of transformers"])
    usual = {"image_processor_type": "CLIPImageProcessor", "resample": 3}
    usual |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "crop_size": 8, "do_center_crop": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(usual | said))
    if isinstance(expected, Preprocess):
        assert synoptic.load(folder).preprocess == expected
        return
    with pytest.raises(ValueError, match=expected) as error:
        synoptic.load(folder)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_what_a_folder_says_of_itself_has_to_fit_its_weights(tmp_path: Path) -> None:
    form = BY_NAME["Dinov2Model of transformers"]
    for header, message in (
        ({"num_hidden_layers": 3}, "missing"),
        ({"hidden_size": 48}, "misshapen"),
        ({"num_attention_heads": 5}, "heads=5 does not divide width=24"),
        ({"num_attention_heads": "many"}, "heads=many should be"),
        ({"model_type": "vit"}, "looks like ViTModel of transformers, but .*unknown"),
        ({"model_type": "dinov9"}, "model_type=dinov9 is known neither here nor to transformers .*did you mean dinov2"),
    ):
        folder = huggingface(tmp_path, form, **header)
        with pytest.raises(ValueError, match=message) as error:
            synoptic.load(folder)
        assert str(folder) in str(error.value)


def test_a_folder_of_nobody_is_refused(tmp_path: Path) -> None:
    folder = huggingface(tmp_path, BY_NAME["Dinov2Model of transformers"])
    (folder / "config.json").write_text('{"architecture": "vit_small_patch14_dinov2"}')
    with pytest.raises(ValueError, match=r'config\.json: says neither "format": "synoptic" nor a "model_type"'):
        synoptic.load(folder)


def test_a_file_in_a_folder_stands_for_the_folder_where_that_says_more(tmp_path: Path) -> None:
    folder = huggingface(tmp_path / "h", BY_NAME["ViTModel of transformers"])
    state = load_file(folder / "model.safetensors")
    torch.save({key: tensor + 1 for key, tensor in state.items()}, folder / "pytorch_model.bin")
    by_name, other = (synoptic.load(folder / name, "cpu") for name in ("model.safetensors", "pytorch_model.bin"))
    assert by_name.name == other.name == folder.name
    assert torch.equal(by_name.model.norm.bias + 1, other.model.norm.bias)
    (folder / "config.json").rename(folder / "away.json")
    assert zoo.resolve(folder / "model.safetensors") == folder / "model.safetensors"
    assert synoptic.load(folder / "model.safetensors", heads=3).trained == {"from": "ViTModel of transformers"}
    (tmp_path / "config.json").write_text("{}")
    path = dino(tmp_path)
    assert zoo.resolve(path) == path


@pytest.mark.parametrize("name", CONFIGS)
def test_no_tensor_may_be_missing(name: str, tmp_path: Path) -> None:
    """But for those without which the rest is another family's model, whole."""
    state = theirs(BY_NAME[name])
    another = {"DINOv2 with registers": {"register_tokens"}, "iBOT": {"masked_embed"}}.get(name, set())
    free = {"embeddings.mask_token"} if "Dinov2" in name else set()
    folder = huggingface(tmp_path, BY_NAME[name]) if BY_NAME[name].model_type else None
    for key in state.keys() - another - free:
        rest = {other: tensor for other, tensor in state.items() if other != key}
        if folder:
            save_file(rest, folder / "model.safetensors", {"format": "pt"})
        else:
            torch.save(rest, tmp_path / "a.pth")
        with pytest.raises(ValueError) as error:
            synoptic.load(folder or tmp_path / "a.pth", "cpu", **({} if folder else {"heads": 3}))
        assert "\n" not in str(error.value)


def test_a_folder_that_tells_of_registers_has_them(tmp_path: Path) -> None:
    form = BY_NAME["Dinov2WithRegistersModel of transformers"]
    folder = huggingface(tmp_path, form, num_register_tokens=CONFIGS[form.name].registers)
    synoptic.load(folder, "cpu")
    state = load_file(folder / "model.safetensors")
    del state["embeddings.register_tokens"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"it has 0 registers, and its config\.json says"):
        synoptic.load(folder, "cpu")


def test_a_file_of_any_name_in_a_folder_is_read_with_its_description(tmp_path: Path) -> None:
    folder = huggingface(tmp_path / "h", BY_NAME["ViTModel of transformers"])
    (folder / "model.safetensors").rename(folder / "weights.fp32.safetensors")
    assert synoptic.load(folder / "weights.fp32.safetensors", "cpu").model.config.norm_eps == 1e-12


def test_activations_that_ours_have_not_are_those_of_transformers(tmp_path: Path) -> None:
    folder = huggingface(
        tmp_path,
        BY_NAME["ViTModel of transformers"],
        hidden_act="gelu_new",
        image_size=16,
        patch_size=4,
        intermediate_size=CONFIGS["DINO"].hidden,
        architectures=["ViTModel"],
    )
    assert type(synoptic.load(folder, "cpu").model).__name__ == "HubBackbone"
