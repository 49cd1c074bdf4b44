"""`python -m synoptic`: the same as the command `synoptic`."""

import sys

from synoptic.apps.cli import main

if __name__ == "__main__":
    sys.exit(main())
