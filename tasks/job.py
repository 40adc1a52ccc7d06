"""Runs a task in this process: opens the run folder, trains, and reports."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from engine.run_folder import RunFolder, locked
from engine.run_plan import RunPlan
from engine.stall import StallWatch
from engine.stopping import Stopped, StopRequest
from engine.trackers import check_package
from engine.trainer import Trainer
from optim import lora
from tasks.base import BaseTask
from tasks.binding import BoundRun
from tasks.checks import check_start
from tasks.config import RunConfig
from tasks.data_identity import data_identity
from tasks.kept import with_available_inputs
from tasks.pinned import with_pinned_data
from tasks.run_flags import RunFlags, output_folder
from utils import distributed, events, log, open_files
from utils.errors import UserError

logger = logging.getLogger(__name__)


def run_task(run: BoundRun, flags: RunFlags, command: Sequence[str] | None = None) -> int:
    """Trains and reports, or only reports with ``--evaluate``; returns the exit status. ``run.py``, the scripts of the tasks and
    ``python -m tasks.run`` all call this function, on every rank.

    Args:
        run: the task and its config.
        flags: flags of the command line.
        command: the user's command, for the log; if None, the command line of this process.

    Raises:
        UserError: if the config or the data are invalid.
    """
    config: RunConfig = run.config
    if flags.evaluates_other_weights and config.init.checkpoint is None:
        raise UserError("--evaluate needs weights: set init.checkpoint=..., or --resume with the --output of a run")
    output = output_folder(run, flags)
    with log.errors_logged(), distributed.process_group(config.train.start_timeout_min, output) as device:
        plan = None
        if not flags.evaluate:
            _check_machine(config)
            plan = config.plan(distributed.world_size())
        with locked(output, flags.wait or 0), StopRequest(config.train.grace_s) as stop:
            try:
                with stop.ending_at_once():
                    folder = RunFolder.open(output, config, flags.resume, evaluate=flags.evaluate)
                    log.set_up(folder.log, folder.events if distributed.rank() == 0 else None)
                    ranks = distributed.world_size()
                    command = list(sys.argv if command is None else command)
                    logger.info(events.Started(command=command, ranks=ranks, trains=not flags.evaluate))
                    for fault in folder.checkpoint_faults:
                        logger.warning(events.SkippedCheckpoint(fault=fault))
                    task = _build(run, plan, folder, flags)
                    if flags.evaluate:
                        distributed.move_from_rank_0(task.model, device)
                if not flags.evaluate:
                    _train(task, run, folder, device, stop)
                _report(task, folder, flags, stop)
            except Stopped as stopped:
                if distributed.rank() == 0:
                    logger.warning(events.Stopped(by=stop.name, message=str(stopped)))
                return stopped.status
            logger.info(events.Finished())
    return 0


def _check_machine(config: RunConfig) -> None:
    """Raises :class:`UserError` if this machine lacks a package that the config needs, or allows too few open files."""
    open_files.check_limit(config.data.workers)
    check_package(config.train.wandb)
    lora.check_package(config.optim.lora)


def _build(run: BoundRun, plan: RunPlan | None, folder: RunFolder, flags: RunFlags) -> BaseTask[Any, Any, Any]:
    """Builds the task: its tokenizer, its model with the weights of the run or of ``init``, and, if it trains, its data."""
    task_class, config = run.source.load().task, run.config
    if distributed.rank() == 0:
        run.source.remember(folder.path)
    with _watched("the set-up", config, folder):
        task_class.make_inputs(config)
        config = with_available_inputs(config, folder, flags)
        ignored = ("data",) if flags.evaluate else ()
        config = with_pinned_data(config, folder.path, resumes=flags.resume, ignored_sections=ignored)
        return task_class.build(config, folder.newest, trains=not flags.evaluate, plan=plan)


def _train(
    task: BaseTask[Any, Any, Any], run: BoundRun, folder: RunFolder, device: torch.device, stop: StopRequest
) -> None:
    config = task.config
    with stop.ending_at_once(), _watched("the set-up", config, folder):
        check_start(task, run)
        if distributed.rank() == 0:
            task.keep_inputs(folder.path)
        assert task.plan is not None
        trainer = Trainer(
            task,
            task.plan,
            train=config.train,
            optim=config.optim,
            schedule=config.schedule,
            seed=config.seed,
            folder=folder,
            device=device,
            checkpoint=folder.newest,
            data=distributed.on_rank_0(lambda: data_identity(config.data)),
            stop=stop,
        )
    trainer.fit()


def _report(task: BaseTask[Any, Any, Any], folder: RunFolder, flags: RunFlags, stop: StopRequest) -> None:
    """Evaluates the run, and prints the results."""
    again = "rerun the same command" if flags.resume or flags.evaluate else "rerun with --resume"
    with stop.ending_at_once(lambda: f"the evaluation is not finished; {again} to finish it"):
        distributed.set_timeout(task.config.train.start_timeout_min)
        with _watched("the evaluation", task.config, folder):
            results = task.report(folder)
        if results:
            sys.stdout.write(f"{results}\n")
        elif flags.evaluate and distributed.rank() == 0:
            logger.warning("nothing was evaluated, because the config sets evaluation to null")


def _watched(what: str, config: RunConfig, folder: RunFolder) -> AbstractContextManager[None]:
    """Context manager that watches the activity ``what``, and logs the stacks of all threads if it takes too long."""
    return StallWatch(config.train.stall_s, folder.log).watching(what)
