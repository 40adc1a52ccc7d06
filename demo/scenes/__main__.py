"""``python -m demo.scenes --out DIR [--seed 0]``: draw the scenes data set."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from dataset.prepare.folders import whole_number
from demo.folder import command_parser, run_command
from demo.scenes.build import FACTS, build
from utils.errors import one_line_errors


def _size(text: str) -> tuple[int, int]:
    side = whole_number(32, 1024)
    parts = text.lower().split("x")
    if len(parts) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 64, or 96x64 for width x height")
    return side(parts[0]), side(parts[-1])


@one_line_errors
def main() -> int:
    """Draw the data set and print one line of facts; exit status 2 for a mistake of the user."""
    parser = command_parser("scenes", "Draw the scenes data set.")
    parser.add_argument("--seed", type=whole_number(0, 2**31 - 1), default=0)
    parser.add_argument("--train", type=whole_number(1, 1_000_000), default=6000, metavar="N", help="training scenes")
    parser.add_argument("--val", type=whole_number(1, 10_000), default=200, metavar="N", help="validation scenes")
    parser.add_argument("--test", type=whole_number(1, 10_000), default=200, metavar="N", help="test scenes")
    parser.add_argument(
        "--size", type=_size, default=(64, 64), metavar="PIXELS", help="64, or 96x64 for width x height"
    )
    started = time.monotonic()

    def summary(facts: dict[str, Any]) -> str:
        arguments = facts["arguments"]
        width, height = arguments["size"]
        return (
            f"{arguments['train']} train, {arguments['val']} val, {arguments['test']} test scenes "
            f"of {width}x{height} pixels; "
            f"{sum(facts['objects'].values())} objects, {sum(facts['relations'].values())} relational phrases, "
            f"{sum(facts['sentences'].values())} statements on two pictures, "
            f"{sum(sum(grains.values()) for grains in facts['referring'].values())} referring phrases, "
            f"{sum(facts['questions'].values())} questions, "
            f"{facts['vocabulary']} word pieces; {time.monotonic() - started:.0f} s"
        )

    return run_command(parser, FACTS, build, summary)


if __name__ == "__main__":
    sys.exit(main())
