"""k-NN and zero-shot: what they say equals their definitions, and their scores mean what their names say."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_sets import COLOURS, paint
from torch import Tensor
from torch.nn import functional as F

from synoptic.data import scenes
from synoptic.data.sources import Source, open_source
from synoptic.data.words import sentence
from synoptic.evaluation import recognition
from synoptic.evaluation.features import Encoded, RawPixels, Space, embed, encode
from synoptic.evaluation.protocols import (
    EVALUATIONS,
    NEIGHBOURS,
    build_evaluator,
    prompts,
    zeroshot,
)
from synoptic.evaluation.recognition import KNN, Neighbours, ZeroShot, nearest, vote
from synoptic.evaluation.scenes import pairs, seen_pairs
from synoptic.judging import evaluate
from synoptic.models.adaptors import AdaptorConfig, Student, StudentConfig
from synoptic.models.text import TextConfig
from synoptic.models.tokenizers import Tokenizer
from synoptic.models.vit import ViT, vit_config
from synoptic.predict import VisionModel
from synoptic.types import Features, Preprocess

ALL_RIGHT = {"zeroshot": 1.0, "zeroshot_ece": pytest.approx(0, abs=1e-6)}  # and sure of it
WORDS = {name: torch.tensor(rgb, dtype=torch.float32) / 255 for name, rgb in COLOURS.items()}


class MeanColour:
    """Summary: the picture's mean colour, in one space with the words for colours."""

    preprocess = Preprocess(8, "squash")
    text_space: str | None = None

    def encode_image(self, images: Tensor) -> Features:
        return Features(images.flatten(2).transpose(1, 2), (8, 8), images.mean((2, 3)))

    def encode_text(self, texts: Sequence[str], adaptor: str | None = None) -> np.ndarray:
        found = [next(colour for name, colour in WORDS.items() if name in text) for text in texts]
        return F.normalize(torch.stack(found), dim=1).numpy()

    def logit_scale(self, adaptor: str | None = None) -> float:
        return 100.0


class Merged(MeanColour):
    """A student: black in its own space, the mean colour in the space of its adaptor "clip"."""

    text_space = "clip"

    def encode_image(self, images: Tensor) -> Features:
        answer = super().encode_image(images)
        own = torch.ones(len(images), 5)
        return Features(answer.patches, answer.grid, own, adaptors={"clip": answer})


def counting(model: MeanColour) -> tuple[MeanColour, list[int]]:
    """The model, and how many pictures it is shown each time."""
    plain, seen = model.encode_image, []
    model.encode_image = lambda images: (seen.append(len(images)), plain(images))[1]
    return model, seen


@pytest.fixture
def colours(tmp_path: Path) -> tuple[Source, Source]:
    parts = {part: {f"{n}/{i}.png": c for n, c in COLOURS.items() for i in range(6)} for part in ("bank", "queries")}
    return paint(tmp_path / "bank", parts["bank"]), paint(tmp_path / "queries", parts["queries"])


def plain_votes(bank: np.ndarray, labels: np.ndarray, query: np.ndarray, k: int, temperature: float) -> list[float]:
    """DINO's evaluation as its paper words it, one query, one neighbour at a time."""
    near = sorted(range(len(bank)), key=lambda i: (-float(bank[i] @ query), i))[:k]
    votes = [0.0] * (int(labels.max()) + 1)
    for i in near:
        votes[labels[i]] += math.exp(float(bank[i] @ query) / temperature)
    return [value / sum(votes) for value in votes]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 5)),
    k=st.integers(1, 50),
    temperature=st.sampled_from([0.07, 0.5]),
    seed=st.integers(0, 10**6),
    chunk=st.integers(1, 16),
)
def test_votes_are_those_of_a_plain_loop(
    sizes: tuple[int, int, int], k: int, temperature: float, seed: int, chunk: int
):
    (n, q, width), rng = sizes, np.random.default_rng(seed)
    # Vectors on a coarse grid: products are exact, and many neighbours are equally near.
    bank, queries = (rng.integers(-2, 3, (count, width)).astype(np.float32) / 4 for count in (n, q))
    labels = rng.integers(0, 4, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recognition, "BANK_CHUNK", chunk)
        patch.setattr(recognition, "QUERY_CHUNK", max(1, chunk // 2))
        found = nearest(torch.from_numpy(bank), torch.from_numpy(queries), k)
    votes = vote(found, labels, int(labels.max()) + 1, temperature)
    assert found.index.shape == (q, min(k, n))
    for query, neighbours, row in zip(queries, found.index, votes, strict=True):
        near = sorted(range(n), key=lambda i: (-float(bank[i] @ query), i))[:k]
        assert neighbours.tolist() == near
        np.testing.assert_allclose(row, plain_votes(bank, labels, query, k, temperature), rtol=1e-5, atol=1e-12)
    exact = np.take_along_axis(queries @ bank.T, found.index, 1)
    np.testing.assert_array_equal(found.similarity, exact)


def test_the_protocol_is_the_one_that_published_scores_follow(colours: tuple[Source, Source]):
    assert (KNN(*colours).k, KNN(*colours).temperature) == (20, 0.07)  # DINO, sec. 3.2; Wu et al. 2018


def test_near_neighbours_outvote_many_far_ones():
    similar = Neighbours(np.array([[0, 1, 2]]), np.array([[0.99, 0.5, 0.5]], np.float32))
    labels = np.array([1, 0, 0])
    assert vote(similar, labels, 2, temperature=0.07).argmax(1) == [1]
    assert vote(similar, labels, 2, temperature=10.0).argmax(1) == [0]


def test_weights_do_not_overflow_at_a_tiny_temperature():
    similar = Neighbours(np.array([[0, 1]]), np.array([[1.0, 0.9]], np.float32))
    np.testing.assert_allclose(vote(similar, np.array([0, 1]), 2, temperature=1e-4), [[1.0, 0.0]])


def test_knn_tells_colours_apart_and_shows_its_neighbours(colours: tuple[Source, Source]):
    bank, queries = colours
    knn = KNN(bank, queries, k=3)
    assert dict(knn.run(MeanColour())) == {"knn": 1.0}
    ((name, recognised),) = knn.judge(MeanColour())
    assert name == "knn"
    assert recognised.index.tolist() == list(range(18))
    assert recognised.neighbours is not None
    assert (bank.labels[recognised.neighbours.index] == recognised.truth[:, None]).all()
    assert (np.diff(recognised.neighbours.similarity) <= 0).all()


def test_other_numbers_of_neighbours_are_those_of_a_vote_of_their_own(colours: tuple[Source, Source]):
    bank, queries = colours
    model, seen = counting(Merged())
    spaces = (Space(), Space("clip"))
    together = dict(KNN(bank, queries, spaces=spaces, besides=(1, 5, 200)).judge(model))
    assert sum(seen) == 36
    assert list(together) == [f"knn{k}{space}" for space in ("", "_clip") for k in ("", "_1", "_5", "_200")]
    for k in (1, 5, 200):
        for name, alone in KNN(bank, queries, k=k, spaces=spaces).judge(Merged()):
            found = together[name.replace("knn", f"knn_{k}")]
            np.testing.assert_array_equal(found.scores, alone.scores)
            np.testing.assert_array_equal(found.neighbours.index, alone.neighbours.index)


def test_a_bank_smaller_than_the_neighbours_asked_for_is_told(
    colours: tuple[Source, Source], caplog: pytest.LogCaptureFixture
):
    KNN(*colours, besides=(10, 18))
    assert not caplog.records
    KNN(*colours, besides=(10, 100, 200))
    assert [record.message for record in caplog.records] == ["knn_100, knn_200: only 18 pictures are there to vote"]


def test_a_model_that_sees_nothing_scores_chance(colours: tuple[Source, Source]):
    class Blind(MeanColour):
        def encode_image(self, images: Tensor) -> Features:
            return Features(torch.ones(len(images), 4, 3), (2, 2), torch.ones(len(images), 3))

    assert dict(KNN(*colours).run(Blind())) == {"knn": pytest.approx(1 / 3)}
    queries = colours[1]
    zeroshot = ZeroShot(queries, queries.labels, [["red"], ["green"], ["blue"]])
    assert dict(zeroshot.run(Blind()))["zeroshot"] == pytest.approx(1 / 3)


def test_spaces_are_judged_in_one_pass(colours: tuple[Source, Source]):
    model, seen = counting(Merged())
    spaces = (Space(), Space("clip"), Space(pooling="patches"), Space("clip", "patches"))
    scores = dict(KNN(*colours, spaces=spaces).run(model))
    assert scores == {"knn": pytest.approx(1 / 3), "knn_clip": 1.0, "knn_patches": 1.0, "knn_clip_patches": 1.0}
    assert sum(seen) == 36
    with pytest.raises(ValueError, match=r"no adaptor 'sam': its adaptors are clip"):
        dict(KNN(*colours, spaces=[Space("sam")]).run(model))


def test_a_model_without_summary_answers_with_its_mean_patch(colours: tuple[Source, Source]):
    class Patches(MeanColour):
        def encode_image(self, images: Tensor) -> Features:
            return Features(images.flatten(2).transpose(1, 2), (8, 8))

    assert dict(KNN(*colours).run(Patches())) == {"knn": 1.0}


def test_unreadable_pictures_are_recorded_and_left_out(tmp_path: Path):
    source = paint(tmp_path, {f"{n}/{i:02}.png": c for n, c in COLOURS.items() for i in range(10)})
    (tmp_path / "red" / "03.png").write_bytes(b"no picture")
    embeddings = embed(MeanColour(), source)
    assert len(embeddings.index) == 29
    assert embeddings.vectors[Space()].shape == (29, 3)
    assert len(source.errors) == 1
    recognised = next(KNN(source, source).judge(MeanColour()))[1]
    assert len(recognised.truth) == 29
    assert recognised.accuracy() == 1.0


def test_too_many_unreadable_pictures_are_an_error(tmp_path: Path):
    source = paint(tmp_path, {f"red/{i}.png": COLOURS["red"] for i in range(4)})
    for path in source.paths:
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot be read"):
        embed(MeanColour(), source)


def test_an_answer_that_is_not_finite_names_its_picture(colours: tuple[Source, Source]):
    class Broken(MeanColour):
        def encode_image(self, images: Tensor) -> Features:
            answer = super().encode_image(images)
            answer.summary[4, 1] = float("nan")
            return answer

    with pytest.raises(ValueError, match=r"blue.4\.png is not finite"):
        dict(KNN(*colours).run(Broken()))


def test_pictures_of_any_shape_reach_the_model_in_its_size_and_in_order(tmp_path: Path):
    source = paint(tmp_path, {"a/1.png": (250, 0, 0), "a/2.png": (0, 250, 0)}, size=(40, 16))
    paint(tmp_path, {"a/3.png": (0, 0, 250)}, size=(16, 90))
    source = open_source(str(tmp_path), "all")
    batches: list[Encoded] = list(encode(MeanColour(), source, [2, 0]))
    assert [batch.index for batch in batches] == [[2, 0]]
    assert batches[0].sizes == [(90, 16), (16, 40)]
    assert batches[0].features.summary.argmax(1).tolist() == [2, 0]


def test_missing_labels_and_other_classes_are_told(tmp_path: Path, colours: tuple[Source, Source]):
    plain = paint(tmp_path / "plain", {"1.png": (0, 0, 0), "2.png": (0, 0, 0)})
    with pytest.raises(ValueError, match="has no labels"):
        KNN(plain, plain)
    other = paint(tmp_path / "other", {"cat/1.png": (0, 0, 0), "dog/2.png": (0, 0, 0)})
    with pytest.raises(ValueError, match="other classes"):
        KNN(colours[0], other)
    with pytest.raises(ValueError, match="k=0"):
        KNN(*colours, k=0)
    with pytest.raises(ValueError, match="k=0"):
        KNN(*colours, besides=(10, 0))


def test_zeroshot_takes_the_nearest_class_among_the_asked(colours: tuple[Source, Source]):
    queries = colours[1]  # classes in order: blue, green, red
    sentences = prompts([*queries.classes], ["a photo of {}", "{}"])
    assert sentences[0] == ["a photo of a blue", "a blue"]
    assert dict(ZeroShot(queries, queries.labels, sentences).run(MeanColour())) == ALL_RIGHT
    labels = np.where(queries.labels == 0, -1, 2)  # green is called red
    recognised = ZeroShot(queries, labels, sentences).judge(MeanColour())
    assert len(recognised.truth) == 12
    assert recognised.accuracy() == 0.5
    assert recognised.accuracy(within=3) == 1.0


def test_zeroshot_of_a_student_asks_in_its_teachers_space(colours: tuple[Source, Source]):
    queries = colours[1]
    sentences = prompts(queries.classes, ["{}"])
    assert dict(ZeroShot(queries, queries.labels, sentences).run(Merged())) == ALL_RIGHT
    assert dict(ZeroShot(queries, queries.labels, sentences, adaptor="clip").run(Merged())) == ALL_RIGHT


def test_zeroshot_needs_prompts_and_pictures(colours: tuple[Source, Source]):
    queries = colours[1]
    with pytest.raises(ValueError, match="every class needs a prompt"):
        ZeroShot(queries, queries.labels, [["a"], ["b"], []])
    with pytest.raises(ValueError, match="every class needs a prompt"):
        ZeroShot(queries, queries.labels, [["a"], ["b"]])
    with pytest.raises(ValueError, match="none of its pictures"):
        ZeroShot(queries, np.full(18, -1), [["a"]])


def test_articles():
    assert prompts(["orange cube", "red torus"], ["there is {}"]) == [
        ["there is an orange cube"],
        ["there is a red torus"],
    ]
    assert sentence("A {} beside a {}, {}: pizza {}", "Ice") == "An Ice beside an Ice, Ice: pizza Ice"
    assert sentence("a photo of a {}", "cone") == "a photo of a cone"
    assert sentence("a {}", r"{} \1") == r"a {} \1"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty built-in scenes of one object."""
    config = scenes.SceneConfig(count=60, size=48, objects=(1, 1))
    return scenes.write(tmp_path_factory.mktemp("scenes") / "single", config, workers=1)


def test_pairs_of_scenes_are_the_seen_ones(single: Path):
    train, test = (open_source(str(single), part) for part in ("train", "test"))
    labels, names = seen_pairs(train)
    assert len(names) == 64
    assert "red cube" in names or "red sphere" in names
    assert (labels >= 0).all(), "training pictures show seen pairs alone"
    for path, label in zip(train.paths, labels, strict=True):
        assert names[label].split(" ", 1)[1] == path.parent.name
    heldout = {f"{colour} {shape}" for colour, shape in scenes.HELDOUT_PAIRS}
    assert not heldout & set(names)
    annotations = json.loads((single / "test" / "instances.json").read_text())["annotations"]
    shapes = dict(enumerate(scenes.SHAPES, start=1))
    shown = [f"{a['attributes']['colour']} {shapes[a['category_id']]}" for a in annotations]
    assert (seen_pairs(test)[0] < 0).sum() == sum(name in heldout for name in shown)


def test_held_out_pairs_compete_and_are_judged_apart(tmp_path: Path):
    folder = scenes.write(tmp_path / "x", scenes.SceneConfig(count=200, size=32, objects=(1, 1)), workers=1)
    source = open_source(str(folder), "test")
    shown = pairs(source)
    assert (len(shown.names), shown.seen, len(set(shown.names))) == (80, 64, 80)
    assert [f"{colour} {shape}" for colour, shape in scenes.HELDOUT_PAIRS] == [*shown.names[64:]]
    evaluator = zeroshot(source)
    directions = torch.eye(80)

    class Knowing:
        """Says of each picture its pair, of the first unseen one another."""

        preprocess, text_space, asked = Preprocess(8), None, 0

        def encode_image(self, images: Tensor) -> Features:
            rows = directions[shown.labels[self.asked : self.asked + len(images)]].clone()
            self.asked += len(images)
            first = int(np.flatnonzero(shown.labels >= 64)[0])
            rows[first] = directions[0]
            return Features(rows[:, None], (1, 1), rows)

        def encode_text(self, texts: Sequence[str], adaptor: str | None = None) -> np.ndarray:
            return directions[[number for number in range(80) for _ in range(len(texts) // 80)]].numpy()

        def logit_scale(self, adaptor: str | None = None) -> float:
            return 100.0

    unseen = int((shown.labels >= 64).sum())
    assert 0 < unseen < len(source)
    assert dict(evaluator.run(Knowing())) == {
        **ALL_RIGHT,
        "zeroshot_top5": 1.0,
        "zeroshot_seen": 1.0,
        "zeroshot_unseen": (unseen - 1) / unseen,
    }
    assert len(evaluator.judge(Knowing()).truth) == len(source) - unseen
    assert "zeroshot_unseen" not in dict(zeroshot(source.select(np.flatnonzero(shown.labels < 64))).run(Half()))


class Half(MeanColour):
    """Words mean nothing to it."""

    def encode_text(self, texts: Sequence[str], adaptor: str | None = None) -> np.ndarray:
        return np.ones((len(texts), 3), np.float32)


def test_scenes_of_several_objects_have_no_pair(tmp_path: Path):
    folder = scenes.write(tmp_path / "multi", scenes.SceneConfig(count=5, size=32, objects=(2, 2)), workers=1)
    with pytest.raises(ValueError, match=r"shows 2 objects.*objects=1"):
        seen_pairs(open_source(str(folder), "test"))


def test_an_untrained_network_end_to_end(single: Path):
    torch.manual_seed(0)
    model = VisionModel(ViT(vit_config("vit_mini16", depth=1, width=48, hidden=96)), Preprocess(48), "tiny")
    knn = build_evaluator("knn", str(single))
    first, second = dict(knn.run(model)), dict(knn.run(model))
    assert first == second
    assert 0 <= first["knn"] <= 0.7
    assert 0 <= dict(knn.run(RawPixels(8)))["knn"] <= 1
    with pytest.raises(ValueError, match="knows no words"):
        dict(build_evaluator("zeroshot", str(single)).run(model))


@pytest.fixture
def student() -> VisionModel:
    return student_of("clip")


def student_of(*speaking: str) -> VisionModel:
    """A small untrained student of a DINO and of teachers that know words."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.learn(["a red cube", "a picture of a blue torus"], vocabulary=300, context=16)
    text = TextConfig(
        vocabulary=tokenizer.vocabulary, context=16, end=tokenizer.end, width=16, depth=1, heads=1, embedding=24
    )
    adaptors = {
        "dino": AdaptorConfig(patches=24, summary=24, hidden=32),
        **{name: AdaptorConfig(patches=20, summary=24, hidden=32, text=text) for name in speaking},
    }
    backbone = vit_config("vit_mini16", depth=1, width=48, hidden=96, summary_tokens=len(adaptors))
    model = Student(StudentConfig(backbone=backbone, adaptors=adaptors), dict.fromkeys(speaking, tokenizer))
    return VisionModel(model, Preprocess(48), "student")


def test_a_student_is_asked_in_the_space_of_the_teacher_that_knows_words(single: Path, student: VisionModel):
    """The scores are those of `VisionModel.classify`, which goes another way to the same answer."""
    evaluator = build_evaluator("zeroshot", str(single))
    assert isinstance(evaluator, ZeroShot)
    recognised = evaluator.judge(student)
    _, names = seen_pairs(evaluator.source)
    paths = [evaluator.source.paths[index] for index in recognised.index]
    ranked = student.classify(paths, [f"a {name}" for name in names], ["{}"])
    single_prompts = ZeroShot(evaluator.source, evaluator.labels, [[f"a {name}"] for name in names]).judge(student)
    assert [answers[0]["label"] for answers in ranked] == [f"a {names[best]}" for best in single_prompts.predicted]
    scores = dict(evaluator.run(student))
    assert list(scores) == ["zeroshot", "zeroshot_top5", "zeroshot_ece", "zeroshot_seen"], "none shows an unseen pair"
    assert scores["zeroshot_seen"] <= scores["zeroshot"], "the unseen pairs compete, too"
    assert scores["zeroshot"] == recognised.accuracy() <= scores["zeroshot_top5"] < 0.8
    with pytest.raises(ValueError, match="'dino'"):
        ZeroShot(evaluator.source, evaluator.labels, [["a"]] * 64, adaptor="dino").judge(student)


def test_evaluations_by_name(tmp_path: Path, colours: tuple[Source, Source]):
    paint(tmp_path / "set", {f"train/{n}/{i}.png": c for n, c in COLOURS.items() for i in range(10)})
    data = str(tmp_path / "set" / "train")
    evaluator = build_evaluator("knn", data)
    assert isinstance(evaluator, KNN)
    assert len(evaluator.queries) == 3, "without a test part, a tenth is judged"
    assert not set(evaluator.queries.paths) & set(evaluator.bank.paths)
    assert dict(build_evaluator("zeroshot", data).run(MeanColour())) == ALL_RIGHT
    with pytest.raises(ValueError, match=f"on=kmeans: .*{', '.join(EVALUATIONS)}"):
        build_evaluator("kmeans", data)
    with pytest.raises(ValueError, match="has no masks"):
        build_evaluator("segmentation", data)


def test_a_student_is_judged_in_the_space_that_is_named(single: Path, tmp_path: Path):
    data, model = str(single), student_of("clip", "siglip")
    with pytest.raises(ValueError, match="knows words in several spaces; choose adaptor= from clip, siglip"):
        evaluate(model, ["zeroshot"], data)
    scores = evaluate(model, ["knn", "zeroshot"], data, tmp_path / "scores.json", adaptor="siglip")
    assert scores == {
        **dict(KNN(*parts(data), spaces=[Space("siglip")], besides=NEIGHBOURS).run(model)),
        **dict(zeroshot(parts(data)[1], "siglip").run(model)),
    }
    neighbours = [f"knn{k}_siglip" for k in ("", "_10", "_20", "_100", "_200")]
    words = ["zeroshot", "zeroshot_top5", "zeroshot_ece", "zeroshot_seen"]
    assert list(scores) == [*neighbours, *words]
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written == {"model": "student", "data": data, "part": "test", "adaptor": "siglip", **scores}
    assert build_evaluator("segmentation", data, adaptor="clip").space == Space("clip")


def test_a_space_that_the_model_lacks_is_refused_before_any_picture_is_read(student: VisionModel):
    with pytest.raises(ValueError, match=r"adaptor=sam: no such adaptor; choose from dino, clip$"):
        evaluate(student, ["knn"], "nowhere", adaptor="sam")
    plain = VisionModel(ViT(vit_config("vit_mini16", depth=1, width=48, hidden=96)), Preprocess(48), "plain")
    with pytest.raises(ValueError, match=r"adaptor=clip: no such adaptor; plain has none$"):
        evaluate(plain, ["knn"], "nowhere", adaptor="clip")


def parts(data: str) -> tuple[Source, Source]:
    return open_source(data, "train"), open_source(data, "test")
