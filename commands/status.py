"""``run.py status``: how runs are doing."""

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
    """How runs are doing, while they go and after: progress, rate, time left, losses, validations, checkpoints, slow ranks,
    broken records, restarts, warnings. Reads their folders alone, and disturbs nothing.

    Args:
        runs: folder of a run, its --output, or a folder of runs.
        json_: print a list with an object for each run.
        hashes: compare checkpoints with their hashes, which reads all their bytes (default: compare sizes).

    Examples:
        python run.py status runs/grounding/demo
        python run.py status runs/sweep/x                  every run below it, a line each
        python run.py status runs --json | jq '.[] | select(.well | not) | .folder'

    Returns:
        0 all runs are running or finished; 1 a run was cut, stopped or killed, has failed, or hangs (below
        a folder of runs, one that never started does not count); 2 the command line is wrong, or a folder holds no run
    """
    from tools.runs.reading import NEVER_STARTED, read_runs
    from tools.status import text
    from tools.status.facts import status_of

    statuses = [status_of(run, hashes) for run in read_runs(folders_of(runs), brief=True)]
    columns = shutil.get_terminal_size((text.WIDEST, 24)).columns
    if json_:
        sys.stdout.write(json.dumps([dataclasses.asdict(one) for one in statuses], indent=2) + "\n")
    elif len(statuses) == 1:
        sys.stdout.write(text.page(statuses[0], columns))
    else:
        sys.stdout.write(text.table(statuses, columns))
    # Below a folder of runs, starts that failed stay for ever; nothing is wrong with the other runs for that.
    given = {os.path.realpath(expanded(name)) for name in runs}
    return (
        0
        if all(
            one.well or (one.state == NEVER_STARTED and os.path.realpath(one.folder) not in given) for one in statuses
        )
        else 1
    )


def folders_of(given: Sequence[str]) -> list[str]:
    """The folders of runs that are given, or lie below a given one, each once.

    Raises:
        UserError: a folder does not exist.
    """
    from tools.runs.finding import runs_below

    folders: dict[str, str] = {}
    for name in given:
        folder = expanded(name)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give the folder of a run, its --output, or a folder of runs")
        # A folder without runs is kept: reading it reports what is missing.
        for found in runs_below(folder) or [folder]:
            folders.setdefault(os.path.realpath(found), str(found))
    return list(folders.values())
