"""A rank that ``run.py`` has started: ``python -m launch.rank FILE``.

The file contains the run as the launcher has bound it, so a rank reads neither YAML nor a command line.
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
    """Writes the file for the ranks of this node."""
    content = {
        "task": run.source.argument,
        "file": str(run.file),
        "overrides": run.overrides,
        "values": run.read.values,
        "locations": [[keys, location] for keys, location in run.read.locations.items()],
        "flags": asdict(flags) | {"output": None if flags.output is None else str(flags.output)},
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
    read = ReadConfig(given["values"], {tuple(keys): location for keys, location in given["locations"]}, malformed=[])
    run, flags = bind_task(find_task(given["task"]), Path(given["file"]), given["overrides"], read), given["flags"]
    output = None if flags["output"] is None else Path(flags["output"])
    return run_task(run, RunFlags(**flags | {"output": output}), command=given["command"])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
