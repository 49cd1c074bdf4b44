"""Why a run may stop before its end: it was asked to, or its numbers broke."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from synoptic.files import write_text

log = logging.getLogger(__name__)

STOPPING = "stopping after this step; a second signal stops at once, without saving"


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and did after saving; the message says how to go on."""


class NonFiniteLoss(ValueError):
    """A reported term was infinite or not a number.

    Args:
        step: the first step in which it was, counted from 1.
        terms: which ones were in that step.
        files: the pictures of that step's batch.
        advice: what to do about it.
        record: a JSON file that takes all of the above, since the message names only the first files.
        write: whether this process writes it.
    """

    def __init__(
        self, step: int, terms: Sequence[str], files: Sequence[str], advice: str, record: Path, write: bool = True
    ):
        self.step, self.terms, self.files = step, tuple(terms), tuple(files)
        if write:
            write_text(record, json.dumps({"step": step, "terms": terms, "files": files}, indent=2) + "\n")
        shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        super().__init__(f"step {step}: {', '.join(terms)} not finite, on {shown} (see {record}); {advice}")


class Worsened(ValueError):
    """A model that was good when the training began has become worse than is allowed.

    Args:
        score: by which it is judged.
        before, now: its values.
        step: after how many steps.
        allowed: share by which it may fall.
    """

    def __init__(self, score: str, before: float, now: float, step: int, allowed: float):
        super().__init__(
            f"stopped after step {step}: {score} fell from {before:.3f} at the start to {now:.3f}, by more than "
            f"max_drop={allowed:g} allows; try a lower optim.lr or a longer head_warmup"
        )


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one does what it would do without this."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    process = os.getpid()
    telling: list[threading.Thread] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        restore()
        if os.getpid() != process:  # a reading process, forked with this handler, that is told to end
            os.kill(os.getpid(), number)
            return
        stop.set()
        # By a thread: this one may be in the middle of writing a line of the same log, which cannot be entered twice.
        telling.append(threading.Thread(target=log.warning, args=(STOPPING,)))
        telling[-1].start()

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
        for thread in telling:
            thread.join()
