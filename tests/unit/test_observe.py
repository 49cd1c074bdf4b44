"""What a run tells: metrics without waiting for the device, files that survive a kill, lines for people."""

import io
import json
import logging
import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from synoptic.engine import observe
from synoptic.engine.observe import Meter, Observer, read_metrics

RATES = {"lr": 1e-3, "weight_decay": 0.05}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain() -> Console:
    return Console(file=io.StringIO(), width=80)


def scalars(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20))
def test_a_meter_gives_means(values):
    meter = Meter(torch.device("cpu"))
    for step, value in enumerate(values):
        meter.add(step, scalars(loss=value))
    means, bad = meter.read()
    assert means == {"loss": pytest.approx(sum(values) / len(values), rel=1e-9, abs=1e-9)}
    assert not bad


def test_a_meter_averages_each_term_over_the_steps_that_report_it():
    meter = Meter(torch.device("cpu"))
    meter.add(0, scalars(loss=1.0, clip=2.0))
    meter.add(1, scalars(loss=3.0, dino=5.0))
    meter.add(2, scalars(loss=5.0, clip=4.0))
    assert meter.read()[0] == {"loss": 3.0, "clip": 3.0, "dino": 5.0}
    meter.reset()
    meter.add(3, scalars(loss=7.0))
    assert meter.read()[0] == {"loss": 7.0}


def test_a_meter_remembers_the_first_step_that_was_not_finite():
    meter = Meter(torch.device("cpu"))
    for step in range(10):
        values = scalars(loss=1.0, a=math.nan if step >= 4 else 0.0, b=math.inf if step == 6 else 0.0)
        meter.add(step, values)
    assert meter.read()[1] == {"a": 4, "b": 6}


def test_a_meter_goes_on_from_a_checkpoint():
    whole, first, second = (Meter(torch.device("cpu")) for _ in range(3))
    for step in range(6):
        whole.add(step, scalars(loss=step / 7))
        (first if step < 3 else second).add(step, scalars(loss=step / 7))
        if step == 2:
            second.load(first.state())
    assert whole.read() == second.read()


def test_metrics_are_lines_of_json(tmp_path):
    with Observer(tmp_path, steps=20, batch=4, console=plain()) as observer:
        observer.metrics(10, {"loss": 1 / 3, "clip": 2.0}, RATES)
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1, "each line is there once it is written"
        observer.evaluation(10, {"knn": 0.5, "zeroshot": math.nan})
        observer.metrics(20, {"loss": 0.25}, RATES)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first = lines[0]
    assert list(first)[:5] == ["step", "loss", "clip", "lr", "weight_decay"]
    assert first["loss"] == pytest.approx(1 / 3, rel=1e-8)
    assert first["images_per_second"] > 0
    assert 0 <= first["data_wait"] <= 1
    assert lines[1] == {"step": 10, "evaluation": {"knn": 0.5, "zeroshot": None}}
    assert lines[2]["seconds"] >= first["seconds"] > 0


def test_float32_survives_the_file(tmp_path):
    values = torch.randn(50).tolist()
    with Observer(tmp_path, steps=50, batch=1, console=plain()) as observer:
        for step, value in enumerate(values):
            observer.metrics(step + 1, {"loss": value}, RATES)
    read = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert torch.equal(torch.tensor(read), torch.tensor(values))


def test_repeated_steps_appear_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with Observer(tmp_path, steps=40, batch=4, console=plain()) as observer:
        for step in (10, 20, 30):
            observer.metrics(step, {"loss": float(step)}, RATES)
        observer.evaluation(20, {"knn": 0.5})
    with path.open("a") as file:
        file.write('{"step": 35, "lo')  # killed while writing
    with Observer(tmp_path, steps=40, batch=4, done=20, seconds=100.0, console=plain()) as observer:
        observer.metrics(30, {"loss": -30.0}, RATES)
    lines = read_metrics(path)
    assert [line["step"] for line in lines] == [10, 20, 20, 30]
    assert lines[-1]["loss"] == -30.0
    assert lines[-1]["seconds"] > 100.0
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_tensorboard_shows_repeated_steps_once(tmp_path):
    with Observer(tmp_path, steps=40, batch=4, console=plain()) as observer:
        observer.metrics(10, {"loss": 1.0}, RATES)
        observer.metrics(20, {"loss": 2.0}, RATES)
        observer.evaluation(20, {"knn": 0.5})
    time.sleep(1.1)  # TensorBoard reads files in order of their names, which begin with the second
    with Observer(tmp_path, steps=40, batch=4, done=10, console=plain()) as observer:
        observer.metrics(20, {"loss": 3.0}, RATES)
        observer.evaluation(20, {"knn": 0.75})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(10, 1.0), (20, 3.0)]
    assert [(event.step, event.value) for event in events.Scalars("evaluation/knn")] == [(20, 0.75)]
    assert {"train/lr", "train/images_per_second", "train/data_wait"} <= set(events.Tags()["scalars"])


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    console = plain()
    with Observer(tmp_path, steps=1000, batch=4, console=console) as observer:
        for step in range(1, 1001):
            observer.metrics(step, {"loss": 0.5, "a_rather_long_name": 0.25, "grad_norm": 3.0}, RATES)
        observer.evaluation(1000, {"knn": 0.5})
    lines = console.file.getvalue().splitlines()
    assert "\x1b" not in console.file.getvalue()
    assert lines[0].startswith("step 1/1000  loss 0.5  a_rather_long_name 0.25  lr 1.00e-03  ")
    assert lines[-2].startswith("step 1000/1000  loss 0.5")
    assert lines[-2].endswith("left 0:00")
    assert lines[-1] == "step 1000/1000  knn 0.5000"
    assert len(lines) < 100, "lines come every few seconds, not every step"
    log = (tmp_path / "train.log").read_text()
    assert all(line in log for line in lines)


def test_one_live_line_on_a_terminal(tmp_path):
    console = Console(file=Terminal(), width=60, force_terminal=True, _environ={"TERM": "xterm"})
    with Observer(tmp_path, steps=3, batch=4, console=console) as observer:
        for step in (1, 2, 3):
            observer.metrics(step, {"loss": 0.5}, RATES)
            observer.tick(step)
        observer.say("a message")
    output = console.file.getvalue()
    assert "\x1b[2K" in output, "the line is drawn anew in its place"
    assert "step 3/3  loss 0.5" in output
    assert "a message" in output
    assert "left" in output


def test_slow_steps_renew_the_live_line(tmp_path, monkeypatch):
    monkeypatch.setattr(observe, "TICK_EVERY", 0.0)
    console = Console(file=Terminal(), width=60, force_terminal=True, _environ={"TERM": "xterm"})
    with Observer(tmp_path, steps=9, batch=4, console=console) as observer:
        observer.tick(7)
    assert "step 7/9  left ?" in console.file.getvalue()


class Clock:
    """A clock that stands still until it is told how long something took."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_speed_wait_and_time_left(tmp_path, monkeypatch):
    """A step waits 3 s for its 10 pictures and works 1 s; what is paused (4 s a step) slows the run, not the step."""
    clock = Clock()
    monkeypatch.setattr(observe, "time", clock)

    def slow():
        clock.now += 50.0  # the start of the reading processes
        while True:
            clock.now += 3.0
            yield None if clock.now > 1000 else "batch"

    with Observer(tmp_path, steps=100, batch=10, console=plain()) as observer:
        for step, _ in zip(range(1, 22), observer.batches(slow()), strict=False):
            clock.now += 1.0
            if step % 10 == 1:
                observer.metrics(step, {"loss": 0.5}, RATES)
            with observer.pause():
                clock.now += 4.0
        left = observer._left(21)
    first, *others = read_metrics(tmp_path / "metrics.jsonl")
    assert first["images_per_second"] == pytest.approx(10 / 54)
    for line in others:
        assert line["images_per_second"] == pytest.approx(10 / 4)
        assert line["data_wait"] == pytest.approx(0.75)
    assert others[-1]["seconds"] == pytest.approx(50 + 21 * 8 - 4)
    # The start of the readers is no part of the recent speed; pauses took 80 of the 214 s, and will take as much.
    assert left == pytest.approx(79 * 4 * 214 / (214 - 80))


def test_what_the_library_logs_reaches_file_and_terminal(tmp_path, monkeypatch):
    console = plain()
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logger = logging.getLogger("synoptic.data.anything")
    with Observer(tmp_path, steps=10, batch=4, console=console):
        logger.warning("a file was [unreadable]")
        logger.info("told too")
    logger.warning("after the run")
    assert console.file.getvalue().splitlines() == ["a file was [unreadable]", "told too"]
    log = (tmp_path / "train.log").read_text()
    assert "WARNING a file was [unreadable]" in log
    assert "after the run" not in log
    assert not logging.getLogger("synoptic").handlers
    assert logging.getLogger("synoptic").level == logging.NOTSET


def test_messages_are_told_once_where_logging_is_set_up(tmp_path, monkeypatch):
    console, stream = plain(), io.StringIO()
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(stream)])
    with Observer(tmp_path, steps=10, batch=4, console=console) as observer:
        logging.getLogger("synoptic.engine").warning("from the library")
        observer.say("from the loop")
    assert stream.getvalue() == "from the library\n"
    assert console.file.getvalue() == "from the loop\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (61.0, "1:01"), (3661.0, "1:01:01"), (math.nan, "?"), (math.inf, "?")]
)
def test_clock(seconds, text):
    assert observe._clock(seconds) == text


def test_what_is_wrong_with_the_learning_is_told(tmp_path):
    with Observer(tmp_path, steps=40, batch=4, console=plain()) as observer:
        for step, found in ((1, None), (2, "flat"), (3, None), (6, "gone")):
            observer.diagnosis(step, found)
    told = [(line["step"], line["diagnosis"]) for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert told == [(2, "flat"), (6, "gone")]
    assert (tmp_path / "train.log").read_text().count("warning: flat") == 1


def test_why_a_run_stopped_itself_is_among_its_numbers_until_it_goes_on(tmp_path):
    with pytest.raises(ValueError), Observer(tmp_path, steps=9, batch=4, console=plain()) as observer:
        observer.metrics(5, {"loss": 1.0}, RATES)
        raise ValueError("worse; try less")
    assert read_metrics(tmp_path / "metrics.jsonl")[-1] == {"step": 5, "stopped": "worse; try less"}
    with pytest.raises(KeyboardInterrupt), Observer(tmp_path, steps=9, batch=4, done=3, console=plain()):
        raise KeyboardInterrupt
    assert not read_metrics(tmp_path / "metrics.jsonl"), "an interruption is no fault of the run"
