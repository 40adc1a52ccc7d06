"""Config and class of every task, for what works on any of them. A task's own script names its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.base import BaseTask, RunConfig
from tasks.captioning import CaptioningConfig, CaptioningTask
from tasks.grounding import GroundingConfig, GroundingTask
from tasks.nlvr import NLVRConfig, NLVRTask
from tasks.pretrain import PretrainConfig, PretrainTask
from tasks.retrieval import RetrievalConfig, RetrievalTask
from tasks.video_qa import VideoQAConfig, VideoQATask
from tasks.vqa import VQAConfig, VQATask
from utils.config import peek
from utils.errors import UserError

Kind = tuple[type[RunConfig], type[BaseTask[Any, Any, Any]]]

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
    """Of the config's ``task``, or of ``task`` where it has none.

    Raises:
        UserError: if there is no such file, the two contradict each other, or none of them is a task.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such config file")
    said = peek(path, overrides, "task")
    if said is not None and task is not None and said != task:
        raise UserError(f"{path}: this is a config of task {said}; leave out --task {task}")
    name = task if said is None else said
    if not isinstance(name, str) or name not in KINDS:
        raise UserError(f"{path}: task is {name!r}, none of {', '.join(KINDS)}; set it, or give --task NAME")
    return KINDS[name]
