"""Table of the built-in tasks. The module contains only plain data, so importing it is cheap."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
"""Root folder of the checkout."""


class TaskEntry(NamedTuple):
    """A row of :data:`TASKS`."""

    module: str
    """Module that defines ``TASK``, a :class:`tasks.kinds.TaskKind`."""

    script: str
    """Script that runs the task in one process, relative to the root of the checkout."""

    default_config: str
    """Config for runs without ``--config``, relative to the root of the checkout."""

    help: str

    also: tuple[str, ...] = ()
    """Other tasks whose configs ``--task`` and the script also accept."""


TASKS = {
    "pretrain": TaskEntry("tasks.pretrain", "Pretrain.py", "configs/demo/pretrain.yaml", "multi-grained pre-training"),
    "retrieval": TaskEntry(
        "tasks.retrieval", "Retrieval.py", "configs/demo/retrieval.yaml", "texts for images or videos, and vice versa"
    ),
    "nlvr": TaskEntry("tasks.nlvr", "NLVR.py", "configs/demo/nlvr.yaml", "is a sentence true of two images?"),
    "grounding": TaskEntry(
        "tasks.grounding", "Grounding.py", "configs/demo/grounding.yaml", "the box that a phrase refers to"
    ),
    "vqa": TaskEntry("tasks.vqa", "VQA.py", "configs/demo/vqa.yaml", "questions about images", also=("video_qa",)),
    "video_qa": TaskEntry("tasks.video_qa", "VQA.py", "configs/demo/vqa_clips.yaml", "questions about videos"),
    "captioning": TaskEntry(
        "tasks.captioning", "Captioning.py", "configs/demo/captioning.yaml", "a sentence that describes an image"
    ),
}
