"""Files from servers of their makers: fetched once, checked, and kept in the user's cache.

A file appears there whole and checked, or not at all. What was put there by hand counts as fetched.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from synoptic.files import cache_folder
from synoptic.weights.catalogue import Remote
from synoptic.weights.checksums import known_sha256

log = logging.getLogger(__name__)

LARGEST = 32 << 30  # bytes of one file; the largest released one, of a ViT-g, has 4.5 billion
TIMEOUT = 30.0  # seconds without an answer
STALE = 3600.0  # seconds after which a file that a killed process left half-fetched is thrown away
_BLOCK = 1 << 20

Watch = Callable[[str, int, int | None], None]

_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Tells `watch` of what is fetched within it: a file's name, bytes that are there, and bytes in all where known."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def models_folder() -> Path:
    """Where released models lie: `$XDG_CACHE_HOME/synoptic/models`, by default in `~/.cache`."""
    return cache_folder("models")


def place_of(remote: Remote) -> Path:
    """Where a file lies once it is fetched, and where it may be put by hand."""
    return models_folder() / remote.name


def fetch(remote: Remote, key: str = "MODEL", schemes: Sequence[str] = ("https",)) -> Path:
    """The file, from the cache or else from its server.

    Args:
        remote: its address, and its checksum where that is known: it is looked at whenever the file is asked for.
        key: as what users may give the file's path instead, told in errors.
        schemes: of addresses that may be asked, by redirection too.
    Raises:
        ValueError: it cannot be had, telling what to put where; or it is not the file that was released.
    """
    path = place_of(remote)
    if path.is_file():
        if remote.sha256 is not None and known_sha256(path) != remote.sha256:
            raise ValueError(
                f"{path}: damaged, or not the released file: its SHA-256 differs; remove it to fetch it anew"
            )
        return path
    log.info("fetching %s into %s", remote.url, path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        _download(remote, path, schemes)
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: of an address that is none
        raise ValueError(
            f"{remote.url} cannot be fetched ({_reason(error)}); fetch it elsewhere and put it at {path}, or give its "
            f"path as {key}"
        ) from None
    return path


def _download(remote: Remote, path: Path, schemes: Sequence[str]) -> None:
    # A name of its own, since several processes may want the same file.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
        try:
            digest = _receive(remote, file, schemes)
            if remote.sha256 not in (None, digest):
                raise OSError(f"what came has the SHA-256 {digest}, the released file {remote.sha256}")
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _receive(remote: Remote, file: IO[bytes], schemes: Sequence[str]) -> str:
    """Writes what a server sends; returns its SHA-256.

    Raises:
        OSError: it sends nothing, too much, or less than it said; or it says nothing of how much it will be, and no
            checksum would tell that something lacks.
    """
    _check_scheme(remote.url, schemes)
    watch = _watch.get() or (lambda name, done, total: None)
    digest, done = hashlib.sha256(), 0
    request = Request(remote.url, headers={"User-Agent": "synoptic"})
    with build_opener(_Redirects(schemes)).open(request, timeout=TIMEOUT) as answer:
        total = _length(answer.headers.get("Content-Length"))
        if total is None and remote.sha256 is None:
            raise OSError("the server does not say how long the file is")
        while block := answer.read(_BLOCK):
            done += len(block)
            if done > LARGEST:
                raise OSError(f"it is larger than {LARGEST:,} bytes")
            file.write(block)
            digest.update(block)
            watch(remote.name, done, total)
    if done != (done if total is None else total):
        raise OSError(f"it ended after {done:,} of {total:,} bytes")
    return digest.hexdigest()


def _length(said: str | None) -> int | None:
    """What a header says of the length; numbers that no file has are refused before anything is read."""
    if said is None:
        return None
    if not said.isdecimal() or not 0 < int(said) <= LARGEST:
        raise OSError(f"the server says that it has {said} bytes")
    return int(said)


def _check_scheme(url: str, schemes: Sequence[str]) -> None:
    if urlsplit(url).scheme not in schemes:
        raise URLError(f"{url} is no address of {' or '.join(schemes)}")


class _Redirects(HTTPRedirectHandler):
    """Follows redirections to addresses of the schemes alone."""

    def __init__(self, schemes: Sequence[str]):
        self.schemes = schemes

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        _check_scheme(newurl, self.schemes)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    code = f"HTTP {error.code} " if isinstance(error, HTTPError) else ""
    reason = error.reason if isinstance(error, URLError) else error
    return code + " ".join(str(reason).split()) or type(error).__name__


def _remove_stale(path: Path) -> None:
    """Removes what killed processes left of a file; one that is being fetched is written to all the time."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        if time.time() - left.stat().st_mtime > STALE:
            left.unlink(missing_ok=True)
