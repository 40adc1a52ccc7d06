"""Opens the trackers of a run. All trackers show the same values and images under the same names.

If a tracker fails, the failure is reported once, and the run continues without the tracker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from engine.config import WandbConfig
from engine.run_files import CONFIG_FILE, REPORT_FILE
from engine.run_folder import RunFolder
from engine.trackers.tensorboard import TensorBoard
from engine.trackers.wandb import ID_FILE, Wandb


class Tracker(Protocol):
    """Shows a run while it trains and afterwards."""

    def add_values(self, values: Mapping[str, float], step: int) -> None:
        """Shows the values of a step. Steps must never decrease."""

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Shows an image (H, W, 3), uint8. The image replaces the previous image with this name."""

    def flush(self) -> None:
        """Writes buffered values."""

    def close(self) -> None: ...


def open_trackers(folder: RunFolder, wandb: WandbConfig | None) -> list[Tracker]:
    """Opens the trackers of a run that is about to train, and shows its config and the command that writes its report."""
    config = folder.path / CONFIG_FILE
    tensorboard = TensorBoard(folder.tensorboard)
    if config.is_file():
        tensorboard.add_text("config", f"```yaml\n{config.read_text(encoding='utf-8')}\n```")
    tensorboard.add_text("report", f"`python run.py report {folder.path}` writes `{folder.path / REPORT_FILE}`")
    return [tensorboard] if wandb is None else [tensorboard, Wandb(folder.path, config, wandb)]


def show_images(folder: RunFolder, wandb: WandbConfig | None, images: Mapping[str, np.ndarray], step: int) -> None:
    """Shows images (H, W, 3), uint8, by name, in the trackers of a run that has trained. If the run only evaluates, it has no
    trackers, and nothing is shown."""
    trackers: list[Tracker] = []
    if images and folder.tensorboard.is_dir():
        trackers.append(TensorBoard(folder.tensorboard))
    if images and wandb is not None and wandb.images and (folder.path / ID_FILE).is_file():
        trackers.append(Wandb(folder.path, folder.path / CONFIG_FILE, wandb))
    for tracker in trackers:
        for name, image in images.items():
            tracker.add_image(name, image, step)
        tracker.close()
