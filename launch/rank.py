"""A rank that ``run.py`` has started: ``python -m launch.rank FILE``.

The file contains the values of the config as the launcher has read them, with their locations, so a rank parses neither the
files of the config nor the command line.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.run_flags import RunFlags
from utils.errors import one_line_errors
from utils.files import read_json

if TYPE_CHECKING:
    from tasks.binding import BoundRun


def write_run(file: Path, run: BoundRun, flags: RunFlags) -> None:
    """Writes the file for the ranks of this node. ``flags.output`` must be set."""
    content = {
        "run": run.as_json(),
        "flags": asdict(flags) | {"output": str(flags.output)},
        "command": sys.argv,
    }
    file.write_text(json.dumps(content), encoding="utf-8")


@one_line_errors
def main(file: Path) -> int:
    """Runs the task of the file. Returns the exit status."""
    # Imported inside one_line_errors, so that a missing package is reported in one line.
    from tasks.binding import rebind
    from tasks.job import run_task

    given = read_json(file)
    flags = RunFlags(**given["flags"] | {"output": Path(given["flags"]["output"])})
    return run_task(rebind(given["run"]), flags, command=given["command"])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
