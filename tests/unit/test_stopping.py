"""Why a run may stop before its end."""

import io
import json
import logging
import os
import signal
import threading

import pytest

from synoptic.engine.stopping import STOPPING, NonFiniteLoss, stop_signal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_one_acts(number, caplog):
    seen = []
    before = signal.signal(number, lambda *_: seen.append("second"))
    try:
        with caplog.at_level(logging.WARNING), stop_signal() as stop:
            assert not stop.is_set()
            os.kill(os.getpid(), number)
            assert stop.is_set()
            assert not seen
            os.kill(os.getpid(), number)
        assert "stopping after this step" in caplog.text
        assert seen == ["second"]
    finally:
        signal.signal(number, before)


class _InterruptedFile(io.RawIOBase):
    """A file during whose first write the process is asked to stop, as when the signal meets a line being logged."""

    def __init__(self):
        self.written = b""

    def writable(self):
        return True

    def write(self, data):
        if not self.written:
            self.written = bytes(data)
            os.kill(os.getpid(), signal.SIGINT)
        else:
            self.written += bytes(data)
        return len(data)


def test_a_signal_may_come_while_a_line_is_logged(capsys):
    file = _InterruptedFile()
    handler = logging.StreamHandler(io.TextIOWrapper(io.BufferedWriter(file), write_through=True))
    logger = logging.getLogger("synoptic")
    logger.addHandler(handler)
    try:
        with stop_signal() as stop:
            logger.warning("a line")
            assert stop.is_set()
    finally:
        logger.removeHandler(handler)
    assert file.written.decode().splitlines() == ["a line", STOPPING]
    assert "Logging error" not in capsys.readouterr().err


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(RuntimeError), stop_signal():
        assert signal.getsignal(signal.SIGINT) is not before[0]
        raise RuntimeError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_signals_are_left_alone():
    found = []

    def work():
        with stop_signal() as stop:
            found.append((stop.is_set(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, signal.getsignal(signal.SIGINT))]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_ends_when_told_to():
    """A reading process inherits the handler, and must not take its end for a wish to save the run."""
    with stop_signal() as stop:
        ready, tell = os.pipe()
        child = os.fork()
        if not child:
            os.write(tell, b"x")
            signal.pause()
            signal.pause()
            os._exit(0)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert not stop.is_set()


def test_a_non_finite_loss_says_when_what_and_where(tmp_path):
    record = tmp_path / "non_finite.json"
    files = [f"{number}.png" for number in range(8)]
    error = NonFiniteLoss(13, ["loss", "clip"], files, "try less", record)
    assert str(error) == (f"step 13: loss, clip not finite, on 0.png, 1.png, 2.png and 5 more (see {record}); try less")
    assert isinstance(error, ValueError)
    assert json.loads(record.read_text()) == {"step": 13, "terms": ["loss", "clip"], "files": files}
