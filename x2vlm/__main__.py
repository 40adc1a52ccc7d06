"""``python -m x2vlm COMMAND``, and ``x2vlm COMMAND`` where it is installed: what ``python run.py COMMAND`` is in a checkout."""

from __future__ import annotations

import sys

from run import main


def run() -> int:
    """Run the command line; returns the exit status."""
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
