"""The command line: ``python run.py --task TASK ...`` runs a task, and ``python run.py COMMAND ...`` runs another command.

``python run.py --help`` lists tasks and commands. The module of a command is imported only when the command runs. To add a
command, write its function in ``commands/`` and add an entry to :data:`commands.COMMANDS`.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from commands import COMMANDS
from tasks import TASKS
from utils.errors import UserError, one_line_errors

START = """run.py: pass a task, a config or a command.

  make demo                           pre-train a small model on synthetic scenes, in minutes on a CPU
  python run.py --config FILE         run the task of a config; configs/ contains the paper's configs
  python run.py --task TASK           run a task with its default config; TASK can also be a folder that contains task.py
  python run.py --help                all flags, tasks and commands
"""


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Runs a command or a task. Returns the exit status."""
    if not argv:
        sys.stderr.write(START)
        return 2
    # Imported inside one_line_errors, so that a missing package is reported in one line.
    from commands.app import full_command_line
    from utils.commands import execute

    first, *rest = argv
    if first in COMMANDS:
        return execute(COMMANDS[first].load(), rest, f"run.py {first}", known_keys)
    if not first.startswith("-") and "=" not in first:
        raise UserError(_unknown_command(first))
    for previous, word in pairwise(argv):
        if word in COMMANDS and not previous.startswith("-"):
            raise UserError(f"{word} is a command", remedy=f"put it first: run.py {word} ...")
    return execute(full_command_line(), argv, "run.py", known_keys)


def known_keys() -> Sequence[str]:
    """Returns the keys of all configs."""
    from tasks.kinds import imported  # imports pydantic, so it is imported only after a user error
    from utils.config import fields_of

    return list(dict.fromkeys(key for entry in TASKS.values() for key, _ in fields_of(imported(entry.config))))


def _unknown_command(word: str) -> str:
    if word.endswith((".yaml", ".yml")):
        return f"{word!r} is not a command; to run a config, pass --config {word}"
    if word and Path(word).is_dir():
        return f"{word!r} is not a command; to run the task in a folder, pass --task {word}"
    if word in TASKS:
        return f"{word} is a task, not a command; pass --task {word}"
    close = difflib.get_close_matches(word, [*COMMANDS, *TASKS], n=1, cutoff=0.7)
    if not close:
        return (
            f"{word!r} is not a command; known commands: {', '.join(COMMANDS)}; to run a task, pass --task or --config"
        )
    return f"{word!r} is not a command; did you mean {'--task ' if close[0] in TASKS else ''}{close[0]}?"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
