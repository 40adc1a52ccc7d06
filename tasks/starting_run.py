"""``evaluation.keep: start``: the held-out files of the run from which a run starts. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.checkpoint import find_weights, run_config_of
from engine.saved_config import read_saved_config
from utils.errors import UserError
from utils.files import expanded

START = "start"
KEY = "evaluation.keep"
BY_HAND = "name the splits in evaluation.keep.test"


def with_kept_splits(values: Mapping[str, Any], task: str | None) -> dict[str, Any]:
    """Replaces ``evaluation.keep: start`` in the values of a config by the held-out files of the run of ``init.checkpoint``.

    Args:
        values: plain values of the config.
        task: the task of the config.

    Raises:
        UserError: if that run does not have held-out files which this task can read.
    """
    evaluation, init = values.get("evaluation"), values.get("init")
    if not isinstance(evaluation, Mapping) or evaluation.get("keep") != START:
        return dict(values)
    checkpoint = init.get("checkpoint") if isinstance(init, Mapping) else None
    if not isinstance(checkpoint, str):
        raise UserError("start needs a run to start from", where=KEY, remedy=f"set init.checkpoint, or {BY_HAND}")
    file = run_config_of(find_weights(expanded(checkpoint)))
    if file is None:
        raise UserError(f"{checkpoint} is not in a run's folder", where=KEY, remedy=BY_HAND)
    earlier = read_saved_config(file)
    keep = _splits(earlier.get("evaluation") or {}, earlier.get("task"), task)
    if keep is None:
        raise UserError(
            f"{checkpoint} is a run of the task {earlier.get('task')} without held-out files that {task} can read",
            where=KEY,
            remedy=BY_HAND,
        )
    return {**values, "evaluation": {**evaluation, "keep": keep}}


def _splits(evaluation: Mapping[str, Any], earlier: str | None, task: str | None) -> dict[str, Any] | None:
    """Returns the value of ``evaluation.keep``; None if there are no splits that ``task`` can read."""
    if earlier == task:
        keep = {"test": evaluation.get("test"), "validation": evaluation.get("validation")}
    elif earlier == "pretrain" and task in ("retrieval", "grounding"):
        files = evaluation.get("region_files") if task == "grounding" else None
        splits = [{"annotations": file} for file in files or evaluation.get("files") or ()]
        chosen = [{"annotations": file} for file in evaluation.get("validation_files") or ()]
        keep = {
            "test": {f"earlier{number or ''}": split for number, split in enumerate(splits)},
            "validation": chosen[0] if len(chosen) == 1 else None,
        }
    else:
        return None
    return keep if keep["test"] else None
