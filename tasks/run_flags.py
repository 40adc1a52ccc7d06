"""Flags that set what a run does. This module does not import torch, so the help and mistakes in the flags do not wait for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.commands import FLAGS
from utils.flags import File, Positive

if TYPE_CHECKING:
    from tasks.binding import BoundRun


@FLAGS
@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Flags that set what a run does and where its results are written.

    Attributes:
        config: YAML file; see configs/ (default: the default config of the task).
        output: folder of the run (default: runs/<task>/<config's name>).
        resume: resume from the newest checkpoint in --output.
        evaluate: do not train; evaluate the weights of init.checkpoint (with --resume: the weights of the run).
        wait: seconds to wait if --output is in use, because a lost node releases its run late (default: fail immediately).
    """

    config: File | None = None
    output: Path | None = None
    resume: bool = False
    evaluate: bool = False
    wait: Positive | None = None

    @property
    def evaluates_other_weights(self) -> bool:
        """True if the run only evaluates the weights of ``init.checkpoint``."""
        return self.evaluate and not self.resume


def output_folder(run: BoundRun, flags: RunFlags) -> Path:
    """Returns the folder of a run: ``--output``, or a folder in ``runs/``. By default, an evaluation of other weights gets a
    separate folder next to the run's folder."""
    suffix = "-evaluate" if flags.evaluates_other_weights else ""
    return flags.output or Path("runs") / run.source.name / f"{run.file.stem}{suffix}"
