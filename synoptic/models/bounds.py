"""What the sizes of a network may be. Configurations come from files too, and a spoiled one must not build anything."""

from __future__ import annotations

from typing import Any

# Far above any network, and low enough that no tensor's number of bytes overflows 64 bits.
LARGEST = 2**15
MOST_BLOCKS = 2**10
LARGEST_VOCABULARY = 2**24


def check_sizes(config: Any, *names: str, least: int = 1, most: int = LARGEST) -> None:
    """Sees to it that those fields of a configuration that are not None lie from `least` to `most`.

    Raises:
        ValueError: naming the first that does not.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            raise ValueError(f"{name}={value} should be from {least} to {most}")


def check_transformer(config: Any) -> None:
    """Sees to it that `width`, `depth` and `heads` make a transformer.

    Raises:
        ValueError: for a size out of bounds, and for heads that do not divide the width.
    """
    check_sizes(config, "width", "heads")
    check_sizes(config, "depth", least=0, most=MOST_BLOCKS)
    if config.width % config.heads:
        raise ValueError(f"heads={config.heads} does not divide width={config.width}")
