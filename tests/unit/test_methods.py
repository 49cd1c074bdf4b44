"""What the methods promise: schedules, frozen parts, teachers that stay as they are, students that are whole."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_tasks import backward, batch_of, config_of, source_of

from synoptic.data.sources import Source
from synoptic.losses.balance import Balancer
from synoptic.methods import METHOD_NAMES, clip, get_method, radio
from synoptic.methods.base import split_by_decay
from synoptic.methods.teachers import Teacher, parse_teachers
from synoptic.models.vit import ViT, vit_config
from synoptic.predict import VisionModel
from synoptic.types import Preprocess


@pytest.fixture
def clip_task() -> clip.ClipTask:
    torch.manual_seed(0)
    config = config_of("clip", text_width=32, text_depth=1, text_heads=1, embedding=24, vocabulary=300)
    return clip.build(config, source_of()).train()


@pytest.fixture
def radio_task(tmp_path: Path, clip_task: clip.ClipTask) -> radio.RadioTask:
    return radio.build(radio_config(tmp_path, clip_task), source_of()).train()


def radio_config(folder: Path, clip_task: clip.ClipTask, **values: Any) -> radio.RadioConfig:
    """Two saved teachers of different patch size, width, resolution and normalisation, and the student's recipe."""
    VisionModel(clip_task.model, Preprocess(32), "clip").save(folder / "clip")
    torch.manual_seed(1)
    other = ViT(vit_config("vit_mini8", image_size=48, depth=1, mean=(0.5,) * 3, std=(0.5,) * 3))
    VisionModel(other, Preprocess(48), "dino").save(folder / "dino")
    usual = {"teachers": f"clip:{folder}/clip,dino:{folder}/dino", "model": "vit_nano8"}
    return config_of("radio", **{**usual, **values})


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_every_method_has_a_configuration_and_a_line_that_tells_what_it_does(name: str) -> None:
    method = get_method(name)
    assert method.name == name and method.summary
    assert method.config.__doc__


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean radio"):
        get_method("radoi")


def test_matrices_decay_and_vectors_do_not() -> None:
    model = ViT(vit_config("vit_nano16"))
    matrices, vectors = split_by_decay(model.named_parameters())
    assert matrices.decay and not vectors.decay
    assert all(parameter.ndim >= 2 for parameter in matrices.params)
    assert all(parameter.ndim < 2 for parameter in vectors.params)
    assert len(matrices.params) + len(vectors.params) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("dino", {"size": 0}, "size=0"),
        ("dino", {"teacher_temperature": 0.0}, "teacher_temperature=0"),
        ("dino", {"drop_path": 1.0}, "drop_path=1"),
        ("dino", {"momentum": 1.5}, "momentum=1.5"),
        ("dino", {"prototypes": -3}, "prototypes=-3"),
        ("dino", {"koleo": -1.0}, "koleo=-1"),
        ("dino", {"size": 50}, "size=50: the patches of vit_nano16 do not tile it; the nearest that work: 48, 64"),
        ("dino", {"crops": {"local_size": 20}}, "crops.local_size=20: .* 16, 32"),
        ("clip", {"vocabulary": 10}, "vocabulary=10"),
        ("clip", {"context": 1}, "context=1"),
        ("clip", {"crop_scale": [1.0, 0.4]}, "lowest value comes first"),
        ("clip", {"text_width": 64, "text_heads": 3}, "text_heads=3: does not divide text_width=64"),
        ("radio", {"crop_scale": [0.0, 1.0]}, "crop_scale"),
        ("radio", {"flip": 5.0}, "flip=5"),
        ("radio", {"size": 33}, "size=33: .* 32, 48"),
    ],
)
def test_values_that_cannot_be_trained_with_are_refused_by_their_key(
    method: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        config_of(method, **values)
    assert "\n" not in str(raised.value)


def test_heads_of_text_divide_its_width_unasked() -> None:
    assert config_of("clip", text_width=200).text_heads == 2


@pytest.mark.parametrize(("model", "kind"), [("vit_ti16", torch.nn.LayerNorm), ("vit_nano16", torch.nn.Identity)])
def test_clip_has_a_norm_before_the_blocks_where_the_stem_has_none(model: str, kind: type) -> None:
    assert isinstance(clip.build(config_of("clip", model=model), source_of()).model.image.pre_norm, kind)


def test_clip_draws_one_caption_a_picture_by_its_position_alone(clip_task: clip.ClipTask) -> None:
    whole = clip_task.prepare(batch_of(), 5).tokens
    halves = [clip_task.prepare(part, 5).tokens for part in batch_of().split(2)]
    for row, tokens in zip(whole, [row for half in halves for row in half], strict=True):
        length = int((tokens == clip_task.model.tokenizer.end).int().argmax()) + 1
        assert row[:length].tolist() == tokens[:length].tolist()
    drawn = {tuple(clip_task.prepare(batch_of(1, start=p), 5).tokens[0].tolist()) for p in range(20)}
    assert len(drawn) == 2


def test_clip_starts_near_ln_b_and_never_scales_by_more_than_100(clip_task: clip.ClipTask) -> None:
    with torch.no_grad():
        clip_task.model.logit_scale.zero_()  # the space is narrow, where chance is much louder than in a real one
    terms = backward(clip_task, batch_of(16))
    assert float(terms["contrastive"]) == pytest.approx(math.log(16), rel=0.1)
    with torch.no_grad():
        clip_task.model.logit_scale.fill_(9.0)
    clip_task.after_step(0.0)
    assert clip_task.model.logit_scale.exp().item() == pytest.approx(100.0, rel=1e-5)


def test_clip_without_captions_tells_so() -> None:
    with pytest.raises(ValueError, match="caption"):
        clip.build(config_of("clip"), Source(Path("bare"), [Path("a.jpg")]))


def test_radio_gives_every_teacher_the_same_crop_at_its_own_size(radio_task: radio.RadioTask) -> None:
    views = {crop.shape[-1]: crop for crop in radio_task.prepare(batch_of(size=64), 0).crops}
    assert {size: tuple(view.shape) for size, view in views.items()} == {32: (4, 3, 32, 32), 48: (4, 3, 48, 48)}
    small = torch.nn.functional.interpolate(views[48], size=32, mode="bicubic", antialias=True)
    assert float((small - views[32]).abs().mean()) < 0.05


def test_radio_terms_are_those_of_each_teacher_and_their_weights_count(radio_task: radio.RadioTask) -> None:
    batch = radio_task.prepare(batch_of(), 0)
    radio_task.eval()  # the student's positions are random while it trains
    (terms,) = radio_task.losses(batch, 0.0)
    names = {"clip.summary", "clip.patches", "dino.summary", "dino.patches"}
    assert {name for name in terms if "/" not in name} == {"loss"} | names
    torch.testing.assert_close(terms["loss"], sum(terms[name] for name in names))
    radio_task.balancer = Balancer(dict.fromkeys(names, 1.0) | {"dino.summary": 0.5, "clip.patches": 3.0}, "fixed")
    (weighted,) = radio_task.losses(batch, 0.0)
    expected = terms["clip.summary"] + 3.0 * terms["clip.patches"] + terms["dino.patches"]
    torch.testing.assert_close(weighted["loss"], expected + 0.5 * terms["dino.summary"])


def test_files_are_read_as_large_as_the_largest_teacher_sees_them(radio_task: radio.RadioTask) -> None:
    assert radio_task.resolution == 32 and radio_task.reads == 48


def test_a_run_depends_on_the_weights_of_its_teachers(radio_task: radio.RadioTask) -> None:
    before = radio_task.facts()
    assert before.keys() == {"teachers.clip", "teachers.dino"}
    with torch.no_grad():
        next(radio_task.teachers["dino"].parameters()).add_(1.0)
    after = radio_task.facts()
    assert after["teachers.clip"] == before["teachers.clip"]
    assert after["teachers.dino"] != before["teachers.dino"]


def test_a_student_with_one_summary_token_answers_for_all_teachers(tmp_path: Path, clip_task: clip.ClipTask) -> None:
    config = radio_config(tmp_path, clip_task, summary="shared", position="learned")
    task = radio.build(config, source_of()).train()
    assert task.student.backbone.config.summary_tokens == 1
    backward(task, batch_of())
    trained = [parameter for group in task.parameter_groups() for parameter in group.params]
    assert trained and all(parameter.grad is not None for parameter in trained)


def test_a_summary_of_no_weight_is_neither_learned_nor_answered(tmp_path: Path, clip_task: clip.ClipTask) -> None:
    config = radio_config(tmp_path, clip_task, teacher={"clip": {"summary_weight": 0.0}})
    task = radio.build(config, source_of()).train()
    terms = {name for name in backward(task, batch_of()) if "/" not in name}
    assert terms == {"loss", "clip.patches", "dino.patches", "dino.summary"}
    clip_adaptor = task.student.adaptors["clip"]
    assert clip_adaptor.summary_head is None and clip_adaptor.text is None


def test_radio_teachers_are_frozen_in_evaluation_mode_and_not_part_of_the_run(radio_task: radio.RadioTask) -> None:
    before = {name: value.clone() for name, value in radio_task.teachers["dino"].state_dict().items()}
    backward(radio_task, batch_of())
    for teacher in radio_task.teachers.values():
        assert not teacher.training and not teacher.model.training
        assert all(parameter.grad is None for parameter in teacher.parameters())
    after = radio_task.teachers["dino"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any("teacher" in name for name in radio_task.state_dict())


def test_radio_gradients_reach_the_whole_student_but_not_the_words(radio_task: radio.RadioTask) -> None:
    backward(radio_task, batch_of())
    untouched = [name for name, parameter in radio_task.student.named_parameters() if parameter.grad is None]
    assert untouched and all(name.startswith("adaptors.clip.text.") for name in untouched)
    trained = {id(parameter) for group in radio_task.parameter_groups() for parameter in group.params}
    assert all(id(parameter) not in trained for parameter in radio_task.student.adaptors["clip"].text.parameters())


def test_a_student_speaks_without_its_teachers(radio_task: radio.RadioTask, tmp_path: Path) -> None:
    student = VisionModel(radio_task.exported(), Preprocess(32), "student")
    words = student.encode_text(["a red cone"])
    with torch.no_grad():
        tokens = radio_task.teachers["clip"].model.tokenizer(["a red cone"])
        expected = radio_task.teachers["clip"].model.encode_text(tokens)
    np.testing.assert_allclose(words, torch.nn.functional.normalize(expected, dim=1).numpy(), rtol=1e-5, atol=1e-6)


def test_a_student_learns_its_teachers(radio_task: radio.RadioTask) -> None:
    optimizer = torch.optim.AdamW([p for group in radio_task.parameter_groups() for p in group.params], lr=2e-3)
    losses = []
    for _ in range(30):
        losses.append(float(backward(radio_task, batch_of())["loss"].detach()))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [("runs/a", "name:MODEL"), ("a:x,a:y", "twice"), ("a:", "name:MODEL"), ("a b:x", "name:MODEL")],
)
def test_teachers_that_cannot_be_read_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_teachers(spec)


def test_a_windows_or_hub_like_model_keeps_its_colons() -> None:
    assert parse_teachers("clip:runs/clip, dino:hf:owner/name") == {"clip": "runs/clip", "dino": "hf:owner/name"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher.clip.summary_weight": -1}, r"teacher\.clip\.summary_weight=-1 should be"),
        ({"teacher.clip.patches_weight": 0}, r"teacher\.clip\.patches_weight=0 should be greater than 0"),
        ({"teacher.sam.size": 64}, r"teacher\.sam: is no teacher \(valid are clip, dino\)"),
        ({"teacher.clip.size": 33.7}, r"teacher\.clip\.size=33\.7 should be a valid integer"),
        ({"teacher.clip.size": 33}, r"teacher\.clip\.size=33: its patches of 16 do not tile it; .* 32, 48"),
        ({"teacher.clip.at": [64]}, r"teacher\.clip\.at=64: is no size of this run; these are 32"),
        ({"teacher.clip.load.heads": 3}, r"says itself what heads= should be"),
        ({"stages": "32@0,33@0.5", "size": 32}, r"stages=33: the patches of vit_nano8 do not tile it; .* 32, 40"),
        ({"stages": "32+40+48+56+64@0", "size": 32}, r"batch=4: 5 sizes at once need as many pictures"),
        ({"shift": 3}, r"shift=3: is more than half of the 4 patches along 32 pixels"),
        ({"stages": "32@0,40@0.99", "size": 32}, r"stages=32@0,40@0\.99: of 10 steps none is left for 40 pixels"),
        ({"spectral": True, "recompute": True}, r"spectral=true beside recompute=true"),
        ({"stages": "32@0,40@0.94", "size": 32}, r"stages=32@0,40@0\.94: of 10 steps none is left for 40 pixels"),
        ({"size": 100, "stages": "32@0"}, r"size=100: the patches of vit_nano8 do not tile it"),
        (
            {"drop_teachers": 0.5, "stages": "32+40@0", "teacher.clip.at": [32], "teacher.dino.at": [40]},
            r"drop_teachers=0\.5: decides nothing, for there is one teacher at each size",
        ),
        ({"teacher.dino.features": "trunk"}, r"teacher\.dino\.features=trunk: nothing comes behind the last block"),
        ({"teacher.clip.features": "clap"}, r"teacher\.clip\.features=clap: .* has no adaptor of that name"),
        ({"windows": [3]}, r"windows=3: do not tile the 4 patches of 32 pixels"),
        ({"standardise": "zca"}, r"standardise=zca: the first batch has \d+ patches of clip, and whitening its"),
        ({"teachers": "+clip:x"}, r"teachers=\+clip:x: \+clip is for a student that is given as init="),
    ],
)
def test_options_that_make_no_training_are_refused(
    tmp_path: Path, clip_task: clip.ClipTask, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        radio.build(radio_config(tmp_path, clip_task, **values), source_of())
    assert "\n" not in str(error.value)


def test_radio_without_teachers_tells_so() -> None:
    with pytest.raises(ValueError, match="teachers= is missing"):
        radio.build(config_of("radio"), source_of())


def test_a_teacher_probe_tells_its_widths() -> None:
    teacher = Teacher(ViT(vit_config("vit_nano8", image_size=32)), 32)
    features = teacher.probe()
    assert features.grid == (4, 4) and features.patches.shape == (1, 16, 128)
    assert features.summary is not None and features.summary.shape == (1, 128)
