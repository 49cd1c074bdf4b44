"""What all benchmarks share: fair timing of two rivals in one process, and a dated record of what was measured."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from synoptic.machine import processor

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "numpy", "pillow", "transformers", "faiss-cpu", "pyarrow", "synoptic-vision")


@dataclass(frozen=True)
class Comparison:
    """Two rivals timed in turns.

    Attributes:
        ours: median seconds of one call.
        theirs: likewise.
        ratio: median over the pairs of theirs / ours: above 1, ours is faster.
        spread: the middle half of the ratios lies between these two.
        pairs: how many pairs were timed.
    """

    ours: float
    theirs: float
    ratio: float
    spread: tuple[float, float]
    pairs: int


def compare(
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    pairs: int,
    clock: Callable[[], float] = time.perf_counter,
    warmup: int = 2,
) -> Comparison:
    """Times two rivals in alternated pairs, so that what slows the machine down slows both.

    Args:
        ours, theirs: one call is one measurement.
        pairs: measurements of each; every other pair begins with the other rival.
        clock: seconds; `time.process_time` counts the processor time of single-threaded work alone.
        warmup: calls of each before the first measurement.
    """
    for _ in range(warmup):
        ours()
        theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for rival in (0, 1) if pair % 2 == 0 else (1, 0):
            start = clock()
            (ours, theirs)[rival]()
            times[rival].append(clock() - start)
    ratios = [their / our for our, their in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if pairs > 1 else ratios * 3
    return Comparison(statistics.median(times[0]), statistics.median(times[1]), middle, (low, high), pairs)


def peak(step: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes that a second call of `step` holds at most beyond what was held before it.

    On a CPU that is the resident memory of this process, which should do nothing else: see `peaks`. On a GPU it is the
    memory of tensors.
    """
    step()  # what is allocated once is there after it
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    step()
    return _status("VmHWM") - before


def anonymous_peak(step: Callable[[], Any]) -> int:
    """As `peak` on a CPU, without the pages of files that are mapped: they are the system's cache, which it takes back.

    Looked at every millisecond, since the system keeps no high-water mark of it.
    """
    step()
    before = _status("RssAnon")
    found, over = [before], threading.Event()

    def look() -> None:
        while not over.wait(0.001):
            found.append(_status("RssAnon"))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        step()
    finally:
        over.set()
        watcher.join()
    return max(found) - before


def peaks(names: Sequence[str], *more: str) -> dict[str, int]:
    """What this very command prints with `more` and `--peak-of NAME` added, a process for each name: its `peak`."""
    command = [sys.executable, *sys.argv, *more, "--peak-of"]
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18)}  # what is freed goes back to the system at once
    return {
        name: int(subprocess.run([*command, name], env=exact, stdout=subprocess.PIPE, text=True, check=True).stdout)
        for name in names
    }


def _status(key: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def curves(axes: Any, sizes: Sequence[int], scores: Mapping[str, Mapping[str, float]], key: str) -> None:
    """Draws a score over the side of the pictures, a line a model; `key@SIZE` names it among a model's scores."""
    for name, each in scores.items():
        axes.plot(sizes, [each[f"{key}@{size}"] for size in sizes], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, labels=map(str, sizes))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()


def save(name: str, results: Mapping[str, Any]) -> Path:
    """Writes `results/<name>-<date>.json` with the results, the machine, the versions and the command."""
    now = datetime.now(UTC)
    record = {
        "benchmark": name,
        "time": now.isoformat(timespec="seconds"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": _commit(),
        "machine": machine(),
        "versions": versions(),
        **results,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path


def finish(name: str, results: Mapping[str, Any], claim: str, failures: Sequence[str], keep: bool = True) -> None:
    """Records what was measured, whatever it says, and ends with exit code 1 where it is not what is claimed.

    Args:
        name: of the benchmark.
        results: what was measured.
        claim: in one line.
        failures: what speaks against it; none means that it holds.
        keep: whether the record is written.
    """
    if keep:
        print(f"written: {save(name, {'claim': claim, 'holds': not failures, **results})}")
    if failures:
        sys.exit(f"{name}: {claim}: does not hold: {'; '.join(failures)}")


def machine() -> dict[str, Any]:
    """What the measurement ran on, and how busy it was (`load`: runnable processes, averaged over a minute)."""
    found: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter here, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit that is checked out, marked where files differ from it; None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if head.returncode != 0:
        return None
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout.strip()
    return head.stdout.strip() + ("+changes" if changed else "")


def synoptic(words: str, keys: Mapping[str, Any]) -> None:
    """Runs a command of the command line in one thread, quietly."""
    typed = [*words.split(), *(f"{key}={value}" for key, value in keys.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "synoptic", *typed], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"synoptic {' '.join(typed)}\n{done.stderr[-2000:]}")
