"""A run as a process of its own, made once: what it did is noted in its folder."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.kinds import ROOT
from tools.reproduce.measured import EVALUATION
from utils.errors import UserError
from utils.files import write_text

NOTE = "made_by.json"
"""File in a run's folder: the command that made it, and how long it took."""


@dataclass(frozen=True)
class Run:
    """A run: its config, its folder, the flags beside these, and its overrides."""

    config: str
    folder: Path
    flags: tuple[str, ...]
    overrides: tuple[str, ...]

    def command(self) -> list[str]:
        """The words after ``run.py``."""
        return ["--config", self.config, "--output", str(self.folder), *self.flags, *self.overrides]


def make(run: Run) -> dict[str, Any]:
    """Make a run, unless this very run came to its end before; returns its command, folder and seconds, cut attempts included.

    Raises:
        UserError: it failed.
    """
    if (done := finished(run)) is not None:
        sys.stdout.write(f"{run.folder}: finished before, in {done['seconds']:.0f} s\n")
        return done
    before = _noted(run).get("seconds", 0.0)
    started = time.perf_counter()
    note: dict[str, Any] = {"command": run.command(), "folder": str(run.folder), "finished": False}
    try:
        status = run_command([sys.executable, str(ROOT / "run.py"), *run.command()])
        note["finished"] = status == 0
    finally:
        note["seconds"] = round(before + time.perf_counter() - started, 1)
        if run.folder.is_dir():
            write_text(run.folder / NOTE, json.dumps(note, indent=2) + "\n")
    if status != 0:
        raise UserError(f"the run ended with status {status}, as printed above; the same command resumes it")
    return note


def finished(run: Run) -> dict[str, Any] | None:
    """What an earlier run of the same command noted; None where there is none that came to its end."""
    noted = _noted(run)
    return noted if noted.get("finished") and (run.folder / EVALUATION).is_file() else None


def _noted(run: Run) -> dict[str, Any]:
    """What the last run of the same command noted; empty where there is none."""
    try:
        noted: dict[str, Any] = json.loads((run.folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if noted.get("command") == run.command() else {}


def run_command(command: Sequence[str]) -> int:
    """Run a command whose output is the user's to see; returns its exit status."""
    sys.stdout.flush()
    return subprocess.run(command, check=False).returncode


def placement_words(flags: argparse.Namespace, cpu: int | None = None) -> tuple[str, ...]:
    """The flags of :func:`utils.launcher.add_placement`, as words of a command; ``cpu``: processes if neither number is given."""
    if flags.gpus is not None or flags.cpu is not None:
        cpu = flags.cpu
    given = {"--gpus": flags.gpus, "--cpu": cpu, "--master": flags.master}
    words = [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
    nodes = [] if flags.nodes == 1 else ["--nodes", str(flags.nodes), "--node-rank", str(flags.node_rank)]
    return (*words, *nodes)


def parse_seeds(text: str) -> tuple[int, ...]:
    """ "0,1,2" for argparse."""
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds, such as 0,1,2") from None
