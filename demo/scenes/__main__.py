"""``python -m demo.scenes``: draw the scenes data set."""

from __future__ import annotations

import sys

from demo.scenes.build import scenes
from utils.commands import call

if __name__ == "__main__":
    sys.exit(call(scenes, sys.argv[1:], "python -m demo.scenes"))
