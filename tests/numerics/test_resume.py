"""Nothing of a run depends on where it was interrupted.

Run as a program, this file is such runs, which kill themselves (see `killed_again_and_again`).
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from toy_run import CONFIG, ToyLoader, ToyTask, assert_equal, assert_same_run, final_state, score

from synoptic.config import LoaderConfig
from synoptic.engine import checkpoint
from synoptic.engine.loop import best_model, train
from synoptic.engine.stopping import Interrupted


def killed_again_and_again(out: Path, where: str) -> None:
    """Trains in child processes that are killed, each later than the one before, until one comes through.

    Args:
        where: "writing" kills at the n-th time that a file is put to disk or in its place; "anywhere" at any moment;
            "whole" as "writing", and not the loop alone, but all that a user starts.
    """
    import torch._dynamo  # here, or every child would import what its optimizer needs
    import torch.utils.tensorboard

    torch.set_num_threads(1)
    if where == "whole":
        import synoptic.run  # as above
    chance = random.Random(0)
    for life in range(1000):
        heard, tell = os.pipe()
        steps = chance.randint(1, 8) if where == "anywhere" else None
        child = os.fork()
        if not child:
            if where != "anywhere":
                die_at_write(1 + life)
            if where == "whole":
                synoptic.run.train("dino", **whole_run(out))
            else:
                train(ToyTask(), ToyLoader(tell=tell, most=steps), CONFIG, out, score)
            os._exit(0)
        os.close(tell)
        if steps and sum(len(os.read(heard, 1)) for _ in range(steps)) == steps:
            time.sleep(chance.uniform(0.0, 0.02))
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(heard)
        assert code in (0, -signal.SIGKILL), "the run failed by itself"
        if code == 0:
            print(life)
            return


def die_at_write(count: int) -> None:
    """Kills this process before, or after, the `count`-th change that it makes to a folder."""
    left = [count]
    for owner, name in ((os, "fsync"), (os, "replace"), (Path, "unlink"), (Path, "rename"), (Path, "write_text")):
        original = getattr(owner, name)

        def wrapped(*args, original=original, **options):
            left[0] -= 1
            if left[0] == 0 and original.__name__ == "write_text":
                args[0].write_bytes(b"")  # opened, and nothing written yet
                os.kill(os.getpid(), signal.SIGKILL)
            if left[0] == 0 and count % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*args, **options)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, wrapped)


def whole_run(out: Path) -> dict:
    """A run of DINO on the pictures beside its folder."""
    return {
        "data": str(out.parent / "pictures"),
        "out": str(out),
        "model": "vit_nano8",
        "size": 16,
        "steps": 3,
        "batch": 2,
        "prototypes": 16,
        "head_hidden": 16,
        "bottleneck": 8,
        "crops.local_count": 0,
        "precision": "fp32",
        "checkpoint_every": 1,
        "loader.workers": 0,
    }


def draw_pictures(folder: Path, count: int) -> None:
    """Noise of different sizes, without labels."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(noise.integers(0, 256, (40, 30 + number, 3), dtype=np.uint8)).save(folder / f"{number}.png")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_run_is_whole_from_its_first_file_to_its_weights(tmp_path):
    """As the user starts it: with its configuration written before the first step, and its weights after the last."""
    from synoptic import run
    from synoptic.weights.folder import load_folder

    draw_pictures(tmp_path / "pictures", 6)
    out = tmp_path / "killed"
    program = [sys.executable, __file__, str(out), "whole"]
    result = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    assert int(result.stdout) > 5, "it was killed at least six times"
    whole = run.train("dino", **whole_run(tmp_path / "whole"))
    assert_same_run(out, whole)
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]
    weights = [load_folder(folder / "weights")[0] for folder in (out, whole)]
    assert_equal(*(dict(model.state_dict()) for model in weights))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("where", ["anywhere", "writing"])
def test_a_killed_run_ends_in_the_weights_of_an_uninterrupted_one(tmp_path, uninterrupted, where):
    result = subprocess.run(
        [sys.executable, __file__, str(tmp_path), where], capture_output=True, text=True, check=True, timeout=300
    )
    assert int(result.stdout) > 2, "it was killed at least three times"
    assert_same_run(tmp_path, uninterrupted)


class Interrupting(ToyTask):
    """Is sent signals in the middle of its n-th step."""

    def __init__(self, step: int, *signals: int):
        super().__init__()
        self.countdown, self.signals = step, signals

    def before_step(self, progress: float) -> None:
        self.countdown -= 1
        if self.countdown == 0:
            for number in self.signals:
                os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("keys", "way"),
    [
        ({"overwrite": True}, "the same command without overwrite=true goes on from there"),
        ({"overwrite": True, "resume": "never"}, "the same command without overwrite=true and resume=never goes on"),
    ],
)
def test_a_command_that_would_not_go_on_is_not_advised(tmp_path, keys, way):
    with pytest.raises(Interrupted, match=way):
        train(Interrupting(10, signal.SIGINT), ToyLoader(), replace(CONFIG, **keys), tmp_path, score)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_says_how_to_go_on(tmp_path, uninterrupted, number):
    with pytest.raises(Interrupted, match="stopped and saved after step 10; the same command goes on from there"):
        train(Interrupting(10, number), ToyLoader(), CONFIG, tmp_path, score)
    assert "the same command goes on from there" in (tmp_path / "train.log").read_text()
    assert final_state(tmp_path)["step"] == 10
    loader = ToyLoader()
    train(ToyTask(), loader, CONFIG, tmp_path, score)
    assert loader.asked == list(range(10, 24))
    assert "going on after step 10 of 24" in (tmp_path / "train.log").read_text()
    assert_same_run(tmp_path, uninterrupted)


def test_interrupting_twice_stops_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt) as raised:
        train(Interrupting(10, signal.SIGINT, signal.SIGINT), ToyLoader(), CONFIG, tmp_path, score)
    assert not isinstance(raised.value, Interrupted)
    assert final_state(tmp_path)["step"] == 8


def test_an_interruption_in_the_last_step_is_not_forgotten(tmp_path, uninterrupted):
    with pytest.raises(Interrupted, match="after step 24"):
        train(Interrupting(24, signal.SIGINT), ToyLoader(), CONFIG, tmp_path, score)
    assert_same_run(tmp_path, uninterrupted)


def test_a_run_tells_the_same_when_it_ends_and_when_it_is_found_at_its_end(tmp_path):
    ended = train(ToyTask(), ToyLoader(), CONFIG, tmp_path, score)
    assert train(ToyTask(), ToyLoader(), CONFIG, tmp_path, score) == ended


def test_a_run_in_another_thread(tmp_path, uninterrupted):
    thread = threading.Thread(target=train, args=(ToyTask(), ToyLoader(), CONFIG, tmp_path, score))
    thread.start()
    thread.join()
    assert_same_run(tmp_path, uninterrupted)


def test_an_early_best_outlives_an_interruption(tmp_path):
    def falling(model: nn.Module) -> dict[str, float]:
        return {"knn": -float(model[2].num_batches_tracked)}

    with pytest.raises(Interrupted):
        train(Interrupting(10, signal.SIGINT), ToyLoader(), CONFIG, tmp_path, falling)
    result = train(ToyTask(), ToyLoader(), CONFIG, tmp_path, falling)
    assert result["best"]["step"] == 7
    assert checkpoint.Checkpoints(tmp_path / "checkpoints", 2).steps() == [7, 20, 24]
    assert best_model(ToyTask(), CONFIG, tmp_path)[2].num_batches_tracked == 14, "two parts a step"


def test_a_damaged_newest_checkpoint_costs_only_time(tmp_path, uninterrupted):
    with pytest.raises(Interrupted):
        train(Interrupting(10, signal.SIGINT), ToyLoader(), CONFIG, tmp_path, score)
    newest = tmp_path / "checkpoints" / "step_00000010.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    train(ToyTask(), ToyLoader(), CONFIG, tmp_path, score)
    (tmp_path / "checkpoints" / "step_00000010.damaged").unlink()
    assert_same_run(tmp_path, uninterrupted)


def test_what_a_killed_run_had_no_time_to_remove_goes(tmp_path, uninterrupted):
    """As when it was killed between writing its last checkpoint and removing those no longer kept."""
    train(ToyTask(), ToyLoader(), CONFIG, tmp_path, score)
    folder = tmp_path / "checkpoints"
    shutil.copy(folder / "step_00000024.pt", folder / "step_00000016.pt")
    train(ToyTask(), ToyLoader(), CONFIG, tmp_path, score)
    assert_same_run(tmp_path, uninterrupted)


def test_a_best_that_is_gone_is_not_held_against_others(tmp_path):
    """As when a better one took its place, and was damaged since."""
    told = iter((0.5, 0.4))
    with pytest.raises(Interrupted):
        train(Interrupting(15, signal.SIGINT), ToyLoader(), CONFIG, tmp_path, lambda model: {"knn": next(told)})
    folder = tmp_path / "checkpoints"
    assert json.loads((folder / "best.json").read_text())["step"] == 7
    (folder / "step_00000007.pt").unlink()
    result = train(ToyTask(), ToyLoader(), CONFIG, tmp_path, lambda model: {"knn": 0.1})
    assert result["best"] == {"step": 24, "metric": "knn", "score": 0.1, "scores": {"knn": 0.1}}


def test_a_finished_run_is_left_as_it_is(tmp_path, uninterrupted, capsys):
    loader = ToyLoader()
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.suffix in (".pt", ".jsonl")}
    result = train(ToyTask(), loader, CONFIG, uninterrupted, score)
    assert result["steps"] == 24
    assert result["evaluation"] == final_state(uninterrupted)["scores"]
    assert result["seconds"] == final_state(uninterrupted)["seconds"]
    assert not loader.asked
    assert "this run is finished (24 steps)" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_run_is_not_gone_on_with_against_the_users_will(uninterrupted):
    with pytest.raises(ValueError, match="holds a run; resume=auto goes on with it, overwrite=true throws it away"):
        train(ToyTask(), ToyLoader(), replace(CONFIG, resume="never"), uninterrupted, score)


def test_a_batch_is_not_cut_into_more_parts_than_pictures(tmp_path):
    with pytest.raises(ValueError, match="accumulate=7: more parts than pictures in batch=6"):
        train(ToyTask(), ToyLoader(), replace(CONFIG, accumulate=7), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_real_run_resumes_bitwise(tmp_path):
    """Files, loader, multi-crop and DINO, stopped in the middle."""
    from synoptic.data.loader import Loader
    from synoptic.data.sources import open_source
    from synoptic.methods import dino
    from synoptic.models.vit import ViT, vit_config

    pictures = tmp_path / "pictures" / "train"
    draw_pictures(pictures, 10)
    raw = dino.DinoConfig(
        data=str(pictures.parent), out=str(tmp_path), size=32, batch=4, steps=8, prototypes=16, precision="fp32",
        head_hidden=16, bottleneck=8, checkpoint_every=3, log_every=3, evaluate_every=100, model="vit_mini16",
        loader=LoaderConfig(workers=0),
    )  # fmt: skip
    config = dino.resolve(raw, 10)

    def run(out: Path, stop: int | None = None) -> None:
        torch.manual_seed(0)
        vit = ViT(vit_config("vit_mini16", width=24, heads=2, depth=1, hidden=48, image_size=32, drop_path=0.2))
        task = dino.DinoTask(config, dino.Network(vit, dino.DinoHead(24, 16, 16, 8)))
        if stop:
            before = task.before_step
            calls = iter(range(1, 100))

            def interrupt(progress: float) -> None:
                before(progress)
                if next(calls) == stop:
                    os.kill(os.getpid(), signal.SIGINT)

            task.before_step = interrupt
        source = open_source(config.data, "train")
        train(task, Loader(source, config.batch, config.seed, 64, config.loader), config, out)

    run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", stop=5)
    run(tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


if __name__ == "__main__":
    killed_again_and_again(Path(sys.argv[1]), sys.argv[2])
