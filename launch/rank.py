"""A rank that ``run.py`` has started: ``python -m launch.rank FILE``.

The file contains the values of the config as the launcher has read them, with their locations, so a rank reads neither the
config's files nor the command line.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.job import RunFlags, run_task
from utils.errors import one_line_errors
from utils.files import read_json

if TYPE_CHECKING:
    from tasks.binding import BoundRun


def write_run(file: Path, run: BoundRun, flags: RunFlags) -> None:
    """Writes the file for the ranks of this node. ``flags.output`` must be set."""
    content = {
        "task": run.source.argument,
        "file": str(run.file),
        "values": run.read.values,
        "locations": list(run.read.locations.items()),
        "flags": asdict(flags) | {"output": str(flags.output)},
        "command": sys.argv,
    }
    file.write_text(json.dumps(content), encoding="utf-8")


@one_line_errors
def main(file: Path) -> int:
    """Runs the task of the file. Returns the exit status."""
    from tasks.binding import bind_task
    from tasks.kinds import find_task
    from utils.config_files import ReadConfig

    given = read_json(file)
    locations = {tuple(keys): location for keys, location in given["locations"]}
    run = bind_task(find_task(given["task"]), Path(given["file"]), ReadConfig(given["values"], locations, malformed=[]))
    flags = RunFlags(**given["flags"] | {"output": Path(given["flags"]["output"])})
    return run_task(run, flags, command=given["command"])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
