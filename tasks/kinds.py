"""Config and class of every task, for what works on any of them. A task's own script names its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.captioning import CaptioningConfig, CaptioningTask
from tasks.common import BaseTask, RunConfig
from tasks.grounding import GroundingConfig, GroundingTask
from tasks.nlvr import NLVRConfig, NLVRTask
from tasks.pretrain import PretrainConfig, PretrainTask
from tasks.retrieval import RetrievalConfig, RetrievalTask
from tasks.video_qa import VideoQAConfig, VideoQATask
from tasks.vqa import VQAConfig, VQATask
from utils.config import peek
from utils.errors import UserError

Kind = tuple[type[RunConfig], type[BaseTask[Any, Any]]]

KINDS: dict[str, Kind] = {
    "pretrain": (PretrainConfig, PretrainTask),
    "retrieval": (RetrievalConfig, RetrievalTask),
    "nlvr": (NLVRConfig, NLVRTask),
    "grounding": (GroundingConfig, GroundingTask),
    "vqa": (VQAConfig, VQATask),
    "video_qa": (VideoQAConfig, VideoQATask),
    "captioning": (CaptioningConfig, CaptioningTask),
}
"""By what a config's ``task`` may say."""


def kind_of(path: Path, overrides: list[str], task: str | None = None) -> Kind:
    """Of the config's ``task``, of ``task``, or of the folder that the config is in; in the demo's folder, the start of the
    file's name tells.

    Raises:
        UserError: if none of them is a task.
    """
    folder = path.resolve().parent.name
    said = [peek(path, overrides, "task"), task, folder, path.stem.split("_")[0] if folder == "demo" else None]
    for name in said:
        if isinstance(name, str) and name in KINDS:
            return KINDS[name]
    raise UserError(f"{path}: neither a key `task` nor the folder says which task it is of; give --task NAME")
