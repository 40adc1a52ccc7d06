"""The story of every task's script: config, run folder, task, training, report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.run_folder import RunFolder
from engine.trainer import Trainer
from tasks import TASKS
from tasks.common import BaseTask, RunConfig
from utils import logging
from utils.config import load_config
from utils.distributed import process_group
from utils.launcher import parse_script


def run_task(
    argv: Sequence[str], name: str, schema: type[RunConfig], kind: type[BaseTask[Any, Any]], root: Path
) -> int:
    """Train and report, or with ``--evaluate`` only report; returns the exit status.

    Raises:
        UserError: for a mistake in the command line, the config or the data.
    """
    arguments = parse_script(argv, name, TASKS[name], root)
    config = load_config(arguments.config, arguments.overrides, schema)
    with process_group() as device:
        folder, checkpoint = RunFolder.open(Path(arguments.output), config, arguments.resume)
        logging.set_up(folder.log)
        task = kind(config, checkpoint)
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
