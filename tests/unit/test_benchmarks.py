"""Benchmarks judge their claims, and say so by their exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = (
    "attention_memory",
    "clip",
    "clip_memory",
    "deform_attn",
    "distillation",
    "grounding_dino",
    "imagenette_floors",
    "input_pipeline",
    "load",
    "loop_overhead",
    "scenes",
    "search",
    "ssl_step",
    "thousand_names",
    "vit_forward",
)
TRAININGS = (
    *("balance", "clip_training", "distilled_photographs", "further_teacher", "mode_switching", "pilot", "positions"),
    *("ssl_ablation", "ssl_collapse", "ssl_continuing", "ssl_photographs"),
)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a benchmark by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module


def test_a_claim_that_does_not_hold_is_one_line_and_exit_code_1(script, tmp_path: Path, monkeypatch, capsys) -> None:
    common = script("common")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    common.finish("good", {"speed": 2}, "fast", [])
    with pytest.raises(SystemExit) as ended:
        common.finish("bad", {"speed": 0}, "fast", ["slow", "wrong"])
    assert ended.value.code == "bad: fast: does not hold: slow; wrong"  # which Python prints, ending with 1
    records = {path.stem.partition("-")[0]: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert {name: (record["holds"], record["speed"]) for name, record in records.items()} == {
        "good": (True, 2),
        "bad": (False, 0),
    }
    common.finish("unkept", {}, "fast", [], keep=False)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_loop_is_judged_by_the_larger_of_median_and_mean(script) -> None:
    loop = script("loop_overhead")
    # Every tenth step logs, at the cost that a median never sees.
    pairs = [((50.0 if step % 10 == 0 else 11.0, 0.0), (10.0, 0.0)) for step in range(100)]
    times = loop.summary(pairs, 0)
    assert (times["extra_ms"], times["extra_ms_mean"]) == (1.0, pytest.approx(4.9))
    assert loop.failures(times) == ["4.90 ms"]
    assert not loop.failures({"extra_ms": 3.0, "extra_ms_mean": 2.0})
    assert loop.failures({"extra_ms": 3.1, "extra_ms_mean": 2.0})


def test_scenes_are_drawn_at_the_claimed_rate(script) -> None:
    scenes = script("scenes")
    assert not scenes.failures(100.0)
    assert scenes.failures(99.4) == ["99 pictures a second"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, []),
        ({"speed_of_theirs": 0.97, "largest_difference": 1e-4}, []),
        ({"speed_of_theirs": 0.969}, ["0.969 of the speed (float32, 1 threads)"]),
        ({"largest_difference": 2e-4}, ["outputs differ by 2.0e-04 of the largest value (float32, 1 threads)"]),
        ({"largest_difference": float("nan")}, ["outputs differ by nan of the largest value (float32, 1 threads)"]),
        ({"largest_difference": 1e-2, "dtype": "bfloat16"}, []),
    ],
)
def test_the_vit_is_as_fast_and_says_the_same(script, changed: dict[str, Any], told: list[str]) -> None:
    row = {"dtype": "float32", "threads": 1, "largest_difference": 0.0, "speed_of_theirs": 1.0, **changed}
    assert script("vit_forward").failures([row]) == told


def test_the_pipeline_is_faster_and_does_the_same(script) -> None:
    failures = script("input_pipeline").failures
    blur = {"operation": "gaussian_blur", "size": 96, "error_255": 2.0}
    assert not failures({"small": {"ratio": 1.01, "operations": [blur]}})
    assert failures({"small": {"ratio": 1.0, "operations": [blur]}}) == ["1.0 times as fast (small)"]
    off = failures({"small": {"ratio": 2.0, "operations": [blur | {"error_255": 2.1}]}})
    assert off == ["gaussian_blur at 96 px is 2.1/255 off"]


def test_the_pipelines_crops_are_settled(script) -> None:
    pipeline = script("input_pipeline")
    for longest, _, config in pipeline.SETTINGS.values():
        images, _ = pipeline.pictures(longest, 2)
        batch = pipeline.padded(images)
        plans = pipeline.plan_crops(config, batch.sizes, batch.position, seed=0)
        assert [plan.size for plan in plans] == [config.global_size, config.local_size]


def test_every_script_is_run_by_one_of_the_two_commands() -> None:
    there = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"common"}
    assert there == {*SCRIPTS, *TRAININGS}


def test_a_step_is_to_be_faster_and_smaller_than_the_plain_way(script) -> None:
    failures = script("ssl_step").failures
    assert not failures({"ways": {"plain": {"time_ratio": 1.2, "memory_ratio": 1.15}}})
    assert failures({"ways": {"plain": {"time_ratio": 1.0, "memory_ratio": 1.15}}}) == ["time_ratio 1.0, not 1.1"]


def test_memory_is_to_grow_with_the_tokens_and_not_with_their_square(script) -> None:
    failures = script("attention_memory").failures
    first = {"fused_kb_per_token": 300, "ratio": 1.5}
    assert not failures([first, {"fused_kb_per_token": 310, "ratio": 7.0}])
    assert failures([first, {"fused_kb_per_token": 400, "ratio": 7.0}]) == ["300 kB a token became 400"]
    assert len(failures([first, {"fused_kb_per_token": 310, "ratio": 1.4}])) == 1


def test_each_way_to_collapse_is_to_be_named_and_a_sound_run_left_alone(script) -> None:
    failures = script("ssl_collapse").failures
    told = {"both": [], "centring alone": ["uniform output"], "sharpening alone": ["one prototype wins"]}
    assert not failures({**told, "neither": ["constant output"]})
    assert failures({**told, "neither": []}) == ["neither: nothing told"]
    assert len(failures({**told, "both": ["diverged"], "neither": ["constant output"]})) == 1


def test_photographs_are_to_teach_more_than_hand_made_features_know_in_time(script) -> None:
    failures = script("ssl_photographs").failures
    good = {"test": 0.56, "minutes": 22.0}
    floors = {"hand_made": 0.485, "untrained": 0.315}
    assert not failures({**floors, "dino": good, "dinov2": good})
    low, late = good | {"test": 0.48}, good | {"minutes": 31.0}
    assert failures({**floors, "dino": low, "dinov2": late}) == ["dino: 0.48", "dinov2: 31.0 minutes"]


def test_a_search_is_to_be_right_and_its_inverted_file_to_find_most_in_a_fraction_of_the_time(script) -> None:
    failures = script("search").failures
    times = {"exact": 2.0, "inverted": 0.02}
    good = {"exact_largest_difference": 1e-7, "recall_at_10": 0.97, "warm_seconds": times}
    uniform = good | {"table": "uniform", "recall_at_10": 0.5}
    assert not failures([good | {"table": "clustered"}, uniform])
    slow = good | {"table": "clustered", "recall_at_10": 0.89, "warm_seconds": times | {"inverted": 0.5}}
    assert failures([slow, uniform]) == ["0.89 of the ten nearest", "4.0 times as fast"]
    wrong = uniform | {"exact_largest_difference": 0.1}
    assert failures([good | {"table": "clustered"}, wrong]) == ["uniform: exact scores differ by 1.0e-01"]


def test_clip_is_to_be_equal_and_as_fast_and_its_texts_faster(script) -> None:
    failures = script("clip").failures
    good = {"what": "image", "model": "vit_b32", "dtype": "float32", "batch": 1}
    good |= {"speed_of_theirs": 0.98, "largest_difference": 1e-6}
    text = good | {"what": "text, rows of 77", "speed_of_theirs": 3.2}
    half = good | {"dtype": "bfloat16", "largest_difference": 0.01}
    assert not failures([good, text, half], [{"read_s": 0.5}])
    assert failures([text | {"speed_of_theirs": 2.9}], []) == [
        "2.9 of the speed (text, rows of 77, vit_b32, float32, batch 1)"
    ]
    assert len(failures([half | {"what": "text, rows of 77", "speed_of_theirs": 2.2}], [])) == 1
    assert len(failures([text | {"what": "text, rows of the longest", "speed_of_theirs": 0.99}], [])) == 1
    assert len(failures([good | {"largest_difference": 1e-3}, good | {"largest_difference": float("nan")}], [])) == 2
    assert failures([], [{"read_s": 1.2}]) == ["a head read in 1.2 s"]


def test_cached_gradients_are_to_be_equal_in_little_memory(script) -> None:
    failures = script("clip_memory").failures
    good = {"4,096 at once": 5000, "4,096 in 64 parts": 1000, "4096": 400, "8192": 810, "16384": 1600}
    assert not failures(good, 1e-6)
    assert failures(good | {"4,096 in 64 parts": 2000}, 1e-6) == ["the step in parts takes 1/2.5 of the memory"]
    assert failures(good, 1e-3) == ["gradients differ by 1.0e-03"]
    assert len(failures(good | {"16384": 6400}, 1e-6)) == 1


def test_clip_is_to_tell_unseen_pairs_apart_and_to_find_captions(script) -> None:
    failures = script("clip_training").failures
    pairs = {"zeroshot_seen": 0.85, "zeroshot_unseen": 0.2}
    ways = ("image_to_text_r10", "text_to_image_r10")
    found = {f"{way}{end}": value for way in ways for end, value in (("", 0.25), ("_chance", 0.1), ("_low", 0.15))}
    assert not failures({"scenes": [pairs], "photographs": [found]})
    worse = found | {"image_to_text_r10": 0.19}
    assert failures({"scenes": [pairs | {"zeroshot_unseen": 0.1}], "photographs": [worse]}) == [
        "scenes 0: 0.85 seen, 0.1 unseen",
        "photographs: image_to_text_r10 0.1900, guessing 0.1",
    ]
    assert not failures({"scenes": [], "photographs": [worse, found | {"image_to_text_r10": 0.22}]})  # their mean
    assert failures({"scenes": [], "photographs": [found, found | {"text_to_image_r10_low": 0.1}]}) == [
        "photographs 1: text_to_image_r10 might be 0.1, guessing 0.1"
    ]


def test_changes_are_told_against_the_base_of_the_same_seed(script) -> None:
    ablation = script("ssl_ablation")
    found = {(name, seed): {"knn_64": 0.4 + 0.1 * seed} for name in ablation.VARIANTS for seed in (0, 1)}
    found["without KoLeo", 0], found["without KoLeo", 1] = {"knn_64": 0.3}, {"knn_64": 0.5}
    table = ablation.summary(found, seeds=2)
    assert table["without KoLeo"]["knn_64"] == {
        "seeds": [0.3, 0.5],
        "mean": 0.4,
        "change": -0.05,
        "deviation": pytest.approx(0.0707, abs=1e-4),
    }


def test_make_bench_goes_on_after_a_failure_and_fails_at_the_end(tmp_path: Path) -> None:
    if not shutil.which("make"):
        pytest.skip("there is no make")
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\ncase "$1" in *loop_overhead.py) exit 1;; esac\n')
    python.chmod(0o755)
    (tmp_path / ".installed").touch()
    ended = subprocess.run(["make", "bench", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode != 0
    assert [line for line in ended.stdout.splitlines() if line.startswith("== ")] == [
        f"== benchmarks/{name}.py" for name in SCRIPTS
    ]
    assert "failed: benchmarks/loop_overhead.py\n" in ended.stderr


def test_ways_of_deformable_attention_are_to_agree_and_to_be_faster(script) -> None:
    failures = script("deform_attn").failures
    rows = {
        "encoder, float32, forward, gather": {"difference": 1e-6, "ratio": 3.0},
        "encoder, float32, forward, compiled": {"difference": 1e-6, "ratio": 4.0},
        "encoder, bfloat16, forward, gather": {"difference": 5e-3, "ratio": 3.0},
    }
    assert not failures(rows, "cpu")
    slow = {**rows, "encoder, float32, forward, compiled": {"difference": 1e-4, "ratio": 2.0}}
    assert failures(slow, "cpu") == [
        "encoder, float32, forward, compiled: differs by 1.0e-04",
        "encoder, float32, forward, compiled: slower than gather",
    ]
    assert len(failures(slow, "cuda")) == 1


def test_a_detector_is_to_be_exact_fast_and_near_the_machine_s_rate(script) -> None:
    failures = script("grounding_dino").failures
    rows = {
        "480x640, one prompt": {"ratio": 2.1},
        "480x640, compiled": {"ratio": 2.6},
        "480x640, bf16": {"ratio": 1.6},
        "480x640, words": {"ratio": 50.0},
        "480x640, limit": {"share": 0.7, "seconds": 1.0},
    }
    assert not failures({"difference": {"480x640": 1e-6}, "rows": rows}, "cpu")
    slow = {name: {key: value / 3 for key, value in row.items()} for name, row in rows.items()}
    assert len(failures({"difference": {"480x640": 1e-3}, "rows": slow}, "cpu")) == 6
    assert len(failures({"difference": {"480x640": 1e-3}, "rows": slow}, "cuda")) == 1


def test_a_thousand_names_are_to_find_what_their_prompts_find(script) -> None:
    failures = script("thousand_names").failures
    shared = [{"names": 1, "largest": 0.0}, {"names": 40, "largest": 0.2}]
    found = {"difference": 1e-6, "see_s": 1.0, "ground_s": 10.0, "prompts_alone_s": 15.0, "bytes": 1e9}
    assert not failures({**found, "shared": shared})
    wrong = {"difference": 1e-3, "ground_s": 20.0, "bytes": 5e9, "shared": shared[1:]}
    assert len(failures({**found, **wrong})) == 4
