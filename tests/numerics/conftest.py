from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy_run import CONFIG, ToyLoader, ToyTask, score

from synoptic.engine.loop import train


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    train(ToyTask(), ToyLoader(), CONFIG, out, score)
    return out
