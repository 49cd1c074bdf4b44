"""Batches are an exact function of (seed, step), whatever reads them and wherever a run was interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_sets import tiff
from PIL import Image

from synoptic.config import LoaderConfig
from synoptic.data.loader import Loader
from synoptic.data.sources import Source, open_source, share_errors

ALONE = LoaderConfig(workers=0)


def folder(path: Path, count: int, broken=()) -> Path:
    """Pictures of different sizes, each of one colour of its own, in two class folders."""
    for number in range(count):
        name = path / "ab"[number % 2] / f"{number:03d}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        if number in broken:
            name.write_bytes(b"rubbish")
        else:
            Image.new("RGB", (8 + number % 5, 8 + number % 3), (number, 255 - number, 7)).save(name)
    return path


def opened(path: Path, count: int, broken=()) -> Source:
    return open_source(str(folder(path, count, broken)), "all")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    return opened(tmp_path_factory.mktemp("set"), 23)


def assert_equal(one, other):
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.sizes, other.sizes)
    assert torch.equal(one.index, other.index)
    assert torch.equal(one.position, other.position)
    assert (one.labels is None and other.labels is None) or torch.equal(one.labels, other.labels)
    assert one.captions == other.captions


def indices(loader: Loader, start: int, stop: int) -> list[int]:
    return [index for batch in loader.batches(start, stop) for index in batch.index.tolist()]


def test_what_a_batch_holds(source):
    (batch,) = Loader(source, 6, 0, None, ALONE).batches(4, 5)
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (6, 3, *batch.sizes.amax(0))
    assert batch.position.tolist() == list(range(24, 30))
    assert batch.captions == ((),) * 6
    for place, index in enumerate(batch.index.tolist()):
        height, width = batch.sizes[place].tolist()
        picture = source.read(index)
        assert picture.shape == (height, width, 3)
        assert torch.equal(batch.images[place, :, :height, :width], torch.from_numpy(picture).permute(2, 0, 1))
        assert not batch.images[place, :, height:].any() and not batch.images[place, :, :, width:].any()
        assert batch.labels[place] == source.labels[index]


def test_pictures_are_reduced(source):
    for batch in Loader(source, 6, 0, 9, ALONE).batches(0, 4):
        assert batch.sizes.max() <= 9 and batch.images.shape[2:] == tuple(batch.sizes.amax(0).tolist())


def test_captions_and_missing_labels_travel_along(source):
    captioned = Source(source.root, source.paths, captions=[(f"caption {number}",) for number in range(23)])
    (batch,) = Loader(captioned, 4, 0, None, ALONE).batches(0, 1)
    assert batch.labels is None
    assert batch.captions == tuple((f"caption {index}",) for index in batch.index.tolist())


@given(count=st.integers(1, 40), batch=st.integers(1, 60), seed=st.integers(-(2**63), 2**63))
@settings(max_examples=40)
def test_every_epoch_shows_every_picture_once(source, count, batch, seed):
    loader = Loader(source.select([number % 23 for number in range(count)]), batch, seed, 8, ALONE)
    assert loader.per_epoch == count / batch
    steps = -(-3 * count // batch)
    shown = indices(loader, 0, steps)
    assert len(shown) == steps * batch
    for epoch in range(3):
        assert sorted(shown[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_orders_differ_between_epochs_and_seeds(source):
    loader = Loader(source, 23, 0, 8, ALONE)
    first, second = indices(loader, 0, 1), indices(loader, 1, 2)
    other = indices(Loader(source, 23, 1, 8, ALONE), 0, 1)
    assert first != second and first != other and first != sorted(first)


@pytest.mark.parametrize("batch", [4, 23, 50])
def test_resuming_repeats_what_an_uninterrupted_run_does(source, batch):
    # Ten batches of 4 run over the end of the epoch; those of 50 hold more than two epochs each.
    whole = list(Loader(source, batch, 3, 10, ALONE).batches(0, 10))
    resumed = list(Loader(source, batch, 3, 10, ALONE).batches(5, 10))
    for one, other in zip(whole[5:], resumed, strict=True):
        assert_equal(one, other)


def test_processes_read_what_one_process_reads(source):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    alone = list(Loader(source, 4, 3, 10, ALONE).batches(3, 12))
    shared = list(Loader(source, 4, 3, 10, LoaderConfig(workers=2)).batches(3, 12))
    assert len(shared) == 9
    for one, other in zip(alone, shared, strict=True):
        assert_equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_steps_no_batches(source):
    assert not list(Loader(source, 4, 0, None, ALONE).batches(5, 5))


@pytest.mark.parametrize("cache_mb", [0, 1])
def test_the_cache_changes_nothing_but_the_reading(source, monkeypatch, cache_mb):
    reads: Counter[int] = Counter()
    read = Source.read

    def counted(self, index, longest=None, bands=None):
        reads[index] += 1
        return read(self, index, longest, bands)

    monkeypatch.setattr(Source, "read", counted)
    loader = Loader(source, 23, 0, None, LoaderConfig(workers=0, cache_mb=cache_mb))
    for one, other in zip(loader.batches(0, 3), Loader(source, 23, 0, None, ALONE).batches(0, 3), strict=True):
        assert_equal(one, other)
        one.images.zero_()  # what a task does to a batch never reaches the cache
    assert set(reads.values()) == ({4} if cache_mb == 0 else {2})


def test_the_cache_stops_when_it_is_full(tmp_path, monkeypatch):
    for number in range(4):
        Image.new("RGB", (500, 500)).save(tmp_path / f"{number}.png")  # 0.75 MB each
    opened = open_source(str(tmp_path), "all")
    reads: Counter[int] = Counter()
    read = Source.read
    monkeypatch.setattr(Source, "read", lambda self, index, *how: reads.update([index]) or read(self, index, *how))
    list(Loader(opened, 4, 0, None, LoaderConfig(workers=0, cache_mb=2)).batches(0, 3))
    assert sorted(reads.values()) == [1, 1, 3, 3]


# --- unreadable pictures


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_pictures_are_replaced_and_recorded(tmp_path, workers):
    source = opened(tmp_path / "set", 60, broken=(10, 12))  # a/010.png and a/012.png, in the source 5 and 6
    source.record_errors(tmp_path / "data_errors.jsonl")
    loader = Loader(source, 7, 0, None, LoaderConfig(workers=workers))
    whole = list(loader.batches(0, 30))
    assert Counter(index for batch in whole for index in batch.index.tolist())[5] == 0
    asked = [loader._indices(step, range(7)) for step in range(30)]
    for batch, wanted in zip(whole, asked, strict=True):
        assert batch.index.tolist() == [7 if index in (5, 6) else index for index in wanted]
        assert batch.labels.tolist() == source.labels[batch.index].tolist()
        assert len(batch.images) == 7
    lines = [json.loads(line) for line in (tmp_path / "data_errors.jsonl").read_text().splitlines()]
    assert sorted(Path(line["path"]).name for line in lines) == ["010.png", "012.png"]
    assert {line["reason"] for line in lines} == {"not a picture"}
    step = next(step for step, wanted in enumerate(asked) if 5 in wanted)
    assert loader.names(step) == [source.name(index) for index in whole[step].index.tolist()]


def test_resuming_with_unreadable_pictures(tmp_path):
    source = opened(tmp_path / "set", 60, broken=(10, 59))  # the last one is replaced by the first
    record = tmp_path / "data_errors.jsonl"
    source.record_errors(record)
    whole = list(Loader(source, 7, 0, None, ALONE).batches(0, 20))
    again = open_source(str(tmp_path / "set"), "all")
    again.record_errors(record)
    for one, other in zip(whole[11:], Loader(again, 7, 0, None, ALONE).batches(11, 20), strict=True):
        assert_equal(one, other)
    assert len(record.read_text().splitlines()) == 2
    assert any(0 in Counter(batch.index.tolist()) for batch in whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_over_five_percent_unreadable_is_an_error(tmp_path, workers):
    source = opened(tmp_path / "set", 40, broken=range(0, 40, 10))
    source.record_errors(tmp_path / "data_errors.jsonl")
    with pytest.raises(ValueError, match=r"\d of 40 pictures cannot be read, over 5%, such as .*data_errors.jsonl"):
        list(Loader(source, 8, 0, None, LoaderConfig(workers=workers)).batches(0, 10))
    assert 3 <= len((tmp_path / "data_errors.jsonl").read_text().splitlines()) <= 4


@pytest.mark.parametrize("workers", [0, 2])
def test_any_share_may_be_allowed(tmp_path, workers):
    source = opened(tmp_path / "set", 240, broken=[number for number in range(240) if number % 60])
    source.allow_unreadable(1.0)
    batches = list(Loader(source, 8, 0, None, LoaderConfig(workers=workers)).batches(0, 4))
    assert {index for batch in batches for index in batch.index.tolist()} <= {0, 30, 60, 90}
    nothing = opened(tmp_path / "nothing", 30, broken=range(30))
    nothing.allow_unreadable(1.0)
    with pytest.raises(ValueError, match="none of the 30 pictures to train on can be read"):
        next(iter(Loader(nothing, 8, 0, None, LoaderConfig(workers=workers)).batches(0, 1)))


def test_nothing_readable_at_all_is_said_at_once(tmp_path):
    source = opened(tmp_path, 30, broken=range(30))
    with pytest.raises(ValueError, match="30 of 30 pictures cannot be read") as caught:
        next(iter(Loader(source, 8, 0, None, LoaderConfig(workers=1)).batches(0, 10)))
    assert "\n" not in str(caught.value)


def test_a_small_part_of_which_nothing_can_be_read(tmp_path):
    """Of the whole, too few are broken to condemn it."""
    broken, whole = opened(tmp_path / "part", 6, broken=range(6)), opened(tmp_path / "whole", 200)
    share_errors([broken, whole])
    with pytest.raises(ValueError, match="none of the 6 pictures to train on can be read"):
        next(iter(Loader(broken, 4, 0, None, ALONE).batches(0, 1)))
    assert (len(broken.errors), len(whole.errors)) == (6, 0)


class Gap(Source):
    """Ten thousand pictures of which a run of neighbours cannot be read; no files."""

    def __init__(self, first: int, after: int):
        super().__init__(Path("gap"), [Path(f"{number}.png") for number in range(10_000)])
        self.gap = range(first, after)

    def read(self, index, longest=None, bands=None):
        if index in self.gap:
            return super().read(index, longest, bands)  # no such file
        return np.full((8, 8, 3), index % 256, dtype=np.uint8)


def test_a_long_run_of_unreadable_pictures_is_leapt_over():
    source = Gap(100, 500)  # 4 %: allowed, though more than the 200 after which a source is judged
    loader = Loader(source, 100, 0, None, ALONE)
    batches = list(loader.batches(0, 100))
    assert Counter(index for batch in batches for index in batch.index.tolist())[500] == 401
    assert len(source.errors) == 400
    with pytest.raises(ValueError, match="cannot be read, over 5%"):
        list(Loader(Gap(100, 700), 100, 0, None, ALONE).batches(0, 100))


# --- pictures of full depth


def deep_set(path: Path, count: int = 12) -> Source:
    """Pictures of four bands of 16 bits, different in size and file; every fourth holds floats in a unit of its own."""
    rng = np.random.default_rng(0)
    for number in range(count):
        values = rng.integers(0, 65536, (8 + number % 5, 8 + number % 3, 4), dtype=np.uint16)
        if number % 4 == 3:
            tiff(path / f"{number:02}.tif", values.astype(np.float32) - 1000)
        else:
            tiff(path / f"{number:02}.tif", values, planar=number % 2 == 1, compression="lzw")
    return open_source(str(path), "all")


@pytest.mark.parametrize("workers", [0, 2])
def test_sixteen_bits_come_out_of_the_loader_as_they_lie_in_the_file(tmp_path, workers):
    source = deep_set(tmp_path)
    config = LoaderConfig(workers=workers)
    for batch in Loader(source, 5, 0, None, config, bands=4).batches(0, 5):
        assert batch.images.dtype == torch.float32 and batch.images.shape == (5, 4, *batch.sizes.amax(0))
        assert batch.bounded.tolist() == [index % 4 != 3 for index in batch.index.tolist()]
        for image, (height, width), index in zip(batch.images, batch.sizes.tolist(), batch.index.tolist(), strict=True):
            stored = tifffile.imread(source.paths[index])
            stored = np.moveaxis(stored, 0, 2) if stored.shape[0] == 4 else stored
            inside = image[:, :height, :width].permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(inside if index % 4 == 3 else np.rint(inside * 65535), stored)
            assert not image[:, height:].any() and not image[:, :, width:].any()


def test_parts_of_a_batch_of_full_depth(tmp_path):
    source = deep_set(tmp_path)
    (whole,) = Loader(source, 6, 0, None, ALONE, bands=4).batches(2, 3)
    parts = [next(Loader(source, 6, 0, None, ALONE, part=(number, 2), bands=4).batches(2, 3)) for number in (0, 1)]
    assert torch.equal(torch.cat([part.bounded for part in parts]), whole.bounded)
    assert torch.equal(torch.cat([part.position for part in parts]), whole.position)
    assert torch.equal(torch.cat([part.bounded for part in whole.split(3)]), whole.bounded)


def test_other_bands_among_the_files_are_recorded(tmp_path):
    source = deep_set(tmp_path / "set", 60)
    tiff(source.paths[7], np.zeros((9, 9, 3), np.uint16))
    source.record_errors(tmp_path / "data_errors.jsonl")
    for batch in Loader(source, 6, 0, None, ALONE, bands=4).batches(0, 10):
        assert 7 not in batch.index.tolist()
    (line,) = [json.loads(line) for line in (tmp_path / "data_errors.jsonl").read_text().splitlines()]
    assert line == {"path": str(source.paths[7]), "reason": "has 3 bands, where channels=4 are read"}
    with pytest.raises(ValueError, match=r"pictures cannot be read, over 5%.* has \d bands, where channels=5 are read"):
        list(Loader(open_source(str(tmp_path / "set"), "all"), 6, 0, None, ALONE, bands=5).batches(0, 10))


# --- settings


@pytest.mark.parametrize(
    ("batch", "config", "message"),
    [
        (0, ALONE, "batch=0"),
        (-3, ALONE, "batch=-3"),
        (4, LoaderConfig(workers=-1), r"loader.workers=-1: give 0 or more"),
    ],
)
def test_impossible_settings(source, batch, config, message):
    with pytest.raises(ValueError, match=message):
        Loader(source, batch, 0, None, config)


def test_a_source_without_pictures(source):
    with pytest.raises(ValueError, match="holds no picture"):
        Loader(source.select([]), 4, 0, None, ALONE)


@pytest.mark.parametrize("there", [False, True])
def test_processes_are_started_for_a_run_on_a_gpu_alone(source, monkeypatch, there):
    """Whatever else the machine has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert Loader(source, 4, 0, None, LoaderConfig()).workers == 0
    assert Loader(source, 4, 0, None, LoaderConfig(), "cpu").workers == 0
    assert Loader(source, 4, 0, None, LoaderConfig(), "cuda").workers == 8
    assert Loader(source, 4, 0, None, LoaderConfig(workers=3), torch.device("cpu")).workers == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert Loader(source, 4, 0, None, LoaderConfig(), "cuda").workers == 1


# --- processes


def children(of: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{of}/task/{of}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_processes_end_with_the_iteration(source):
    before = set(children(os.getpid()))
    batches = Loader(source, 4, 0, None, LoaderConfig(workers=2)).batches(0, 1000)
    next(batches)
    assert len(set(children(os.getpid())) - before) == 2
    batches.close()
    assert set(children(os.getpid())) <= before


READ_FOR_EVER = """
import sys
from synoptic.config import LoaderConfig
from synoptic.data.loader import Loader
from synoptic.data.sources import open_source
loader = Loader(open_source(sys.argv[1], "all"), 4, 0, None, LoaderConfig(workers=2))
try:
    for number, batch in enumerate(loader.batches(0, 10**9)):
        if number == 3:
            print("reading", flush=True)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_ends_all_processes_without_a_word(source):
    program = [sys.executable, "-c", READ_FOR_EVER, str(source.root)]
    process = subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == "reading\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (130, "")
        time.sleep(0.1)
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


# --- real photographs


def test_real_photographs(data_dir):
    source = open_source(str(data_dir / "coco_mini" / "captions_train.json"), captions=True)
    for batch in Loader(source, 16, 0, 96, ALONE).batches(0, 3):
        assert batch.images.shape[0] == 16 and (batch.sizes.amax(dim=1) == 96).all()
        assert all(len(captions) == 5 for captions in batch.captions)
        assert 60 < batch.images.float().mean() < 200
