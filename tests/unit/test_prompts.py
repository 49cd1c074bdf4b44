"""Classes in words: published templates as they are, files of classes, and what makes no choice."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from synoptic.data.prompts import IMAGENET, SETS, SIMPLE, class_prompts, read_templates


def test_the_published_sets_are_whole():
    """The digest is that of the sentences in the order of CLIP's notebook, one a line."""
    assert (len(SIMPLE), len(set(SIMPLE)), len(IMAGENET), len(set(IMAGENET))) == (7, 7, 80, 80)
    assert set(SIMPLE) < set(IMAGENET)
    assert (IMAGENET[0], IMAGENET[39], IMAGENET[-1]) == (
        "a bad photo of a {}.",
        "a photo of a {}.",
        "a tattoo of the {}.",
    )
    assert hashlib.sha256("\n".join(IMAGENET).encode()).hexdigest()[:16] == "4f976686fb651bb5"
    assert read_templates("7") == tuple(SETS["7"]) == SIMPLE
    assert read_templates("80") == IMAGENET


def test_published_sentences_stay_as_they_are_and_others_get_their_article():
    assert "a photo of a orange." in class_prompts(["orange", "pear"], "80")["orange"]
    assert class_prompts(["orange", "pear"], ["a photo of a {}"]) == {
        "orange": ["a photo of an orange"],
        "pear": ["a photo of a pear"],
    }


def test_a_class_file_has_prompts_of_its_own_or_takes_the_templates(tmp_path: Path):
    file = tmp_path / "classes.csv"
    file.write_text('\ufeffcat,a photo of a cat,"a cat, asleep"\ndog\n"owl, snowy", a white owl\n\n', encoding="utf-8")
    assert class_prompts(file, ["the {}"]) == {
        "cat": ["a photo of a cat", "a cat, asleep"],
        "dog": ["the dog"],
        "owl, snowy": ["a white owl"],
    }
    assert class_prompts(str(file), ["the {}"]) == class_prompts(file, ["the {}"])
    assert class_prompts({"cat": ["kitten"], "dog": []}, ["the {}"]) == {"cat": ["kitten"], "dog": ["the dog"]}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", 3], "labels: 3 is no text; give classes in words"),
        ({"cat": ["a cat"], "dog": "puppy"}, r"labels: the prompts of 'dog' should be a list of texts, such as \["),
        ({"cat": ["a cat"], "dog": [None]}, "labels: the prompts of 'dog' should be a list of texts"),
    ],
)
def test_labels_and_prompts_are_texts(labels: Any, message: str):
    with pytest.raises(ValueError, match=message):
        class_prompts(labels)


def test_templates_come_from_a_file_too(tmp_path: Path):
    file = tmp_path / "templates.txt"
    file.write_text("a {} here\n\n  the {}\n")
    assert read_templates(file) == ("a {} here", "the {}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there are none"),
        (b"\n\n", "there are none"),
        (b"cat\n", "'cat' alone leaves nothing to choose"),
        (b"cat\ndog\ncat,a kitten\n", "'cat' is there 2 times, and a picture could be either"),
        (b"cat\n\ndog\n", "line 2 names no class"),
        (b"cat\n,a dog\n", "line 2 names no class"),
        (b"cat\ndog,,a dog\n", "class 2 has an empty prompt"),
        (b'cat\n"dog\n', "line 2 is not of the form name,prompt"),
        (b"\xff\xfe\x00", "is no text in UTF-8"),
        (b"cat\0\ndog", "is no text in UTF-8"),
    ],
)
def test_a_class_file_that_makes_no_choice_is_refused(tmp_path: Path, content: bytes, message: str):
    file = tmp_path / "classes.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        class_prompts(file)


def test_files_that_are_not_there_or_no_words_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"labels=.*nowhere.csv: is no file; .*a line a class"):
        class_prompts(tmp_path / "nowhere.csv")
    large = tmp_path / "large.csv"
    with large.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ValueError, match="has more than 64 MB"):
        class_prompts(large)
    (tmp_path / "templates.txt").write_text("a {}\na photo\n")
    with pytest.raises(ValueError, match=r"'a photo' has no \{\}"):
        class_prompts(["cat", "dog"], tmp_path / "templates.txt")
