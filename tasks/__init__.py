"""Table of the built-in tasks. The module contains only plain data, so importing it is cheap."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
"""Root folder of the checkout."""


class TaskEntry(NamedTuple):
    """A row of :data:`TASKS`. Classes are named as ``module:Class``, and imported when they are needed."""

    config: str
    """The config class, in a module that does not import torch."""

    task: str
    """The task class, which builds the model and the data, and evaluates the model."""

    model: str
    """The class of the network, which can be built from the section ``model`` and the size of the vocabulary alone."""

    script: str
    """Script that runs the task in one process, relative to the root of the checkout."""

    default_config: str
    """Config for runs without ``--config``, relative to the root of the checkout."""

    help: str

    also: tuple[str, ...] = ()
    """Other tasks whose configs ``--task`` and the script also accept."""


TASKS = {
    "pretrain": TaskEntry(
        "tasks.config:PretrainConfig",
        "tasks.pretrain:PretrainTask",
        "models.pretraining.model:PretrainModel",
        "Pretrain.py",
        "configs/demo/pretrain.yaml",
        "multi-grained pre-training",
    ),
    "retrieval": TaskEntry(
        "tasks.config:RetrievalConfig",
        "tasks.retrieval:RetrievalTask",
        "models.tasks.retrieval:RetrievalModel",
        "Retrieval.py",
        "configs/demo/retrieval.yaml",
        "texts for images or videos, and vice versa",
    ),
    "nlvr": TaskEntry(
        "tasks.config:NLVRConfig",
        "tasks.nlvr:NLVRTask",
        "models.tasks.nlvr:NLVRModel",
        "NLVR.py",
        "configs/demo/nlvr.yaml",
        "is a sentence true of two images?",
    ),
    "grounding": TaskEntry(
        "tasks.config:GroundingConfig",
        "tasks.grounding:GroundingTask",
        "models.tasks.grounding:GroundingModel",
        "Grounding.py",
        "configs/demo/grounding.yaml",
        "the box that a phrase refers to",
    ),
    "vqa": TaskEntry(
        "tasks.config:VQAConfig",
        "tasks.vqa:VQATask",
        "models.tasks.vqa:VQAModel",
        "VQA.py",
        "configs/demo/vqa.yaml",
        "questions about images",
        also=("video_qa",),
    ),
    "video_qa": TaskEntry(
        "tasks.config:VideoQAConfig",
        "tasks.video_qa:VideoQATask",
        "models.tasks.video_qa:VideoQAModel",
        "VQA.py",
        "configs/demo/vqa_clips.yaml",
        "questions about videos",
    ),
    "captioning": TaskEntry(
        "tasks.config:CaptioningConfig",
        "tasks.captioning:CaptioningTask",
        "models.tasks.captioning:CaptioningModel",
        "Captioning.py",
        "configs/demo/captioning.yaml",
        "a sentence that describes an image",
    ),
}
