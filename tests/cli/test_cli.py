"""The command line as a user types it, mistakes included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from synoptic.apps import arguments, cli
from synoptic.apps.arguments import read, split, typed
from synoptic.config import OptimConfig, TrainConfig, keys


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, as the shell starts it."""
    return subprocess.run([sys.executable, "-m", "synoptic", *words], capture_output=True, text=True, timeout=120)


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]):
    """Types words that are a mistake; returns the one line on stderr."""

    def typed_wrong(*words: str) -> str:
        assert cli.main(words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("synoptic: ")
        assert err.count("\n") == 1
        return err.removeprefix("synoptic: ").rstrip()

    return typed_wrong


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner things.

    Attributes:
        deep, deeper: two that share a line.
    """

    deep: float = 0.5
    deeper: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Options:
    """Things that can be typed.

    Attributes:
        words: any number.
        mode: one of two.
        pair: two numbers; None leaves them out.
        flag: yes or no.
    """

    words: tuple[str, ...]
    mode: Literal["slow", "fast"] = "fast"
    pair: tuple[float, float] | None = None
    size: int | tuple[int, int] = 4
    flag: bool = False
    inner: Inner = field(default_factory=lambda: Inner(deep=0.25))


def test_a_verb_of_its_own_is_read_whole() -> None:
    words = split(["a.jpg", "mode=slow", "b=c/d.jpg", "pair=1e-3,2", "size=3,4", "flag=yes", "inner.deeper=1,2"])
    assert words.plain == ("a.jpg",)
    assert words.values["b"] == "c/d.jpg"
    del words.values["b"]  # type: ignore[attr-defined]
    options = read(Options, words, "here", "words")
    inner = Inner(deep=0.25, deeper=(1, 2))
    assert options == Options(words=("a.jpg",), mode="slow", pair=(1e-3, 2.0), size=(3, 4), flag=True, inner=inner)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("pair=none", None),
        ("pair=null", None),
        ("pair=None", None),
        ("pair=1,2", (1.0, 2.0)),
        ("size=7", 7),
        ("size=7,8", (7, 8)),
        ("words=a, b ,c", ("a", "b", "c")),
        ("words=none", ("none",)),
        ("words=", ()),
        ("words=a=b", ("a=b",)),
        ("flag=TRUE", True),
        ("flag=0", False),
        ("inner.deeper=3", (3,)),
        ("inner.deep=1E-3", 1e-3),
    ],
)
def test_texts_are_read_by_the_type_of_their_key(word: str, expected: object) -> None:
    options = read(Options, split([word] if word.startswith("words") else ["x", word]), "here", "words")
    assert value(options, word.partition("=")[0]) == expected


sixtyfourths = st.integers(1, 63).map(lambda count: count / 64)
texts = st.text().filter(lambda text: text.lower() not in ("none", "null"))
trainings = st.builds(
    TrainConfig,
    data=texts,
    out=texts,
    steps=st.none() | st.integers(1, 10**9),
    epochs=st.none() | sixtyfourths,
    precision=st.sampled_from(["auto", "fp32", "bf16"]),
    overwrite=st.booleans(),
    optim=st.builds(OptimConfig, lr=st.none() | sixtyfourths, betas=st.tuples(sixtyfourths, sixtyfourths)),
)


@given(trainings)
def test_what_is_shown_as_typed_can_be_typed(config: TrainConfig) -> None:
    words = [f"{name}={arguments.show(value(config, name))}" for name in keys(TrainConfig)]
    assert read(TrainConfig, split(words), "here") == config


def value(config: object, name: str) -> object:
    return reduce(getattr, name.split("."), config)


def test_of_a_key_given_twice_the_last_holds() -> None:
    assert read(Options, split(["x", "mode=slow", "mode=fast"]), "here", "words").mode == "fast"


@pytest.mark.parametrize("word", ["runs/lr=0.1", "./mode=slow.jpg", "-", "a b=c", "C:\\a=b", "ü=3"])
def test_what_has_no_key_is_a_plain_word(word: str) -> None:
    assert split([word]).plain == (word,)


def test_every_key_of_every_verb_and_method_is_explained() -> None:
    from synoptic.methods import METHOD_NAMES, get_method

    kinds = [verb.options for verb in cli.VERBS.values() if isinstance(verb, arguments.OptionsVerb)]
    kinds += [get_method(name).config for name in METHOD_NAMES]
    silent = [
        f"{kind.__name__}.{key.name}"
        for kind in kinds
        for key in keys(kind).values()
        if not arguments._description(key.owner, key.name.rpartition(".")[2])
    ]
    assert not silent


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert cli.main(words) == 0
        out = capsys.readouterr().out
        for verb in ("demo", "scenes", "train", "evaluate", "embed", "classify", "figures", "models", "report"):
            assert f"\n  {verb} " in out


def test_help_of_a_verb_lists_its_keys_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scenes", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("synoptic scenes out=... count=... [key=value ...]\n")
    assert "out=TEXT " in out
    assert "(required)" in out
    assert "size=INT " in out
    assert "(default 96)" in out
    assert "--" not in out


def test_help_of_a_method_lists_its_keys_defaults_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "dino", "--help"]) == 0
    out = capsys.readouterr().out
    for key in keys(TrainConfig):
        assert f"  {key}=" in out
    assert "optim.betas=NUMBER,NUMBER" in out
    assert "precision=auto|fp32|bf16" in out
    assert "teacher_temperature=NUMBER" in out
    assert "config=FILE.json" in out


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        ("dino", "size=224 epochs=100 optim.lr=0.000125 (with batch=64)"),
        ("clip", "size=224 epochs=32 optim.lr=0.0005 (with batch=64)"),
        ("radio", "size=224 epochs=100 optim.lr=0.001 (with batch=64)"),
    ],
)
def test_help_of_a_method_tells_what_a_key_is_when_it_is_not_given(
    method: str, rule: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    assert cli.main(["train", method, "--help"]) == 0
    out = capsys.readouterr().out
    lines = {line.split("=")[0].strip(): line.rstrip() for line in out.splitlines() if line.startswith("  ")}
    assert f"By the method's rule, where no key says otherwise: {rule}\n" in out
    assert "None" not in out
    assert out.count("default none") == (method == "radio")  # where none is the name of a choice
    assert "none, the default, takes" in lines["size"] and "(default" not in lines["size"]
    assert lines["steps"].endswith("(default the method's rule)") or "none, the default," in lines["steps"]
    assert lines["batch"].endswith("(default 64)")


def test_help_says_what_is_required(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    assert cli.main(["train", "radio", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("synoptic train radio data=DIR out=RUN teachers=NAME:MODEL,... [key=value ...]\n")
    (teachers,) = (line for line in out.splitlines() if line.startswith("  teachers="))
    assert teachers.rstrip().endswith("(required)")


def test_a_method_may_say_what_a_nested_key_of_its_own_does(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Special(Options):
        """Special things.

        Attributes:
            inner.deep: deeper here.
        """

    arguments.print_help(Console(width=200), arguments.key_table(Special))
    out = capsys.readouterr().out
    assert "deeper here (default 0.25)" in out
    assert "two that share a line (default nothing)" in out


def test_help_of_evaluate_lists_the_evaluations(capsys: pytest.CaptureFixture[str]) -> None:
    from synoptic.evaluation.protocols import EVALUATIONS

    assert cli.main(["evaluate", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in EVALUATIONS) and "\N{HORIZONTAL ELLIPSIS}" not in out


def test_help_of_train_lists_the_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for method in ("dino", "clip", "radio"):
        assert f"\n  {method} " in out


def test_help_survives_a_narrow_pipe_and_brackets_in_texts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert cli.main(["scenes", "--help"]) == 0
    assert "[key=value ...]" in capsys.readouterr().out.replace("\n", " ")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    import synoptic

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"synoptic {synoptic.__version__}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("scenez", "unknown verb 'scenez' (did you mean scenes?)"),
        ("detekt", "unknown verb 'detekt'"),
        ("scenes count=3", "scenes: out= is missing"),
        ("scenes out=x count=3 sed=1", "scenes: unknown key sed (did you mean seed?)"),
        ("scenes out=x count=many", "scenes: count=many should be a valid integer"),
        ("scenes out=x count=1", "scenes: count=1 is out of range; give 2 or more"),
        ("scenes out=x count=4 objects=a..b", "scenes: objects='a..b' is no number of objects"),
        ("scenes out=x count=4 objects=4..2", "scenes: objects=(4, 2) is out of range"),
        ("scenes somewhere count=4", "scenes: 'somewhere' is not of the form key=value"),
        ("scenes --count=4", "--count=4: keys are typed without dashes, as in count=VALUE"),
        ("demo preset=quik", "demo: preset=quik should be 'full' or 'quick'"),
        ("models nothing_like_it", "no model matches 'nothing_like_it'"),
        ("models a b", "models: 'b' is not of the form key=value"),
        ("report", "report: runs= is missing"),
        ("embed a.jpg images=b.jpg model=m out=o", "embed: images is given twice"),
        ("embed a.jpg model=m out=o tokens=words", "embed: tokens=words should be 'summary' or 'patches'"),
        ("classify no/such/folder model=vit_mini16 labels=a,b", "no/such/folder does not exist"),
        ("evaluate model=vit_mini16 on=knn", "evaluate: data= is missing"),
        ("evaluate vit_mini16 data=a on=knn,kn", "evaluate: on=kn should be 'knn', 'linear', 'logistic', "),
        ("train", "train: give one method, one of dino, dinov2, clip, radio (got none)"),
        ("train dino clip data=a out=b", "train: give one method, one of dino, dinov2, clip, radio (got dino clip)"),
        ("train dinoo data=a out=b", "unknown method 'dinoo'"),
        ("train dino out=b", "train dino: data= is missing"),
        ("train dino data=a out=b lr=3", "train dino: unknown key lr (did you mean optim.lr?)"),
        ("train dino data=a out=b optim.lr=fast", "train dino: optim.lr=fast should be a valid number"),
        ("train dino data=a out=b optim=3", "train dino: optim=3 should be"),
        ("train dino data=a out=b preset=nonesuch", "train dino: unknown preset 'nonesuch'"),
        ("train dino data=a out=b config=no/such.json", "no/such.json: cannot be read"),
        ("train dino data=a out=", "out=: is empty; give a folder for the run"),
        ("train dino data=a out=b crops.global_scale=2,1", "train dino: crops.global_scale=2 should be less than or "),
        ("train dino data=a out=b threads=100000", "train dino: threads=100000 should be less than or equal to 1024"),
        (
            "train dino data=a out=b seed=9223372036854775808",
            "train dino: seed=9223372036854775808 should be",
        ),
        ("train dino data=a out=b --dryrun", "--dryrun: did you mean --dry-run?"),
        ("train dino data=a out=b --steps=3", "--steps=3: keys are typed without dashes, as in steps=VALUE"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(mistake, words: str, line: str) -> None:
    assert mistake(*words.split()).startswith(line)


def test_keys_typed_win_over_the_file(tmp_path: Path) -> None:
    from synoptic.apps.training import configure

    file = tmp_path / "config.json"
    file.write_text(json.dumps({"data": "from file", "batch": 7, "optim": {"lr": 0.25, "warmup": 0.5}}))
    name, config = configure(split(["dino", f"config={file}", "out=b", "batch=9", "optim.warmup=0"]))
    assert name == "dino"
    assert (config.data, config.out, config.batch) == ("from file", "b", 9)
    assert (config.optim.lr, config.optim.warmup) == (0.25, 0.0)


def test_a_preset_stands_between_the_file_and_the_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from synoptic.apps import training
    from synoptic.methods import get_method

    recipe = {"batch": 5, "optim.lr": 0.5, "optim.betas": (0.5, 0.6)}
    monkeypatch.setattr(training, "_method", lambda name: replace(get_method(name), presets={"small": recipe}))
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"data": "a", "out": "b", "batch": 7, "optim": {"lr": 0.25, "warmup": 0.5}}))
    _, config = training.configure(split(["dino", "optim.lr=0.75", "preset=small", f"config={file}"]))
    assert (config.batch, config.optim.lr, config.optim.betas, config.optim.warmup) == (5, 0.75, (0.5, 0.6), 0.5)
    shown = [str(part) for part in training.Train().help(split(["dino"]))]
    assert any("Presets" in part for part in shown)


def test_a_file_with_an_unknown_key_is_refused(tmp_path: Path, mistake) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"data": "a", "out": "b", "bach": 3}')
    assert "unknown key bach (did you mean batch?)" in mistake("train", "dino", f"config={file}")


def test_models_are_lines_for_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "mini"]) == 0
    header, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert header == ["name", "task", "parameters", "resolution", "licence", "commercial", "local"]
    assert [row[0] for row in rows] == ["vit_mini8", "vit_mini16"]
    assert all(1_000_000 <= int(row[2]) <= 3_000_000 for row in rows)


def test_scenes_are_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["scenes", f"out={tmp_path / 'pictures'}", "count=4", "size=32", "objects=1"]
    assert cli.main(words) == 0
    assert "4 pictures in" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pictures").rglob("*")}
    assert cli.main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "pictures").rglob("*")} == before


def test_a_fault_of_ours_shows_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(cli, "_run", broken)
    assert cli.main(["models"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "RuntimeError: ours" in err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you ...")])
def test_what_no_memory_holds_is_a_mistake(monkeypatch: pytest.MonkeyPatch, mistake, error: Exception) -> None:
    def too_large(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_run", too_large)
    assert mistake("models").startswith("out of memory: ")


@pytest.mark.parametrize(("message", "line"), [("", "interrupted"), ("go on with x", "go on with x")])
def test_an_interruption_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], message: str, line: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt(message)

    monkeypatch.setattr(cli, "_run", interrupted)
    assert cli.main(["models"]) == 130
    assert capsys.readouterr().err == f"synoptic: {line}\n"


def test_a_message_of_many_lines_becomes_one(monkeypatch: pytest.MonkeyPatch, mistake) -> None:
    def wrong(*_: object) -> None:
        raise ValueError("first\n  second")

    monkeypatch.setattr(cli, "_run", wrong)
    assert mistake("models") == "first second"


def test_the_process_ends_with_the_exit_code() -> None:
    done, wrong = run("--version"), run("scenez")
    assert (done.returncode, wrong.returncode) == (0, 2)
    assert wrong.stdout == ""


@pytest.mark.parametrize("words", [["--help"], ["models"]])
def test_a_reader_that_goes_away_gets_no_traceback(words: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = subprocess.run(
        [sys.executable, "-m", "synoptic", *words], stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(write_end)
    assert (process.returncode, process.stderr) == (1, "")


def test_typed_refuses_unknown_keys_before_reading_values() -> None:
    with pytest.raises(ValueError, match=r"here: unknown key inner\.x"):
        typed(Options, {"inner.x": "3"}, "here")
