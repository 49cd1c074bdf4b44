"""The demo as a newcomer types it: interrupted it goes on, it ends with a report, and it knows that it is done."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from synoptic.apps import cli, demo_journal
from synoptic.apps.demo_journal import Journal, open_demo
from synoptic.apps.demo_recipe import FULL, QUICK, RECIPES
from synoptic.apps.demo_steps import SUBJECTS, Demo
from synoptic.apps.report_parts import percent

PATIENCE = 500.0  # seconds for a part of the demo on a machine that has other things to do


@dataclass(frozen=True)
class Made:
    """A demo that was interrupted once and then finished.

    Attributes:
        out: its folder.
        interrupted: exit code and words of the first sitting.
        finished: of the second.
    """

    out: Path
    interrupted: tuple[int, str]
    finished: tuple[int, str]


def start(out: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "synoptic", "demo", f"out={out}", "preset=quick"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    out = tmp_path_factory.mktemp("demo") / "quick"
    process = start(out)
    metrics = out / "teachers" / "clip" / "metrics.jsonl"
    end = time.monotonic() + PATIENCE
    while not (metrics.is_file() and metrics.read_text()) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE)
    interrupted = process.returncode, said
    process = start(out)
    said, _ = process.communicate(timeout=PATIENCE)
    return Made(out, interrupted, (process.returncode, said))


def test_interrupted_it_saves_and_says_how_to_go_on(made: Made) -> None:
    code, said = made.interrupted
    assert code == 130, said
    assert said.rstrip().endswith("the same command goes on from there")
    assert "Traceback" not in said
    log = (made.out / "teachers" / "clip" / "train.log").read_text()
    assert "stopped and saved" in log and "going on after step" in log


def test_going_on_draws_nothing_anew(made: Made) -> None:
    code, said = made.finished
    assert code == 0, said
    assert "1/5" in made.interrupted[1] and "1/5" not in said
    assert all(part in said for part in ("2/5", "3/5", "4/5", "5/5")), said
    assert "Matplotlib" not in said  # whose first use has things to say of its own
    assert str(made.out / "report.html") in said.splitlines()[-1]


def test_what_is_slow_to_judge_is_shared_out(tmp_path: Path) -> None:
    jobs = Demo(tmp_path, QUICK, 0).judging_jobs(SUBJECTS, 2, 1)
    assert [job.words[3:] for job in jobs] == [("student", "raw_pixels", "dino"), ("untrained", "chance", "clip")]


def test_it_leaves_what_it_promises(made: Made) -> None:
    for place in ("data", "teachers/clip", "teachers/dino", "student"):
        assert (made.out / place).is_dir()
    results = json.loads((made.out / "results.json").read_text())
    assert set(results) == {"seconds", "chance", "raw_pixels", "untrained", "teachers", "student"}
    judged = {
        **results["teachers"],
        **{name: results[name] for name in ("chance", "raw_pixels", "untrained", "student")},
    }
    for name, scores in judged.items():
        words = {"zeroshot"} if name in ("clip", "student", "untrained", "chance") else set()
        assert set(scores) == {"knn", "segmentation_miou"} | words, name
        assert all(0 <= score <= 1 for score in scores.values())
    assert results["chance"]["knn"] == pytest.approx(1 / 10)
    assert results["chance"]["zeroshot"] == pytest.approx(1 / 64)
    seconds = json.loads((made.out / "demo.json").read_text())["seconds"]
    assert list(seconds) == ["pictures", "teachers", "student", "judgement", "report"]
    assert results["seconds"] == pytest.approx(sum(seconds.values()), abs=0.1)


def test_the_scores_are_those_that_evaluate_finds(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads((made.out / "results.json").read_text())
    found: dict[str, float] = {}
    for command in open_demo(made.out).judging("student"):
        assert cli.main([*command, f"out={made.out}/again.json"]) == 0
        found |= json.loads((made.out / "again.json").read_text())
    (made.out / "again.json").unlink()
    capsys.readouterr()
    for name, score in results["student"].items():
        assert found[name] == pytest.approx(score, abs=1e-9), name


ANSWERS = """
import json, sys, synoptic
model = synoptic.load(sys.argv[1])
spaces = {str(adaptor): model.embed(sys.argv[2], adaptor) for adaptor in (None, *model.adaptors)}
words = model.encode_text(["a red cube", "a blue torus"])
labels = model.classify(sys.argv[2], ["red cube", "blue torus"])
print(json.dumps([{name: vectors.tolist() for name, vectors in spaces.items()}, words.tolist(), labels]))
"""


def answers(made: Made) -> str:
    """All that the student says of the test pictures, every digit of it, in a process that knows nothing else."""
    words = [str(made.out / "student"), str(made.out / "data" / "single" / "test" / "images")]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # the order of sums is the same each time
    ended = subprocess.run(
        [sys.executable, "-c", ANSWERS, *words], capture_output=True, text=True, timeout=PATIENCE, env=one_thread
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_without_its_teachers_the_student_says_the_same(made: Made) -> None:
    before = answers(made)
    assert list(json.loads(before)[0]) == ["None", "clip", "dino"]
    away = (made.out / "teachers").rename(made.out.parent / "away")
    try:
        assert answers(made) == before
    finally:
        away.rename(made.out / "teachers")


def test_the_python_of_the_readme_runs(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this student, with pictures of ours where it names some."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    assert any("synoptic.load(" in block for block in blocks)
    monkeypatch.chdir(tmp_path)
    picture = next((made.out / "data" / "single" / "test" / "images").rglob("*.jpg"))
    for block in blocks:
        texts = {node.value for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Constant)}
        for text in filter(lambda value: isinstance(value, str), texts):
            place = tmp_path / f"{text}picture.jpg" if text.endswith("/") else tmp_path / text
            if place.suffix == ".jpg":
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(picture, place)
        exec(re.sub(r'"[^"]*/student"', repr(str(made.out / "student")), block), {})


def test_the_report_tells_the_scores_and_the_commands(made: Made) -> None:
    page = (made.out / "report.html").read_text()
    results = json.loads((made.out / "results.json").read_text())
    for scores in (*results["teachers"].values(), results["student"], results["untrained"], results["raw_pixels"]):
        assert all(percent(score) in page for score in scores.values())
    for told in (
        "train clip",
        "train radio",
        "teachers=clip:",
        "student as CLIP",
        "kept of the CLIP teacher",
        "quick preset",
        "hexagonal prism",
    ):
        assert told in page
    assert (made.out / "figures" / "patch_pca.png").is_file()
    assert len(page) < 3e6


def test_it_knows_that_it_is_done(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.out.rglob("*") if path.is_file() and path.name != ".lock"}
    assert cli.main(["demo", f"out={made.out}", "preset=quick"]) == 0
    assert f"done; its report: {made.out / 'report.html'}" in capsys.readouterr().err.replace("\n", "")
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_users_home_is_found(
    made: Made, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(made.out.parent))
    assert cli.main(["demo", f"out=~/{made.out.name}", "preset=quick"]) == 0
    assert str(made.out) in capsys.readouterr().err.replace("\n", "")


def test_what_is_lost_is_made_again(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    page = (made.out / "report.html").read_bytes()
    (made.out / "report.html").unlink()
    (made.out / "scores" / "chance.json").unlink()
    assert cli.main(["demo", f"out={made.out}", "preset=quick"]) == 0
    said = capsys.readouterr().err
    assert "4/5" in said and "3/5" not in said
    assert abs(len((made.out / "report.html").read_bytes()) - len(page)) < 2000


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("preset", "full", "holds a demo of preset=quick, and not of preset=full"),
        ("preset", "fast", "preset=fast should be"),
        ("out", "a,b", "has a comma"),
    ],
)
def test_mistakes_are_told(made: Made, key: str, value: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"out": str(made.out), "preset": "quick"} | {key: value}
    assert cli.main(["demo", *(f"{name}={word}" for name, word in words.items())]) == 2
    assert told in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files that are no demo"):
        Journal(Demo(tmp_path, QUICK, 0), "quick")
    with pytest.raises(ValueError, match="is a file"):
        Journal(Demo(tmp_path / "thesis.txt", QUICK, 0), "quick")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_seed_or_recipe_is_another_demo(tmp_path: Path) -> None:
    Journal(Demo(tmp_path, QUICK, 0), "quick")
    with pytest.raises(ValueError, match="holds a demo of seed=0, and not of seed=1"):
        Journal(Demo(tmp_path, QUICK, 1), "quick")
    with pytest.raises(ValueError, match="another version of its recipe"):
        Journal(Demo(tmp_path, replace(QUICK, single=QUICK.single + 10), 0), "quick")
    assert open_demo(tmp_path) == Demo(tmp_path, QUICK, 0)


def test_time_counts_over_all_sittings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(demo_journal.time, "monotonic", lambda: now[0])
    journal = Journal(Demo(tmp_path, QUICK, 0), "quick")
    with pytest.raises(KeyboardInterrupt), journal.part("teachers"):
        now[0] += 30
        raise KeyboardInterrupt
    now[0] = 5.0  # another day
    journal = Journal(Demo(tmp_path, QUICK, 0), "quick")
    with journal.part("teachers"):
        now[0] += 12
    with journal.part("student"):
        now[0] += 7
        journal.tick()
        killed = Journal(Demo(tmp_path, QUICK, 0), "quick")  # as one finds it that was killed here
        assert killed.seconds == {"teachers": 42.0, "student": 7.0}


def test_only_pictures_that_are_being_drawn_are_counted(tmp_path: Path) -> None:
    def lay(folder: str, count: int) -> Path:
        (tmp_path / "data" / folder / "train").mkdir(parents=True)
        for number in range(count):
            (tmp_path / "data" / folder / "train" / f"{number}.jpg").touch()
        return tmp_path / "data" / folder

    lay(".single.1.partial", 5)  # of a process that was killed
    single, multi = Demo(tmp_path, QUICK, 0).drawing_jobs()
    assert single.look().done == 0
    drawn = lay(".single.2.partial", 3)
    assert (single.look().done, single.look().total, multi.look().done) == (3, QUICK.single, 0)
    drawn.rename(drawn.with_name("single"))
    lay(".multi.2.partial", 1)
    assert (single.look().done, multi.look().done) == (3, 1)


@pytest.mark.parametrize("preset", RECIPES)
def test_every_training_of_a_recipe_is_understood(preset: str, tmp_path: Path) -> None:
    """Keys that a method does not know would else show after minutes."""
    from synoptic.apps.arguments import split
    from synoptic.apps.training import configure

    for name in ("clip", "dino", "student"):
        verb, *words = Demo(tmp_path, RECIPES[preset], 3).training(name)
        method, config = configure(split(words))
        assert verb == "train" and method == {"student": "radio"}.get(name, name)
        assert config.seed == 3 and config.steps and "time" not in vars(config)


def test_the_full_demo_is_what_make_demo_runs() -> None:
    assert RECIPES["full"] is FULL
    makefile = Path(__file__).parents[2] / "Makefile"
    assert "synoptic demo out=runs/demo\n" in makefile.read_text()
