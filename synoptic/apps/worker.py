"""One of several processes that train together: ``python -m synoptic.apps.worker METHOD CONFIG.json COMMAND``.

COMMAND is what the user typed, which the run writes down. The process that started it reads its standard output, on
which stands in the end what went wrong.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from synoptic import run
from synoptic.config import from_dict, load_json
from synoptic.methods import get_method


def main() -> int:
    """Trains; 0 done, 2 the user's mistake, 1 a fault, 130 interrupted, as the command line."""
    method, file, *sys.argv = sys.argv[1:]
    try:
        run.train(method, from_dict(get_method(method).config, load_json(Path(file)), file))
    except ValueError as error:
        print(" ".join(str(error).split()))
        return 2
    except KeyboardInterrupt as interrupt:
        print(interrupt)
        return 130
    except Exception:
        traceback.print_exc(file=sys.stdout)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
