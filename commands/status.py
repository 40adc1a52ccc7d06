"""``run.py status``: shows how runs are doing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Sequence

from utils.errors import UserError
from utils.files import expanded


def status(runs: list[str], /, *, json_: bool = False, hashes: bool = False) -> int:
    """Show how runs are doing, during and after training: progress, rate, time left, losses, validation results, checkpoints,
    slow ranks, broken records, restarts, warnings. The command only reads the runs' folders, so it does not disturb them.

    Args:
        runs: folder of a run (its --output), or a folder of runs.
        json_: print a JSON list with an object for each run.
        hashes: verify the hashes of checkpoints, which reads all their bytes (default: compare sizes).

    Examples:
        python run.py status runs/grounding/demo
        python run.py status runs/sweep/x                  every run in the folder, one per line
        python run.py status runs --json | jq '.[] | select(.healthy | not) | .folder'

    Returns:
        0 all runs are running or finished; 1 a run was cut, stopped or killed, has failed, or hangs (in a folder of
        runs, a run that never started does not count); 2 the command line is wrong, or a folder contains no run
    """
    from tools.runs.reading import NEVER_STARTED, read_runs
    from tools.status import text
    from tools.status.facts import status_of

    statuses = [status_of(run, hashes) for run in read_runs(folders_of(runs))]
    columns = shutil.get_terminal_size((text.WIDEST, 24)).columns
    if json_:
        sys.stdout.write(json.dumps([dataclasses.asdict(one) for one in statuses], indent=2) + "\n")
    elif len(statuses) == 1:
        sys.stdout.write(text.page(statuses[0], columns))
    else:
        sys.stdout.write(text.table(statuses, columns))
    # A folder of runs may contain old runs that failed to start. They do not indicate a problem with the other runs.
    given = {os.path.realpath(expanded(name)) for name in runs}
    return (
        0
        if all(
            one.healthy or (one.state == NEVER_STARTED and os.path.realpath(one.folder) not in given)
            for one in statuses
        )
        else 1
    )


def folders_of(given: Sequence[str]) -> list[str]:
    """Returns the given folders of runs and the folders of runs inside the given folders, without duplicates.

    Raises:
        UserError: if a folder does not exist.
    """
    from tools.runs.finding import runs_below

    folders: dict[str, str] = {}
    for name in given:
        folder = expanded(name)
        if not folder.is_dir():
            raise UserError(
                "no such folder", where=folder, remedy="pass the folder of a run, its --output, or a folder of runs"
            )
        # A folder without runs is kept: reading it reports what is missing.
        for found in runs_below(folder) or [folder]:
            folders.setdefault(os.path.realpath(found), str(found))
    return list(folders.values())
