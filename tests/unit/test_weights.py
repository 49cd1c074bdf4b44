"""Weights on disk: whole or not at all, read back bit for bit, and clear about what is wrong with them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_models import CONFIG, MODEL, TOKENIZER, build, edit, saved, tensors, vit_config
from torch import Tensor, nn

from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, ViTConfig
from synoptic.types import Preprocess
from synoptic.weights import zoo
from synoptic.weights.checksums import SUMS, write_sums
from synoptic.weights.convert import (
    HUGGINGFACE_CLIP_TEXT,
    HUGGINGFACE_DINOV2,
    HUGGINGFACE_VIT,
    Change,
    Rule,
    Table,
    from_ours,
    load_state,
    to_ours,
)
from synoptic.weights.folder import load_folder, model_hash, save_folder, text_towers, weights_hash
from synoptic.weights.writing import convert


def answers(model: nn.Module) -> list[Tensor]:
    features = model(torch.rand(2, 3, 16, 8, generator=torch.Generator().manual_seed(1)))
    spaces = [features, *features.adaptors.values()]
    words = [tower.encode_text(tower.tokenizer(["a red cone"])) for tower in text_towers(model).values()]
    return [tensor for space in spaces for tensor in (space.summary, space.patches) if tensor is not None] + words


@pytest.mark.parametrize("kind", ["vit", "clip", "student", "shared student"])
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    model = build(kind)
    facts = {"method": "radio", "steps": 100, "scores": {"knn": 0.5}}
    save_folder(tmp_path / "deep" / "weights", model, Preprocess(16, "squash"), {"name": "mine", **facts})
    loaded, preprocess, record = load_folder(tmp_path / "deep" / "weights")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert preprocess == Preprocess(16, "squash")
    assert (record.kind, record.name, record.trained) == (kind.split()[-1], "mine", facts)
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(answers(loaded), answers(model), strict=True))
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert [name for name, parameter in loaded.named_parameters() if not parameter.requires_grad] == frozen
    assert list(tmp_path.iterdir()) == [tmp_path / "deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["weights"]


def test_a_students_folder_holds_its_teachers_words_wherever_it_lies(tmp_path: Path) -> None:
    student = build("student")
    saved(tmp_path, "student").rename(tmp_path / "elsewhere")
    after = answers(load_folder(tmp_path / "elsewhere")[0])
    assert all(torch.equal(a, b) for a, b in zip(answers(student), after, strict=True))


@pytest.mark.skipif(os.name != "posix", reason="other systems have other rights")
def test_whoever_may_read_one_file_may_read_all(tmp_path: Path) -> None:
    save_folder(
        tmp_path / "ours", ViT(ViTConfig(patch_size=4, width=24, depth=1, heads=3, image_size=16)), Preprocess(16)
    )
    convert(tmp_path / "ours", "huggingface", tmp_path / "theirs")
    for folder in tmp_path.iterdir():
        assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_the_model_card_tells_what_it_is(tmp_path: Path) -> None:
    save_folder(
        tmp_path / "w", build("student"), Preprocess(16), {"name": "two-in-one", "steps": 300, "scores": {"knn": 2 / 3}}
    )
    card = (tmp_path / "w" / "README.md").read_text()
    assert "\n# two-in-one\n" in card
    assert "`clip`: summary of 6 channels, patches of 10, words" in card
    assert "## How it was made\n\n- steps: 300\n" in card
    assert "## Metrics\n\n| score | value |\n| --- | --- |\n| knn | 0.6667 |\n" in card
    assert "16 x 16 pixels" in card
    assert "## Origin\n\nNot told.\n\n## Licence\n\nNone is told" in card


CARDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "known": ({"licence": "Apache-2.0"}, "license: apache-2.0\nlibrary_name", "## Licence\n\nApache-2.0\n"),
    "none": ({}, "license: unknown\nlibrary_name", "## Licence\n\nNone is told"),
    "other": ({"licence": "NSCL"}, "license: other\nlicense_name: nscl\nlibrary_name", "## Licence\n\nNSCL\n"),
    "with a trick": (
        {"licence": "x\n---\n# evil: [1]"},
        "license: other\nlicense_name: x-------evil---1-\nlibrary_name",
        "## Licence\n\nx --- # evil: [1]\n",
    ),
    "from elsewhere": (
        {"from": "DINO", "origin": "https://a/b.pth", "data": "photos", "teachers.clip": "aaaa"},
        "license: unknown",
        "- origin: https://a/b.pth\n- from: DINO\n\n## Licence\n\nNone is told: whoever made these weights decides."
        "\n\n## Data\n\n- data: photos\n\n## Metrics\n\nNone are told.\n\n"
        "## How it was made\n\n- teachers.clip: aaaa\n",
    ),
}


def test_the_card_of_a_model_without_a_summary_shows_what_it_has(tmp_path: Path) -> None:
    save_folder(tmp_path / "w", ViT(vit_config(tokens=0)), Preprocess(16))
    card = (tmp_path / "w" / "README.md").read_text()
    assert 'model.features("a.jpg").patches  # (1, h*w, 12)' in card and "embed" not in card


@pytest.mark.parametrize("case", CARDS)
def test_the_model_card_begins_with_what_the_hub_reads(tmp_path: Path, case: str) -> None:
    facts, head, body = CARDS[case]
    save_folder(tmp_path / "w", build("clip"), Preprocess(16), {"name": "mine", **facts})
    card = (tmp_path / "w" / "README.md").read_text()
    first, matter, text = card.split("---\n", 2)
    assert first == "" and matter.startswith(head)
    assert matter.endswith("tags:\n- zero-shot-image-classification\n- synoptic\n- clip\n")
    assert text.startswith("\n# mine\n\nA CLIP of ")
    assert body in text


def test_weights_are_float32_whatever_the_model_was(tmp_path: Path) -> None:
    save_folder(tmp_path / "w", build("vit").bfloat16(), Preprocess(16))
    assert {tensor.dtype for tensor in load_file(tmp_path / "w" / MODEL).values()} == {torch.float32}
    assert load_folder(tmp_path / "w")[0].summary_token.dtype == torch.float32


def test_tensors_that_share_memory_or_lie_crossways_are_written_too(tmp_path: Path) -> None:
    model = build("vit")
    model.norm.bias = model.norm.weight
    fc1 = model.blocks[0].mlp.fc1
    fc1.weight = nn.Parameter(fc1.weight.detach().T.contiguous().T)
    save_folder(tmp_path / "w", model, Preprocess(16))
    loaded = load_folder(tmp_path / "w")[0]
    assert torch.equal(loaded.norm.bias, model.norm.weight)
    assert torch.equal(loaded.blocks[0].mlp.fc1.weight, fc1.weight)


def test_saving_again_replaces_and_a_failed_save_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, "student")
    save_folder(folder, build("vit"), Preprocess(8))
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", SUMS, CONFIG, MODEL]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(*args: Any, **options: Any) -> None:
        raise OSError("No space left on device")

    for step in ("model_card", "save_file", "write_sums", "_replace"):
        with monkeypatch.context() as patch:
            patch.setattr(f"synoptic.weights.folder.{step}", full_disk)
            with pytest.raises(OSError, match="No space"):
                save_folder(folder, build("clip"), Preprocess(16))
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_rename_that_fails_leaves_the_old_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            raise OSError("refused")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="refused"):
        save_folder(folder, build("vit"), Preprocess(16))
    monkeypatch.undo()
    assert load_folder(folder)[2].kind == "clip"
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_save_mends_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path)
    (tmp_path / ".other.0123abcd.old").mkdir()  # of another folder
    folder.rename(tmp_path / ".weights.0123abcd.old")  # killed between the two renames
    for name in (".weights.0123abcd.new", ".weights.4567cdef.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MODEL).write_bytes(b"half")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr("synoptic.weights.folder.save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
        save_folder(folder, build("vit"), Preprocess(16))
    assert load_folder(folder)[2].kind == "clip"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.0123abcd.old", "weights"]


def test_folders_of_another_sort_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"precious")
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"holds other files, such as a\.jpg"):
        save_folder(tmp_path / "photos", build("vit"), Preprocess(16))
    with pytest.raises(ValueError, match="is a file"):
        save_folder(tmp_path / "file", build("vit"), Preprocess(16))
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == (tmp_path / "file").read_bytes() == b"precious"


def test_a_loaded_model_does_not_hang_on_its_file(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    model = load_folder(folder)[0]
    before = answers(model)
    with (folder / MODEL).open("r+b") as file:
        file.seek(-2000, 2)
        file.write(bytes(2000))
    assert all(torch.equal(a, b) for a, b in zip(answers(model), before, strict=True))


def rename_adaptor(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config["model"]["adaptors"].update({name: config["model"]["adaptors"].pop("clip")})


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40]) and None


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda f: (f / MODEL).unlink(), r"model\.safetensors: no such file"),
    "no config": (lambda f: (f / CONFIG).unlink(), r"config\.json: cannot be read"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json: cannot be read"),
    "cut weights": (cut(MODEL), r"model\.safetensors: damaged weights file"),
    "empty weights": (lambda f: (f / MODEL).write_bytes(b""), r"model\.safetensors: damaged weights file"),
    "cut config": (cut(CONFIG), r"config\.json: is not JSON"),
    "cut tokenizer": (cut("tokenizer.json"), r"tokenizer\.json: damaged tokenizer"),
    "binary tokenizer": (lambda f: (f / "tokenizer.json").write_bytes(b"\xff\xfe"), "damaged tokenizer"),
    "another tokenizer": (
        lambda f: (f / "tokenizer.json").write_text(Tokenizer.learn(["x"], 280, 8).to_json()),
        "do not fit a text tower of",
    ),
    "another format": (edit(lambda c: c.pop("format")), "is no model of this library"),
    "newer version": (edit(lambda c: c.update(version=2)), "version 2 is unknown; this synoptic reads version 1"),
    "unknown kind": (edit(lambda c: c.update(kind="clap")), "unknown kind 'clap'.*clip"),
    "a list for a kind": (edit(lambda c: c.update(kind=["vit"])), "unknown kind"),
    "no model": (edit(lambda c: c.pop("model")), "'model' should hold an object"),
    "no preprocess": (edit(lambda c: c.pop("preprocess")), "'preprocess' should hold an object"),
    "unknown key": (edit(lambda c: c["model"]["image"].update(widht=3)), "unknown key image.widht.*image.width"),
    "wrong value": (edit(lambda c: c["model"]["image"].update(width="big")), "image.width=big should be"),
    "impossible": (edit(lambda c: c["model"]["image"].update(heads=5)), "heads=5 does not divide width=12"),
    "wrong mode": (edit(lambda c: c["preprocess"].update(mode="zoom")), "preprocess: mode=zoom"),
    "no size": (edit(lambda c: c["preprocess"].update(size=0)), "size=0"),
    "no share": (edit(lambda c: c["preprocess"].update(share=0)), "preprocess: share=0.0 should be above 0"),
    "missing tensor": (tensors(lambda t: t.pop("logit_scale")), r"1 missing \(logit_scale\)"),
    "unexpected tensor": (tensors(lambda t: t.update(extra=torch.ones(1))), r"1 unexpected \(extra\)"),
    "other shape": (
        tensors(lambda t: t.update({"projection.weight": torch.ones(6, 13)})),
        r"1 misshapen \(projection\.weight \(6, 13\) for \(6, 12\)\)",
    ),
    "no heads": (edit(lambda c: c["model"]["image"].update(heads=0)), "heads=0 should be from 1"),
    "no patches": (edit(lambda c: c["model"]["image"].update(patch_size=0)), "patch_size=0 should be from 1"),
    "fewer than no registers": (edit(lambda c: c["model"]["image"].update(registers=-1)), "registers=-1 should be"),
    "endless depth": (edit(lambda c: c["model"]["image"].update(depth=10**9)), "depth=1000000000 should be from 0"),
    "endless text": (edit(lambda c: c["model"]["text"].update(depth=10**9)), "depth=1000000000 should be from 0"),
    "impossible text": (edit(lambda c: c["model"]["text"].update(heads=3)), "heads=3 does not divide width=8"),
    "a number beyond all": (edit(lambda c: c["model"]["image"].update(width=10**30)), "width=10{30} should be"),
    "shorter text tower": (
        edit(lambda c: c["model"]["text"].update(context=7)),
        "up to 8 tokens do not fit a text tower",
    ),
    "no context": (
        lambda f: (f / "tokenizer.json").write_text(TOKENIZER.to_json().replace('"context": 8', '"context": 0')),
        "damaged tokenizer .context=0 should be 3 or more",
    ),
    "adaptor called keys": (edit(rename_adaptor("keys")), "none can be called 'keys'"),
    "adaptor with a dot": (edit(rename_adaptor("a.b")), r"unknown key adaptors\.a"),
    "adaptor elsewhere": (edit(rename_adaptor("a/b")), "none can be called 'a/b'"),
    "adaptor without patches": (
        edit(lambda c: c["model"]["adaptors"]["clip"].update(patches=0)),
        "patches=0 should be from 1",
    ),
    "other depth": (edit(lambda c: c["model"]["image"].update(depth=2)), r"12 missing \(.*, \.\.\.\)"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_folder_is_refused_in_one_line_that_says_why(tmp_path: Path, case: str) -> None:
    folder = saved(tmp_path, "student" if case.startswith("adaptor") else "clip")
    spoil, message = SPOILED[case]
    files = set(folder.iterdir())
    spoil(folder)
    if set(folder.iterdir()) == files:
        write_sums(folder)  # by somebody who knows of them
    with pytest.raises(ValueError, match=message) as error:
        load_folder(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_headers_are_not_read_where_they_are_larger_than_any(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / MODEL).write_bytes((1 << 25).to_bytes(8, "little") + b" " * 100)
    with pytest.raises(ValueError, match="its header has 33,554,432 bytes, more than 16,777,216"):
        load_folder(folder)
    with (folder / CONFIG).open("ab") as file:
        file.truncate(1 << 25)
    (folder / SUMS).unlink()
    with pytest.raises(ValueError, match="it has more than 16,777,216 bytes"):
        load_folder(folder)
    (folder / CONFIG).write_text("[" * 10**5)
    with pytest.raises(ValueError, match="is not JSON that is read here"):
        load_folder(folder)


def test_a_giant_configuration_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    folder = saved(tmp_path, "vit")
    edit(lambda config: config["model"].update(width=3 * 10**4))(folder)
    write_sums(folder)
    with pytest.raises(ValueError, match="misshapen"):
        load_folder(folder)


def test_the_hash_tells_weights_apart(tmp_path: Path) -> None:
    model = build("clip")
    first = weights_hash(model)
    assert re.fullmatch("[0-9a-f]{16}", first)
    save_folder(tmp_path / "w", model, Preprocess(16))
    assert weights_hash(load_folder(tmp_path / "w")[0]) == first
    with torch.no_grad():
        model.logit_scale.add_(1e-6)
    assert weights_hash(model) != first


def test_a_models_hash_knows_all_that_decides_its_answers(tmp_path: Path) -> None:
    model, preprocess, _ = load_folder(saved(tmp_path))
    told = model_hash(model, preprocess)
    assert (
        load_folder(saved(tmp_path))[0] is not model and model_hash(load_folder(saved(tmp_path))[0], preprocess) == told
    )
    others = {told, model_hash(model), model_hash(model, replace(preprocess, mode="squash"))}
    model.config = replace(model.config, image=replace(model.config.image, mean=(0.1, 0.2, 0.3)))
    others.add(model_hash(model, preprocess))
    assert len(others) == 4


def test_the_list_of_models() -> None:
    records = zoo.list_models()[: len(zoo.NAMES)]
    assert [record.name for record in records] == list(zoo.NAMES)
    by_name = {record.name: record for record in records}
    assert by_name["vit_b16"].parameters == 85_798_656
    assert (by_name["vit_b16"].resolution, by_name["vit_mini16"].resolution) == (224, 96)
    assert all(record.local and record.licence and record.task for record in records)
    assert (by_name["rn50x4"].resolution, by_name["rn50x4"].task) == (288, "features")
    assert [record.name for record in zoo.list_models("mini")] == ["vit_mini8", "vit_mini16"]
    assert [record.name for record in zoo.list_models("vit_?16")] == [
        "vit_s16",
        "vit_b16",
        "vit_l16",
        "vit_h16",
        "vit_g16",
    ]
    with pytest.raises(ValueError, match=r"no model matches 'vit_b15'.*vit_b16"):
        zoo.list_models("vit_b15")


def test_a_model_argument_is_a_name_a_run_a_folder_or_a_file(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run")
    for form in (folder, str(folder), tmp_path / "run", folder / MODEL, f"{tmp_path}/run/"):
        assert zoo.resolve(form) == folder
        assert zoo.load(form)[2].name == "clip"
    assert zoo.resolve("vit_mini16") == "vit_mini16"
    model, preprocess, record = zoo.load("vit_mini16")
    assert (preprocess.size, record.kind, record.name, model.training) == (96, "vit", "vit_mini16", False)


def test_what_is_no_model_is_told_what_would_be(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    cases = {
        "vit_mini15": "there is no model 'vit_mini15'.*vit_mini16",
        str(tmp_path / "absent"): "there is no model '.*absent'",
        str(tmp_path / "run"): "this run has no weights/ yet",
        str(tmp_path): "neither it nor its weights/ holds config.json and one of model.safetensors",
    }
    for form, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            zoo.resolve(form)
        assert "a model is a name that `synoptic models` lists, a run folder, a weights" in str(error.value)


def huggingface_keys(table: Table, depth: int) -> list[str]:
    names = [part for rule in table.rules for part in rule.theirs]
    return [
        name.format(i=layer, p=part, layer=fc)
        for name in names
        for layer in (range(depth) if "{i}" in name else [0])
        for part in (("weight", "bias") if "{p}" in name else [""])
        for fc in (("fc1", "fc2") if "{layer}" in name else [""])
    ]


@given(st.sampled_from([HUGGINGFACE_VIT, HUGGINGFACE_DINOV2, HUGGINGFACE_CLIP_TEXT]), st.integers(0, 3), st.randoms())
def test_tables_go_both_ways_in_any_order(table: Table, depth: int, random: Any) -> None:
    keys = huggingface_keys(table, depth)
    random.shuffle(keys)
    state = {key: torch.full((2, 3), float(place)) for place, key in enumerate(keys)}
    ours = to_ours(state, table)
    assert len(ours) == len(keys) - 4 * depth  # query, key and value become one
    back = from_ours(ours, table)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in keys)


def test_query_key_and_value_are_stacked_in_that_order() -> None:
    name = "encoder.layer.3.attention.attention.{}.weight"
    state = {name.format(part): torch.full((2, 2), float(n)) for n, part in enumerate(["value", "query", "key"])}
    ours = to_ours(state, HUGGINGFACE_VIT)
    assert list(ours) == ["blocks.3.attn.qkv.weight"]
    assert ours["blocks.3.attn.qkv.weight"][:, 0].tolist() == [1, 1, 2, 2, 0, 0]


def test_a_change_is_undone_on_the_way_back() -> None:
    transposed = Change(lambda parts: parts[0].mT, lambda tensor: (tensor.mT,))
    table = Table((Rule("head.weight", ("proj",), transposed),), ignored=("step",))
    theirs = torch.arange(6.0).view(2, 3)
    ours = to_ours({"proj": theirs, "step": torch.ones(())}, table)
    assert torch.equal(ours["head.weight"], theirs.T)
    assert torch.equal(from_ours(ours, table)["proj"], theirs)


def test_keys_that_a_table_does_not_know_are_named() -> None:
    query = "encoder.layer.0.attention.attention.query.weight"
    with pytest.raises(ValueError, match=r"1 unknown \(nonsense\); 1 incomplete \(blocks\.0\.attn\.qkv\.weight\)"):
        to_ours({query: torch.ones(1), "nonsense": torch.ones(1), "pooler.dense.bias": torch.ones(1)}, HUGGINGFACE_VIT)
    with pytest.raises(ValueError, match=r"1 unknown \(register_token\)"):
        from_ours({"register_token": torch.ones(1)}, HUGGINGFACE_VIT)
    with pytest.raises(ValueError, match=r"file: the weights do not fit the model: 1 missing \(bias\); 1 misshapen"):
        load_state(nn.Linear(2, 3), {"weight": torch.ones(3, 3)}, "file")


def test_loading_neither_draws_random_weights_nor_imports_the_compiler(tmp_path: Path) -> None:
    folder = saved(tmp_path, "student")
    state = torch.get_rng_state()
    load_folder(folder)
    assert torch.equal(torch.get_rng_state(), state)
    code = "import sys; from synoptic.weights.folder import load_folder; load_folder(sys.argv[1]); print(*sys.modules)"
    command = [sys.executable, "-c", code, str(folder)]
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "synoptic.weights.folder" in modules
    assert "torch._dynamo" not in modules
