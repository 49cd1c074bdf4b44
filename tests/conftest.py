"""What all tests share: no network, no home of the user's, one thread a worker, and the folders of real data."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Torch, OpenMP and the Hugging Face libraries read these when they are imported, so they cannot wait for a fixture.
_home = tempfile.TemporaryDirectory(prefix="synoptic-home-")
os.environ |= {
    "HOME": _home.name,
    "HF_HOME": f"{_home.name}/huggingface",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
}
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers share the cores

# The same examples on every machine, however slow: a red test is repeatable.
settings.register_profile("synoptic", deadline=None, derandomize=True)
settings.load_profile("synoptic")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this machine can be reached."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests do not use the network: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real photographs."""
    return _folder("SYNOPTIC_DATA", "real photographs")


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Folder of small models with random weights and the outputs of their makers' own code."""
    return _folder("SYNOPTIC_FIXTURES", "reference outputs")


def _folder(variable: str, holds: str) -> Path:
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set; it names the folder of {holds}")
    folder = Path(os.environ[variable])
    assert folder.is_dir(), f"{variable}={folder} is not a folder"
    return folder.resolve()
