"""What a CLIP training is built from: published sizes, given towers, given words, a teacher."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tasks import backward, batch_of, config_of, source_of
from tokenizers import Tokenizer as Engine

import synoptic
from synoptic.data.sources import Source
from synoptic.methods import clip
from synoptic.methods.clip import METHOD
from synoptic.models.clip import Clip
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, vit_config
from synoptic.types import Preprocess
from synoptic.weights.folder import save_folder

SMALL = {"text_width": 32, "text_depth": 1, "text_heads": 1, "embedding": 24, "vocabulary": 300}


def task_of(**values: Any) -> clip.ClipTask:
    torch.manual_seed(0)
    return clip.build(config_of("clip", **{**SMALL, **values}), source_of()).train()


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A CLIP on disk, of other weights than a new one begins with."""
    model = task_of().model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    save_folder(tmp_path / "trained", model, Preprocess(32))
    return tmp_path / "trained"


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("vit_b32", (512, 12, 8, 512)),
        ("vit_l14", (768, 12, 12, 768)),
        ("rn50", (512, 12, 8, 1024)),
        ("rn50x16", (768, 12, 12, 768)),
        ("vit_mini16", (128, 4, 2, 128)),
    ],
)
def test_an_encoder_brings_the_text_tower_that_it_was_published_with(model: str, text: tuple[int, ...]) -> None:
    config = config_of("clip", model=model, size=None)
    assert (config.text_width, config.text_depth, config.text_heads, config.embedding) == text
    assert (config.size, config.context) == ({"rn50x16": 384}.get(model, 224), 77)


def test_a_resnet_learns_words() -> None:
    task = task_of(model="rn50")
    terms = backward(task, batch_of(2))
    assert torch.isfinite(terms["loss"])
    assert all(parameter.grad is not None for parameter in task.model.image.parameters())
    assert len(list(task.shard_units())) == 16 + 1


def test_siglips_towers_learn_in_a_space_as_wide_as_they_are() -> None:
    small = {key: value for key, value in SMALL.items() if key != "embedding"}
    torch.manual_seed(0)
    config = config_of("clip", **small, towers="siglip")
    assert (config.loss, config.context, config.embedding) == ("siglip", 64, 128)
    assert config.optim.lr == 1e-3  # SigLIP sec. 4
    task = clip.build(config, source_of()).train()
    assert task.model.config.image.pool == "attention" and task.prepare(batch_of(), 0).tokens.shape == (4, 64)
    terms = backward(task, batch_of())
    assert torch.isfinite(terms["loss"])


def test_given_towers_go_on_with_their_words_and_their_scale(trained: Path) -> None:
    given = synoptic.load(trained, "cpu").model
    config = config_of("clip", model="vit_s16", size=None, init=str(trained))
    assert (config.text_width, config.vocabulary, config.optim.lr) == (32, 8192, 1e-5)
    task = clip.build(config, source_of())
    state = given.state_dict()
    assert task.model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in task.model.state_dict().items())
    assert task.tokenizer.to_json() == given.tokenizer.to_json()
    assert all(parameter.requires_grad for parameter in task.parameters())
    assert task.facts().keys() == {"init.weights"}
    assert not task.expected_losses(), "what they know already makes their losses smaller than those of guessing"


def test_given_towers_of_siglip_gather_in_one_way(tmp_path: Path) -> None:
    save_folder(tmp_path / "siglip", task_of(loss="siglip").model, Preprocess(32))
    with pytest.raises(ValueError, match="gathering decides nothing with the loss of SigLIP; leave it out"):
        values = {"data": "d", "out": "o", "init": str(tmp_path / "siglip"), "gathering": "whole"}
        METHOD.configure(values, "train clip")


def test_another_model_gives_its_picture_encoder_alone(tmp_path: Path, trained: Path) -> None:
    given = synoptic.load(trained, "cpu").model.image
    save_folder(tmp_path / "sees", given, Preprocess(32))
    task = task_of(init=str(tmp_path / "sees"))
    state = given.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in task.model.image.state_dict().items())
    assert isinstance(task.model, Clip) and task.model.config.text.width == 32


def test_pictures_are_not_left_out_as_in_the_training_of_the_given_encoder(tmp_path: Path) -> None:
    """DINO's students keep their stochastic depth in their configuration; CLIP has no key for it."""
    save_folder(tmp_path / "sees", ViT(vit_config("vit_nano16", image_size=32, drop_path=0.3)), Preprocess(32))
    model = task_of(init=str(tmp_path / "sees")).model
    assert model.config.image.drop_path == 0 and all(block.drop_path == 0 for block in model.image.blocks)


@pytest.mark.parametrize("key", ["text_width=64", "towers=siglip", "tokenizer=vocabulary.txt", "vocabulary=400"])
def test_what_given_towers_bring_is_refused(trained: Path, key: str) -> None:
    name, _, value = key.partition("=")
    with pytest.raises(ValueError, match=f"{name} decides nothing beside a CLIP or SigLIP in init=.*; leave it out"):
        METHOD.configure({"data": "d", "out": "o", "init": str(trained), name: value}, "train clip")


def test_what_given_towers_bring_is_passed_over_in_a_preset(trained: Path) -> None:
    values = {"data": "d", "out": "o", "init": str(trained)}
    config = METHOD.resolve(METHOD.configure(values, "train clip", preset="photos"), 100)
    assert (config.embedding, config.text_width, config.size) == (24, 32, 64)


def test_given_towers_read_the_bands_that_they_read(trained: Path) -> None:
    with pytest.raises(ValueError, match="reads 3 bands, not channels=4"):
        config_of("clip", init=str(trained), channels=4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "rn50", "towers": "siglip"}, "SigLIP's towers pool a ViT"),
        ({"model": "rn50", "channels": 4}, "reads RGB of 8 bits"),
        ({"model": "rn50", "accumulate": 4}, "normalises over two pictures or more, not over 1; give a larger batch"),
        ({"batch": 1}, "batch=1: pictures and captions are told apart within a batch; give 2 or more"),
        ({"text_heads": 5, "text_width": 32}, "text_heads=5: does not divide text_width=32"),
        ({"model": "rn50", "size": 100}, "the patches of rn50 do not tile it; the nearest that work: 96, 128"),
    ],
)
def test_towers_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of("clip", **values)


def test_clips_vocabulary_file_is_taken(data_dir: Path) -> None:
    task = task_of(tokenizer=str(data_dir / "vocab" / "bpe_simple_vocab_16e6.txt.gz"))
    assert (task.tokenizer.vocabulary, task.tokenizer.end, task.tokenizer.context) == (49408, 49407, 77)
    assert task.model.config.text.vocabulary == 49408
    assert torch.isfinite(backward(task, batch_of())["loss"])


def test_the_words_of_another_model_are_taken(trained: Path) -> None:
    task = task_of(tokenizer=str(trained / "tokenizer.json"))
    assert task.tokenizer.to_json() == synoptic.load(trained, "cpu").model.tokenizer.to_json()


def test_the_words_of_another_model_are_cut_at_the_context_that_is_asked_for(trained: Path) -> None:
    task = task_of(tokenizer=str(trained / "tokenizer.json"), context=20)
    assert task.config.context == task.tokenizer.context == task.model.config.text.context == 20


def test_a_definition_that_cuts_and_fills_rows_itself_does_not_do_so_here(tmp_path: Path) -> None:
    learned = Tokenizer.learn(["a red cone"], 300)
    engine = Engine.from_str(json.dumps(json.loads(learned.to_json())["tokenizer"]))
    engine.enable_truncation(4)
    engine.enable_padding(length=4)
    (tmp_path / "tokenizer.json").write_text(engine.to_str())
    texts = ["a", "a red cone and a blue torus"]
    assert task_of(tokenizer=str(tmp_path / "tokenizer.json")).tokenizer.encode(texts) == learned.encode(texts)


def test_a_folder_is_no_vocabulary(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer=.*trained: is a folder; name the tokenizer\.json in it"):
        task_of(tokenizer=str(trained))


def test_words_come_from_the_hub_or_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its cache on this machine, without a network."""
    from huggingface_hub import constants

    learned = Tokenizer.learn(["a red cone"], 300)
    content = json.loads(learned.to_json())["tokenizer"]
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--some--clip"
    (cached / "snapshots" / commit).mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots" / commit / "tokenizer.json").write_text(json.dumps(content))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetched = task_of(tokenizer="hf:some/clip").tokenizer
    assert fetched.encode(["a red cone"]) == learned.encode(["a red cone"]) and fetched.context == 77
    for name in ("hf:some/other", "hf:no name at all"):
        with pytest.raises(
            ValueError, match=r"no tokenizer\.json can be had .*; download its tokenizer\.json elsewhere"
        ):
            task_of(tokenizer=name)


def test_rubbish_is_no_vocabulary(tmp_path: Path) -> None:
    for name, content in (("v.txt", b"one\ntwo three four"), ("v.json", b"[]"), ("v.txt.gz", b"not packed")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"^tokenizer=.*{name}: (is no vocabulary|cannot be read)"):
            task_of(tokenizer=str(tmp_path / name))
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"0" * 20_000_000))
    with pytest.raises(ValueError, match="unpacks to more than 16,000,000 bytes"):
        task_of(tokenizer=str(tmp_path / "bomb.txt.gz"))
    with pytest.raises(ValueError, match=r"nowhere\.txt: cannot be read"):
        task_of(tokenizer=str(tmp_path / "nowhere.txt"))


def test_rows_of_the_other_towers_are_refused(trained: Path) -> None:
    small = {key: value for key, value in SMALL.items() if key != "embedding"}
    config = config_of("clip", **small, towers="siglip", tokenizer=str(trained / "tokenizer.json"))
    with pytest.raises(ValueError, match="its rows are made for CLIP's towers, not for towers=siglip"):
        clip.build(config, source_of())


def test_long_captions_are_told_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    source = source_of()
    long = Source(source.root, source.paths, captions=[("cone " * 40,), *source.captions[1:]])
    config = config_of("clip", **SMALL, context=20)
    clip.build(config, long)
    assert "1 of 7 captions looked at have more than 18 tokens, such as 'cone cone" in caplog.text
    with pytest.raises(ValueError, match=r"1 of 7 captions .*; shorten them, raise context=, or give too_long=cut"):
        clip.build(replace(config, too_long="error"), long)
    caplog.clear()
    clip.build(replace(config, context=77), long)
    assert not caplog.text


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_teachers_choices_are_learned_beside_the_captions(trained: Path, accumulate: int) -> None:
    task = task_of(teacher=str(trained), distillation=0.5, accumulate=accumulate)
    assert task.facts().keys() == {"teacher.weights"}
    assert not any(name.startswith("_teacher") for name, _ in task.named_parameters())
    batch = task.prepare(batch_of(), 0)
    terms = []
    for told in task.losses(batch, 0.0):
        told["loss"].backward()
        terms.append(told)
    first = terms[0]
    assert float(first["loss"].detach()) == pytest.approx(float(first["contrastive"] + 0.5 * first["distillation"]))
    assert first["distillation"] > 0
    assert all(parameter.grad is None for parameter in task._teacher[0].model.parameters())


def test_a_teacher_sees_the_same_crop_in_its_own_size(tmp_path: Path, trained: Path) -> None:
    model = synoptic.load(trained, "cpu").model
    save_folder(tmp_path / "larger", model, Preprocess(48))
    task = task_of(teacher=str(tmp_path / "larger"))
    batch = task.prepare(batch_of(), 0)
    assert [crop.shape[-1] for crop in batch.crops] == [32, 48]
    assert torch.isfinite(next(task.losses(batch, 0.0))["loss"])


def test_a_teacher_without_words_is_refused(tmp_path: Path, trained: Path) -> None:
    save_folder(tmp_path / "sees", synoptic.load(trained, "cpu").model.image, Preprocess(32))
    with pytest.raises(ValueError, match="knows no words; take a CLIP"):
        task_of(teacher=str(tmp_path / "sees"))


def test_siglips_scale_may_grow_beyond_clips() -> None:
    for loss, limit in (("clip", 100.0), ("siglip", 150.0)):
        task = task_of(loss=loss)
        with torch.no_grad():
            task.model.logit_scale.fill_(torch.tensor(150.0).log())
        task.after_step(0.0)
        assert task.model.logit_scale.exp().item() == pytest.approx(limit, rel=1e-5)
