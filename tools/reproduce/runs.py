"""Makes a run once, in a separate process, and records it in its folder."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from engine.checkpoint import CHECKPOINTS
from engine.run_files import EVALUATION_FILE, MADE_BY_FILE
from launch.command import launch
from launch.placement import Placement
from tasks import ROOT
from tasks.run_flags import RunFlags
from tools.reproduce.identity import code_identity, weights_identity
from utils.commands import argv_of
from utils.errors import UserError
from utils.files import read_json, write_text
from utils.flags import WrongValueError, read_by


@dataclass(frozen=True)
class RunToMake:
    """A run, or with ``evaluates``, an evaluation of other weights: the config, folder, overrides and placement.

    Attributes:
        draws: number of bootstrap draws for the intervals of the metrics; 0 for no intervals.
        weights: the file or folder that the run starts from. The content of these weights also identifies a finished run.
    """

    config: str
    folder: Path
    overrides: tuple[str, ...] = ()
    placement: Placement = Placement()
    evaluates: bool = False
    draws: int = 0
    weights: str | None = None

    def command(self, *, measure: bool = False) -> list[str]:
        """Returns the arguments of ``run.py``.

        Args:
            measure: whether to evaluate the finished run's weights again, without training.
        """
        draws = [f"evaluation.bootstrap={self.draws}"] if self.draws else []
        flags = RunFlags(
            config=self.config, output=self.folder, resume=not self.evaluates, evaluate=self.evaluates or measure
        )
        return argv_of(launch, *self.overrides, *draws, flags=flags, placement=self.placement)

    def identity(self) -> list[str]:
        """Returns the command that identifies finished runs. It does not contain the draws, which change neither weights nor
        numbers."""
        return replace(self, draws=0).command()


def make(run: RunToMake) -> dict[str, Any]:
    """Makes a run, unless it is already finished, and returns its record: command, folder, source code, draws, and duration in
    seconds, including interrupted attempts.

    A finished run that has no intervals, or intervals from a different number of draws, is measured again but not trained.

    Raises:
        UserError: if the run failed, or was trained from weights that differ from the weights now at the path.
    """
    started_from = None if run.weights is None else weights_identity(run.weights)["sha256"]
    done = finished(run)
    if done is not None and done.get("weights", started_from) != started_from:
        if not run.evaluates:
            raise UserError(
                f"{run.folder} was trained from weights that {run.weights} no longer has", remedy="use another --output"
            )
        sys.stdout.write(f"{run.folder}: {run.weights} has changed; measuring it again\n")
        done = None
    if done is not None and run.draws in (0, done.get("draws", 0)):
        sys.stdout.write(f"{run.folder}: finished before, in {done['seconds']:.0f} s\n")
        return done
    if done is not None:
        sys.stdout.write(f"{run.folder}: finished before; its weights are measured again for the intervals\n")
    sources = _sources(run)
    note = _noted(run) or {"command": run.identity(), "folder": str(run.folder), "finished": False, "seconds": 0.0}
    if (
        done is None
    ):  # recorded first, because training affects the weights even if it is interrupted together with this process
        note["code"] = sources
        _write_note(run, note)
    started, status = time.perf_counter(), None
    try:
        status = run_command([sys.executable, str(ROOT / "run.py"), *run.command(measure=done is not None)])
    finally:
        if status == 0:
            note |= {"finished": True, "draws": run.draws, "code": sources, "weights": started_from}
        note["seconds"] = round(note["seconds"] + time.perf_counter() - started, 1)
        _write_note(run, note)
    if status != 0:
        raise UserError(f"the run ended with status {status} (see above)", remedy="rerun the same command to resume it")
    return note


def finished(run: RunToMake) -> dict[str, Any] | None:
    """Returns the record of a previous run of the same command, or None if the run did not finish."""
    noted = _noted(run)
    return noted if noted.get("finished") and (run.folder / EVALUATION_FILE).is_file() else None


def _noted(run: RunToMake) -> dict[str, Any]:
    """Returns the record of the last run of the same command, or an empty record if there was none."""
    noted = _read_note(run)
    # Previous versions wrote the same arguments in a different order.
    return noted if sorted(noted.get("command") or ()) == sorted(run.identity()) else {}


def _read_note(run: RunToMake) -> dict[str, Any]:
    try:
        noted: dict[str, Any] = read_json(run.folder / MADE_BY_FILE)
        return noted
    except (OSError, ValueError):
        return {}


def _write_note(run: RunToMake, note: dict[str, Any]) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(run.folder / MADE_BY_FILE, json.dumps(note, indent=2) + "\n")


def _sources(run: RunToMake) -> list[dict[str, Any]] | None:
    """Returns the identities of the source code that produced the contents of the run's folder, with the current identity last.
    Returns None if the source code that trained the run so far was not recorded."""
    code = code_identity()
    if not (run.folder / CHECKPOINTS).exists():
        return [code]
    before: list[dict[str, Any]] | None = _read_note(run).get("code")
    if before is None:
        return None
    return before if before[-1:] and before[-1]["sha256"] == code["sha256"] else [*before, code]


def run_command(command: Sequence[str]) -> int:
    """Runs a command, showing its output to the user, and returns its exit status."""
    sys.stdout.flush()
    return subprocess.run(command, check=False).returncode


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise WrongValueError(f"{text!r} is not a list of seeds, such as 0,1,2") from None


Seeds = Annotated[tuple[int, ...] | None, read_by(_seeds, n_tokens=1, accepts_keys=False, metavar="SEED,SEED")]
"""Type of the option --seeds."""
