"""What nobody should put into a file of weights, and somebody might."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Attack:
    """Runs a command when it is unpickled by a reader that trusts it."""

    def __init__(self, call: Callable[..., Any], told: str):
        self.call, self.told = call, told

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return self.call, (self.told,)


class Thing:
    """Of a class that only its own training knows."""

    def __init__(self) -> None:
        self.itself, self.held = self, [torch.ones(1), {"a": (1, 2)}]


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def bomb(depth: int) -> list[Any]:
    """Few lists that hold each other ten times."""
    value: list[Any] = ["x"]
    for _ in range(depth):
        value = [value] * 10
    return value
