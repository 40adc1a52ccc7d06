"""The command line: ``python run.py --task TASK ...`` runs a task, ``python run.py COMMAND ...`` runs another command.

``python run.py --help`` lists both. The module of a command is imported only when the command runs.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tasks import TASKS
from utils.errors import UserError, one_line_errors


class Command(NamedTuple):
    """A command. ``module`` defines ``main(argv) -> int``, from the arguments after the command's name to the exit status.
    ``overrides``: it takes ``--config`` and ``key=value`` arguments, whose keys are checked before the module is imported."""

    module: str
    help: str
    overrides: bool = False


COMMANDS = {
    "config": Command(
        "tools.config.command", "the keys of a task's config, or a file's values and where they come from"
    ),
    "doctor": Command(
        "tools.doctor.command", "check files, data, weights, memory and one step before a run, in half a minute", True
    ),
    "prepare": Command("tools.prepare.command", "records for pre-training from the official files of public data sets"),
    "index-shards": Command("tools.index_shards", "where each record of a run's shards begins, by several processes"),
    "leaks": Command("tools.leaks", "images that training data share with held-out splits"),
    "tables": Command("tools.tables", "the cells of the paper's tables, and which of their files are here"),
    "reproduce": Command(
        "tools.reproduce.command", "run cells of the paper's tables; numbers beside the published ones"
    ),
    "sweep": Command("tools.sweep", "variants of a config one after another, and one table"),
    "report": Command("tools.report.command", "one HTML page of a run, or of several side by side"),
    "status": Command("tools.status.command", "how runs are doing: progress, losses, checkpoints, slow ranks, faults"),
    "checkpoint": Command(
        "tools.checkpoint.command", "what a weight file is, its published or our form, and how two files differ"
    ),
    "predict": Command("x2vlm.command", "ask a trained model about your images"),
    "index": Command("x2vlm.search.index_command", "embed a folder of images, to search it by a sentence"),
    "search": Command("x2vlm.search.search_command", "the images of an index that a sentence is about, and where"),
    "export": Command("x2vlm.export.command", "a trained model as graphs of ONNX, for machines without a GPU"),
    "serve": Command("x2vlm.page.command", "a page in the browser on which anyone tries models"),
    "plan": Command("tools.plan.command", "the largest micro-batch that fits, and how long a run takes", True),
    "tokenizer": Command("tools.tokenizer", "learn a tokenizer from the texts of your records"),
}

START = """run.py: give a task, a config or a command.

  make demo                           pre-train a small model on synthetic scenes, in minutes on a CPU
  python run.py --config FILE         run the task of a config; configs/ has those of the paper
  python run.py --task TASK           run a task with its default config; TASK may be a folder of yours with task.py
  python run.py --help                all flags, tasks and commands
"""


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Run a command or a task; returns the exit status."""
    if not argv:
        sys.stderr.write(START)
        return 2
    first, *rest = argv
    if first in COMMANDS:
        command = COMMANDS[first]
        if command.overrides:
            _check_keys(rest)
        return importlib.import_module(command.module).main(rest)
    if not first.startswith("-") and "=" not in first:
        raise UserError(_unknown_command(first))
    launch = importlib.import_module("tasks.launch")
    return launch.main(argv, lists())


def _check_keys(words: Sequence[str]) -> None:
    """Look for misspelled keys in the config and the overrides of a command, before its module imports torch.

    Raises:
        ConfigError: see :func:`tasks.known_keys.check_keys`.
    """
    config = next((words[place + 1] for place, word in enumerate(words[:-1]) if word == "--config"), None)
    if config is not None and "--task" not in words and Path(config).is_file():
        kinds = importlib.import_module("tasks.kinds")
        kinds.choose(config, [word for word in words if "=" in word and not word.startswith("-")], None).check_keys()


def lists() -> str:
    """The lists of commands and tasks for the help."""
    lines = ["commands (python run.py COMMAND --help):"]
    lines += [f"  {name:13}{command.help}" for name, command in COMMANDS.items()]
    lines += ["", "tasks (--task TASK):"]
    lines += [f"  {name:13}{entry.help}" for name, entry in TASKS.items()]
    return "\n".join(lines) + "\n\n"


def _unknown_command(word: str) -> str:
    if word.endswith((".yaml", ".yml")):
        return f"{word!r} is no command; to run a config, give --config {word}"
    if Path(word).is_dir():
        return f"{word!r} is no command; to run the task of a folder, give --task {word}"
    if word in TASKS:
        return f"{word} is a task and no command; give --task {word}"
    close = difflib.get_close_matches(word, [*COMMANDS, *TASKS], n=1, cutoff=0.7)
    if not close:
        return f"{word!r} is no command; known: {', '.join(COMMANDS)}; to run a task, give --task or --config"
    return f"{word!r} is no command; did you mean {'--task ' if close[0] in TASKS else ''}{close[0]}?"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
