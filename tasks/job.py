"""The story of every task's script: config, run folder, task, training, report."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.run_folder import RunFolder
from engine.trainer import Trainer
from tasks import TASKS
from tasks.common import BaseTask, RunConfig
from utils import logging
from utils.config import load_config, peek
from utils.distributed import process_group
from utils.errors import UserError
from utils.launcher import parse_script


def run_task(
    argv: Sequence[str],
    name: str,
    schema: type[RunConfig],
    kind: type[BaseTask[Any, Any]],
    root: Path,
    others: Mapping[str, tuple[type[RunConfig], type[BaseTask[Any, Any]]]] | None = None,
) -> int:
    """Train and report, or with ``--evaluate`` only report; returns the exit status.

    Args:
        argv: the command line.
        name: of the task.
        schema, kind: its config and what runs it.
        root: folder of the script.
        others: the same for what a config's ``task`` may say instead of ``name``.

    Raises:
        UserError: for a mistake in the command line, the config or the data.
    """
    arguments = parse_script(argv, name, TASKS[name], root)
    said = peek(arguments.config, arguments.overrides, "task")
    if others and isinstance(said, str) and said in others:
        schema, kind = others[said]
    elif said != name:
        _refuse_other_task(arguments.config, said)
    config = load_config(arguments.config, arguments.overrides, schema)
    if arguments.evaluate and not arguments.resume and config.init.checkpoint is None:
        raise UserError("--evaluate needs weights: give init.checkpoint=..., or --resume with the --output of a run")
    with process_group() as device:
        if not arguments.evaluate:
            config.train.accumulation(config.data)  # refuses a batch that does not divide, before anything is loaded
        folder, checkpoint = RunFolder.open(
            Path(arguments.output), config, arguments.resume, evaluate=arguments.evaluate
        )
        if arguments.evaluate and arguments.resume and checkpoint is None and not folder.best.is_file():
            raise UserError(
                f"--evaluate --resume: {folder.path} holds no weights; give the --output of a run that was trained"
            )
        logging.set_up(folder.log)
        task = kind(config, checkpoint, trains=not arguments.evaluate)
        if arguments.evaluate:
            task.model.to(device)
        else:
            trainer = Trainer(
                task,
                train=config.train,
                optim=config.optim,
                schedule=config.schedule,
                seed=config.seed,
                folder=folder,
                device=device,
                checkpoint=checkpoint,
            )
            trainer.fit()
        if found := task.report(folder):
            sys.stdout.write(f"{found}\n")
    return 0


def _refuse_other_task(config: str, said: object) -> None:
    """Raise a :class:`UserError` where a config says that it is of another task; what it says wrong, binding tells."""
    for other, entry in TASKS.items():
        if said == other or said in entry.also:
            raise UserError(f"{config}: this is a config of task {said}; run --task {other}, or {entry.script}")
