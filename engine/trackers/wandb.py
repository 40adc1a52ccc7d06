"""Weights & Biases: values, images and the report of a run."""

from __future__ import annotations

import importlib
import importlib.util
import secrets
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from engine.config import WandbConfig
from engine.run_files import CONFIG_FILE
from engine.trackers.outlet import FailSafeWriter
from utils.config_files import read_yaml
from utils.errors import UserError
from utils.files import write_text

if TYPE_CHECKING:
    from wandb import Run

ID_FILE = "wandb_id"
"""File in a run's folder that contains the ID of the run at W&B."""

FINISH_TIMEOUT_S = 60.0
"""Maximum number of seconds that the end of a run waits for values that have not been sent yet. Unsent values stay in the run's
folder, for `wandb sync`."""


def check_package(config: WandbConfig | None) -> None:
    """Checks that the package wandb is installed if the config needs it.

    Raises:
        UserError: if the package is missing.
    """
    if config is None:
        return
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # W&B writes files to a folder named wandb, which is not a package
        raise UserError('train.wandb: the package wandb is not installed; pip install ".[wandb]", or set it to null')


class Wandb:
    """Shows the values, config and images of a run at W&B. Nothing else is sent, such as console output, code, the host name or
    the environment.

    A resumed run continues as the same run at W&B. Steps that W&B already has are not sent again.

    Args:
        folder: folder of the run.
        settings: the ``config.yaml`` of the run.
        config: the config section ``train.wandb``.
    """

    def __init__(self, folder: Path, settings: Path, config: WandbConfig):
        self._run = FailSafeWriter(f"{folder}: the run at W&B", partial(_opened, folder, settings, config))

    def add_values(self, values: Mapping[str, float], step: int) -> None:
        """Sends the values of a step. Steps must never decrease."""
        self._run.write(lambda run: run.log(dict(values), step=step) if step >= run.step else None)

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Shows an image (H, W, 3), uint8. ``step`` is only shown in the caption, since W&B rejects values of earlier steps."""
        self._run.write(lambda run: run.log({name: _package().Image(image, caption=f"step {step}")}))

    def flush(self) -> None:
        """Does nothing, since values are sent immediately."""

    def close(self) -> None:
        """Waits until everything is sent. If an exception ends the run, W&B shows the run as failed."""
        failed = sys.exc_info()[0] is not None
        self._run.write(lambda run: run.finish(exit_code=int(failed)))


def send_report(folder: Path, page: Path) -> None:
    """Shows the report of a run, an HTML file, at W&B.

    Raises:
        UserError: if the run is not at W&B, the package is missing, or W&B cannot be reached.
    """
    settings = folder / CONFIG_FILE
    section = (read_yaml(settings).get("train") or {}).get("wandb") if settings.is_file() else None
    if section is None or not (folder / ID_FILE).is_file():
        raise UserError(
            f"--wandb: {folder} was not trained with train.wandb, so W&B does not know the run; omit --wandb"
        )
    config = WandbConfig.model_validate(section)
    check_package(config)
    try:
        run = _opened(folder, settings, config)
        run.log({"report": _package().Html(page.read_text(encoding="utf-8"), inject=False)})
        run.finish()
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"--wandb: the report of {folder} could not be sent to W&B: {reason}; the page is {page}"
        ) from None


def _package() -> ModuleType:
    # Imported here: the import takes a second, and only the rank that writes needs it.
    return importlib.import_module("wandb")


def _opened(folder: Path, settings: Path, config: WandbConfig) -> Run:
    wandb = _package()
    # Silent, because W&B would otherwise prompt for a login at a terminal, and the run would wait for the answer.
    wandb.setup(wandb.Settings(silent=True))
    return wandb.init(
        project=config.project,
        entity=config.entity,
        name=config.name or folder.name,
        group=config.group,
        notes="`python run.py report RUN --wandb` shows the report of the run here",
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
    """Returns the ID of the run at W&B. Creates a new ID if the folder has none."""
    file = folder / ID_FILE
    if not file.is_file():
        write_text(file, secrets.token_hex(4) + "\n")
    return file.read_text(encoding="utf-8").strip()
