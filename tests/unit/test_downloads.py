"""Files from the network: whole and checked or not there at all, and clear about what to do without one."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from synoptic.weights import downloads
from synoptic.weights.catalogue import Remote
from synoptic.weights.downloads import fetch, place_of, watched

CONTENT = random.Random(0).randbytes(3 * (1 << 20) + 17)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Answers as the last part of the address says."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        getattr(self, self.path.strip("/").partition(".")[0])()

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def good(self) -> None:
        self.answer(200, CONTENT, Content_Length=str(len(CONTENT)))

    def cut(self) -> None:
        self.answer(200, CONTENT[:-100], Content_Length=str(len(CONTENT)))

    def long(self) -> None:
        self.answer(200, b"", Content_Length=str(1 << 60))

    def negative(self) -> None:
        self.answer(200, b"", Content_Length="-3")

    def empty(self) -> None:
        self.answer(200, b"", Content_Length="0")

    def endless(self) -> None:
        self.answer(200, CONTENT)

    def absent(self) -> None:
        self.answer(404)

    def forbidden(self) -> None:
        self.answer(403)

    def gone(self) -> None:
        self.connection.close()

    def silent(self) -> None:
        time.sleep(1)

    def nonsense(self) -> None:
        self.wfile.write(b"this is no HTTP\r\n\r\n")

    def moved(self) -> None:
        self.answer(302, Location="/good.bin")

    def elsewhere(self) -> None:
        self.answer(302, Location="ftp://127.0.0.1/good.bin")

    def inside(self) -> None:
        self.answer(302, Location="file:///etc/hostname")

    def crooked(self) -> None:
        self.answer(302, Location="http://[::1/good.bin")

    def circle(self) -> None:
        self.answer(302, Location="/circle.bin")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(downloads, "TIMEOUT", 0.3)
    return tmp_path / "synoptic" / "models"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def get(address: str, name: str = "good.bin", sha256: str | None = None) -> Path:
    return fetch(Remote(f"{address}/{name}", sha256), schemes=("http",))


@pytest.mark.parametrize("sha256", [None, DIGEST], ids=["unknown", "known"])
def test_a_file_is_fetched_once(address: str, cache: Path, sha256: str | None) -> None:
    Server.asked.clear()
    for _ in range(2):
        path = get(address, sha256=sha256)
        assert path == cache / "good.bin" == place_of(Remote(f"{address}/good.bin"))
        assert path.read_bytes() == CONTENT
    assert Server.asked == ["/good.bin"]
    assert os.listdir(cache) == ["good.bin"]


def test_a_redirection_is_followed(address: str) -> None:
    assert get(address, "moved.bin").read_bytes() == CONTENT


BAD = {
    "cut.bin": f"it ended after {len(CONTENT) - 100:,} of {len(CONTENT):,} bytes",
    "long.bin": "the server says that it has 1152921504606846976 bytes",
    "negative.bin": "the server says that it has -3 bytes",
    "empty.bin": "the server says that it has 0 bytes",
    "endless.bin": "the server does not say how long the file is",
    "absent.bin": "HTTP 404 Not Found",
    "forbidden.bin": "HTTP 403 Forbidden",
    "gone.bin": "",
    "silent.bin": "timed out",
    "nonsense.bin": "this is no HTTP",
    "elsewhere.bin": "ftp://127.0.0.1/good.bin is no address of http",
    "inside.bin": "HTTP 302 Found - Redirection to url 'file:///etc/hostname' is not allowed",
    "crooked.bin": "Invalid IPv6 URL",
    "circle.bin": "infinite loop",
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_had_is_one_line_that_says_what_to_put_where(address: str, cache: Path, name: str) -> None:
    with pytest.raises(ValueError) as error:
        get(address, name)
    message = str(error.value)
    assert message.startswith(f"{address}/{name} cannot be fetched (") and BAD[name] in message
    assert message.endswith(f"fetch it elsewhere and put it at {cache / name}, or give its path as MODEL")
    assert "\n" not in message
    assert os.listdir(cache) == []
    (cache / name).write_bytes(b"by hand")
    assert get(address, name).read_bytes() == b"by hand"


def test_without_a_length_a_checksum_tells_whether_a_file_is_whole(address: str, cache: Path) -> None:
    assert get(address, "endless.bin", DIGEST).read_bytes() == CONTENT
    (cache / "endless.bin").unlink()
    with pytest.raises(ValueError, match="what came has the SHA-256"):
        get(address, "endless.bin", hashlib.sha256(CONTENT + b"more").hexdigest())
    assert os.listdir(cache) == []


def test_another_file_than_the_released_one_is_not_kept(address: str, cache: Path) -> None:
    with pytest.raises(ValueError, match=f"what came has the SHA-256 {DIGEST}, the released file {'0' * 64}"):
        get(address, sha256="0" * 64)
    assert os.listdir(cache) == []


def test_a_file_that_is_there_is_checked_where_its_checksum_is_known(address: str, cache: Path) -> None:
    path = get(address, sha256=DIGEST)
    with path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"\0\0\0\0")
    with pytest.raises(
        ValueError, match=r"good\.bin: damaged, or not the released file: .* remove it to fetch it anew"
    ):
        get(address, sha256=DIGEST)
    path.unlink()
    assert get(address, sha256=DIGEST).read_bytes() == CONTENT


def test_a_file_larger_than_any_is_not_read_to_its_end(
    address: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "LARGEST", len(CONTENT) - 1)
    with pytest.raises(ValueError, match="the server says that it has"):
        get(address)
    with pytest.raises(ValueError, match=f"it is larger than {len(CONTENT) - 1:,} bytes"):
        get(address, "endless.bin", DIGEST)
    assert os.listdir(cache) == []


def test_users_fetch_from_secured_addresses_alone(address: str) -> None:
    Server.asked.clear()
    with pytest.raises(ValueError, match=r"good\.bin is no address of https"):
        fetch(Remote(f"{address}/good.bin"))
    assert Server.asked == []


def test_it_is_told_how_much_is_there(address: str) -> None:
    told: list[tuple[str, int, int | None]] = []
    with watched(lambda *news: told.append(news)):
        get(address)
        get(address)
    assert [name for name, _, _ in told] == ["good.bin"] * len(told)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1:] == (len(CONTENT), len(CONTENT)) and len(told) > 2


def test_an_interruption_leaves_nothing(address: str, cache: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), watched(interrupt):
        get(address)
    assert os.listdir(cache) == []


def test_what_killed_processes_left_is_removed_but_not_what_others_are_fetching(address: str, cache: Path) -> None:
    cache.mkdir(parents=True)
    for name, age in ((".good.bin.aa.tmp", 7200), (".good.bin.bb.tmp", 10), (".other.bin.cc.tmp", 7200)):
        (cache / name).write_bytes(b"half")
        os.utime(cache / name, (time.time() - age,) * 2)
    get(address)
    assert sorted(os.listdir(cache)) == [".good.bin.bb.tmp", ".other.bin.cc.tmp", "good.bin"]


def test_several_may_fetch_the_same_file_at_once(address: str, cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: get(address, sha256=DIGEST), range(4)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert os.listdir(cache) == ["good.bin"]


def test_a_full_disk_is_told(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads.os, "fsync", full)
    with pytest.raises(ValueError, match="No space left on device"):
        get(address)
    assert os.listdir(cache) == []


def test_a_cache_that_is_none_is_told(address: str, cache: Path) -> None:
    (cache / "good.bin").mkdir(parents=True)
    with pytest.raises(ValueError, match="cannot be fetched"):
        get(address)
    (cache / "good.bin").rmdir()
    assert os.listdir(cache) == []
    cache.rmdir()
    cache.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be fetched"):
        get(address)
