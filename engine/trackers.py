"""Trackers show a run while it trains and afterwards: TensorBoard, and Weights & Biases with ``train.wandb``.

All trackers show the same values and images under the same names.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engine.config import WandbConfig
from engine.run_files import CONFIG_FILE, REPORT_FILE
from engine.run_folder import RunFolder
from utils.config_files import read_yaml
from utils.errors import UserError
from utils.extras import install_command
from utils.files import write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from wandb import Run

logger = logging.getLogger(__name__)

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
        raise UserError(
            "the package wandb is not installed",
            where="train.wandb",
            remedy=f"{install_command('wandb')}, or set it to null",
        )


class Tracker(Protocol):
    """Shows a run. Methods may raise any exception; see :func:`for_each`.

    Attributes:
        what: description of what the tracker writes, for a warning.
    """

    what: str

    def start(self) -> None:
        """Starts showing a run that is about to train, with its config."""

    def add_values(self, values: Mapping[str, float], step: int) -> None:
        """Shows the values of a step. Steps must never decrease."""

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Shows an image (H, W, 3), uint8. The image replaces the previous image with this name."""

    def flush(self) -> None:
        """Writes buffered values."""

    def close(self) -> None: ...


def for_each(trackers: list[Tracker], call: Callable[[Tracker], object]) -> None:
    """Calls ``call`` with each tracker. A tracker that fails is reported once and removed, and the run continues without it."""
    for tracker in list(trackers):
        try:
            call(tracker)
        except Exception as error:
            trackers.remove(tracker)
            reason = str(error).partition("\n")[0] or type(error).__name__
            logger.warning("%s cannot be written (%s); the run continues without them", tracker.what, reason)


def show_images(folder: RunFolder, wandb: WandbConfig | None, images: Mapping[str, np.ndarray], step: int) -> None:
    """Shows images (H, W, 3), uint8, by name, in the trackers of a run that has trained. If the run only evaluates, it has no
    trackers, and nothing is shown."""
    trackers: list[Tracker] = []
    if images and folder.tensorboard.is_dir():
        trackers.append(TensorBoard(folder))
    if images and wandb is not None and wandb.images and (folder.path / ID_FILE).is_file():
        trackers.append(Wandb(folder, wandb))
    for name, image in images.items():
        for_each(trackers, lambda tracker, name=name, image=image: tracker.add_image(name, image, step))  # type: ignore[misc]
    for_each(trackers, lambda tracker: tracker.close())


@dataclass
class _Constant:
    """A value that has not changed so far, with the first and last steps at which it was logged."""

    value: float
    first: int
    last: int


class TensorBoard:
    """Writes event files to a folder: one for the curves, one for each text and one for each image. Each file replaces the
    corresponding file of a previous process, so when a run resumes, its curves are redrawn.

    No curve is drawn for a constant value. Once the value changes, its curve is drawn, including the earlier steps.

    TensorBoard reads the files in the order of their creation, and follows only the last file while it grows. Texts must
    therefore be written before the first value, and images after the last value.
    """

    def __init__(self, folder: RunFolder):
        self.folder, self.what = folder, f"{folder.tensorboard}: TensorBoard's events"
        self._curves: SummaryWriter | None = None
        self._constants: dict[str, _Constant] = {}
        self._varies: set[str] = set()

    def start(self) -> None:
        """Shows the config of the run and the command that writes its report."""
        run, config = self.folder.path, self.folder.path / CONFIG_FILE
        texts = {"config": f"```yaml\n{config.read_text(encoding='utf-8')}\n```"} if config.is_file() else {}
        texts["report"] = f"`python run.py report {run}` writes `{run / REPORT_FILE}`"
        for name, markdown in texts.items():
            with self._new_file(name) as events:
                events.add_text(name, markdown, 0)

    def add_values(self, values: Mapping[str, float], step: int) -> None:
        """Draws the values that are not constant. Infinity, which a curve cannot show, is drawn as NaN."""
        points: list[tuple[str, float, int]] = []
        for name, value in values.items():
            shown = value if math.isfinite(value) else math.nan
            constant = self._constants.setdefault(name, _Constant(shown, step, step))
            if name not in self._varies:
                if shown == constant.value or (math.isnan(shown) and math.isnan(constant.value)):
                    constant.last = step
                    continue
                self._varies.add(name)
                points += [(name, constant.value, each) for each in sorted({constant.first, constant.last})]
            points.append((name, shown, step))
        if points and self._curves is None:
            self._curves = self._new_file("curves")
        for name, value, at in points:
            assert self._curves is not None
            self._curves.add_scalar(name, value, at)

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Shows an image (H, W, 3), uint8."""
        with self._new_file(name) as events:
            events.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        if self._curves is not None:
            self._curves.flush()

    def close(self) -> None:
        if self._curves is not None:
            self._curves.close()

    def _new_file(self, name: str) -> SummaryWriter:
        """Opens an event file that replaces all previous files with this name."""
        # Imported here: the import takes a second, and only the rank that writes needs it.
        from torch.utils.tensorboard import SummaryWriter

        suffix = f".{re.sub(r'[^0-9A-Za-z_-]+', '-', name)}"
        for file in self.folder.tensorboard.glob(f"events.*{suffix}"):
            file.unlink(missing_ok=True)
        return SummaryWriter(str(self.folder.tensorboard), filename_suffix=suffix)


class Wandb:
    """Shows the values, config and images of a run at W&B. Nothing else is sent, such as console output, code, the host name or
    the environment.

    A resumed run continues as the same run at W&B. Steps that W&B already has are not sent again.
    """

    def __init__(self, folder: RunFolder, config: WandbConfig):
        self.folder, self.config, self.what = folder, config, f"{folder.path}: the run at W&B"
        self._run: Run | None = None

    def start(self) -> None:
        """Creates or continues the run at W&B."""
        self._run = _opened(self.folder.path, self.config)

    def add_values(self, values: Mapping[str, float], step: int) -> None:
        """Sends the values of a step. Steps must never decrease."""
        assert self._run is not None
        if step >= self._run.step:
            self._run.log(dict(values), step=step)

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Shows an image (H, W, 3), uint8. ``step`` is only shown in the caption, since W&B rejects values of earlier steps."""
        if self._run is None:
            self.start()
        assert self._run is not None
        self._run.log({name: _package().Image(image, caption=f"step {step}")})

    def flush(self) -> None:
        """Does nothing, since values are sent immediately."""

    def close(self) -> None:
        """Waits until everything is sent. If an exception ends the run, W&B shows the run as failed."""
        failed = sys.exc_info()[0] is not None
        if self._run is not None:
            self._run.finish(exit_code=int(failed))


def send_report(folder: Path, page: Path) -> None:
    """Shows the report of a run, an HTML file, at W&B.

    Raises:
        UserError: if the run is not at W&B, the package is missing, or W&B cannot be reached.
    """
    settings = folder / CONFIG_FILE
    section = (read_yaml(settings).get("train") or {}).get("wandb") if settings.is_file() else None
    if section is None or not (folder / ID_FILE).is_file():
        raise UserError(
            f"{folder} was not trained with train.wandb, so W&B does not know the run",
            where="--wandb",
            remedy="omit --wandb",
        )
    config = WandbConfig.model_validate(section)
    check_package(config)
    try:
        run = _opened(folder, config)
        run.log({"report": _package().Html(page.read_text(encoding="utf-8"), inject=False)})
        run.finish()
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"the report of {folder} could not be sent to W&B: {reason}", where="--wandb", remedy=f"the page is {page}"
        ) from None


def _package() -> ModuleType:
    # Imported here: the import takes a second, and only the rank that writes needs it.
    return importlib.import_module("wandb")


def _opened(folder: Path, config: WandbConfig) -> Run:
    wandb, settings, id_file = _package(), folder / CONFIG_FILE, folder / ID_FILE
    if not id_file.is_file():
        write_text(id_file, secrets.token_hex(4) + "\n")
    # Silent, because W&B would otherwise prompt for a login at a terminal, and the run would wait for the answer.
    wandb.setup(wandb.Settings(silent=True))
    return wandb.init(
        project=config.project,
        entity=config.entity,
        name=config.name or folder.name,
        group=config.group,
        notes="`python run.py report RUN --wandb` shows the report of the run here",
        mode=config.mode,
        id=id_file.read_text(encoding="utf-8").strip(),
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
