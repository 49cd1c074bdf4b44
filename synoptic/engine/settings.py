"""What the engine takes for sensible settings."""

from __future__ import annotations

import math
from operator import attrgetter

from synoptic.config import TrainConfig

# The least and the greatest value of every setting that the engine reads. None is for settings that may be left out.
RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, math.inf),
    "batch": (1, math.inf),
    "accumulate": (1, math.inf),
    "log_every": (1, math.inf),
    "checkpoint_every": (1, math.inf),
    "evaluate_every": (1, math.inf),
    "checkpoint.keep": (1, math.inf),
    "optim.lr": (0.0, math.inf),
    "optim.final_lr": (0.0, 1.0),
    "optim.warmup": (0.0, 1.0),
    "optim.weight_decay": (0.0, math.inf),
    "optim.final_weight_decay": (0.0, math.inf),
    "optim.clip": (0.0, math.inf),
    "optim.ema": (0.0, 1.0),
}


def check(config: TrainConfig) -> None:
    """Refuses settings that mean nothing.

    Raises:
        ValueError: naming the setting, its value and its range.
    """
    for key, (least, greatest) in RANGES.items():
        value = attrgetter(key)(config)
        if value is not None and not least <= value <= greatest:
            upper = "" if greatest == math.inf else f" and at most {greatest:g}"
            raise ValueError(f"{key}={value}: must be at least {least:g}{upper}")
    if not all(0.0 <= beta < 1.0 for beta in config.optim.betas):
        raise ValueError(f"optim.betas={config.optim.betas}: both must be at least 0 and below 1")
    if config.accumulate > config.batch:
        raise ValueError(f"accumulate={config.accumulate}: more parts than pictures in batch={config.batch}")
