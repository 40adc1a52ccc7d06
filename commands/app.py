"""The whole command line of ``run.py``: running a task, with all other commands as its subcommands."""

from __future__ import annotations

import sys
from typing import Literal

from commands import COMMANDS
from launch.command import launch
from tasks import TASKS
from utils.commands import CommandLine, command_line


def full_command_line(*, load_all: bool = False) -> CommandLine:
    """Returns the command that runs a task, with all other commands as its subcommands. If ``load_all`` is set, imports the
    modules of the commands, so that their own subcommands are included."""
    app, examples = command_line(launch, "run.py")
    for position, (name, command) in enumerate(COMMANDS.items()):
        if load_all:
            app.command(command_line(command.load(), name).app, name=name)
        else:
            app.command(command.target, name=name, help=command.help, sort_key=position)
    tasks = "".join(f"  {name:13}{entry.help}\n" for name, entry in TASKS.items())
    return CommandLine(app, f"\ntasks (--task TASK):\n{tasks}{examples}")


def completion(shell: Literal["bash", "zsh", "fish"] = "bash", /) -> int:
    """Print a script that makes your shell complete the commands and flags of x2vlm (not of python run.py).

    Args:
        shell: your shell.

    Examples:
        x2vlm completion bash > ~/.local/share/bash-completion/completions/x2vlm
        x2vlm completion zsh > ~/.zfunc/_x2vlm
        x2vlm completion fish > ~/.config/fish/completions/x2vlm.fish
    """
    script = full_command_line(load_all=True).app.generate_completion(prog_name="x2vlm", shell=shell)
    # If nothing else matches, bash should complete file names, as zsh and fish do by default.
    sys.stdout.write(script.replace("complete -F ", "complete -o default -F "))
    return 0
