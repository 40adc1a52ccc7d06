"""The tasks: which script runs each, and the config it runs without ``--config``. Plain data: importing it costs nothing."""

from __future__ import annotations

from typing import NamedTuple


class TaskEntry(NamedTuple):
    """``also``: what a config's ``task`` may say instead of the name, for another task of the same script."""

    script: str
    demo_config: str
    also: tuple[str, ...] = ()


TASKS = {
    "pretrain": TaskEntry("Pretrain.py", "configs/demo/pretrain.yaml"),
    "retrieval": TaskEntry("Retrieval.py", "configs/demo/retrieval.yaml"),
    "nlvr": TaskEntry("NLVR.py", "configs/demo/nlvr.yaml"),
    "vqa": TaskEntry("VQA.py", "configs/demo/vqa.yaml", ("video_qa",)),
    "grounding": TaskEntry("Grounding.py", "configs/demo/grounding.yaml"),
    "captioning": TaskEntry("Captioning.py", "configs/demo/captioning.yaml"),
}
