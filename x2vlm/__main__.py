"""``python -m x2vlm COMMAND`` or, once installed, ``x2vlm COMMAND``: equivalent to ``python run.py COMMAND`` in a checkout."""

from __future__ import annotations

import sys

from run import main


def run() -> int:
    """Runs the command line and returns the exit status."""
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
