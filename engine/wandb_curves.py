"""The curves of a run at Weights & Biases, beside those of TensorBoard."""

from __future__ import annotations

import importlib.util
import secrets
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from engine.outlet import Outlet
from utils.config import Config
from utils.config_files import read_yaml
from utils.errors import UserError
from utils.files import write_text

if TYPE_CHECKING:
    from wandb import Run

ID_FILE = "wandb_id"
"""Holds, in a run's folder, the id under which W&B knows the run."""

FINISH_TIMEOUT_S = 60.0
"""Wait at most so long at the end for what is not sent yet; it stays in the run's folder, for `wandb sync`."""


class WandbConfig(Config):
    """Where a run is shown at Weights & Biases."""

    project: str = Field("x2vlm", min_length=1, description="project at W&B")
    entity: str | None = Field(None, description="user or team at W&B; null: that of the login")
    name: str | None = Field(None, description="name of the run at W&B; null: that of its folder")
    group: str | None = Field(None, description="group of runs at W&B")
    mode: Literal["online", "offline"] = Field(
        "online", description="offline: write into the run's folder, for `wandb sync`"
    )


def check_package(config: WandbConfig | None) -> None:
    """Refuse a config that needs the package wandb where it is not installed.

    Raises:
        UserError: if it is missing.
    """
    if config is None:
        return
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # a folder of that name, where W&B has written files, is no package
        raise UserError('train.wandb: the package wandb is not installed; pip install ".[wandb]", or set it to null')


class WandbCurves:
    """Sends the values of a run to W&B, and nothing else but its config: no console, code, host or environment.

    A run that resumes goes on as the same run at W&B. Steps that W&B has already are not sent again.

    Args:
        folder: of the run.
        settings: its ``config.yaml``.
        config: the section.
    """

    def __init__(self, folder: Path, settings: Path, config: WandbConfig):
        self._run = Outlet(f"{folder}: W&B's curves", partial(_opened, folder, settings, config))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Send the values of a step; the steps do not fall."""
        self._run.write(lambda run: run.log(dict(values), step=step) if step >= run.step else None)

    def flush(self) -> None:
        """Nothing is held back here."""

    def close(self) -> None:
        """Wait until all is sent; while an exception ends the run, W&B learns that it failed."""
        failed = sys.exc_info()[0] is not None
        self._run.write(lambda run: run.finish(exit_code=int(failed)))


def _opened(folder: Path, settings: Path, config: WandbConfig) -> Run:
    # Imported here: the import takes a second, and only the rank that writes needs it.
    import wandb

    # Silent from here on: it would ask for a login at a terminal, and the run would wait for the answer.
    wandb.setup(wandb.Settings(silent=True))
    return wandb.init(
        project=config.project,
        entity=config.entity,
        name=config.name or folder.name,
        group=config.group,
        mode=config.mode,
        id=_id(folder),
        resume="allow",
        dir=str(folder),
        config=read_yaml(settings) if settings.is_file() else {},
        settings=wandb.Settings(
            silent=True,
            host="",
            console="off",
            save_code=False,
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            finish_timeout=FINISH_TIMEOUT_S,
        ),
    )


def _id(folder: Path) -> str:
    """The id of the run at W&B: the one of its folder, else a new one."""
    file = folder / ID_FILE
    if not file.is_file():
        write_text(file, secrets.token_hex(4) + "\n")
    return file.read_text(encoding="utf-8").strip()
