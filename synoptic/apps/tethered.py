"""A command as the child of another one, which it never outlives: ``python -m synoptic.apps.tethered MODULE [WORDS]``.

The parent holds the other end of its standard input. When that closes, because the parent ended in whatever way, the
child ends with all that it started. What it was writing then, it writes atomically, so nothing breaks.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def main() -> None:
    """Runs the module that the first word names, with the other words."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
