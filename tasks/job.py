"""Runs a task in this process: opens the run folder, trains, and reports."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tasks import TASKS
from utils.commands import FLAGS, execute
from utils.errors import UserError, file_access_error
from utils.flags import File, Override, Positive

if TYPE_CHECKING:
    import torch

    from engine.checkpoint import Checkpoint
    from engine.run_folder import RunFolder
    from engine.run_plan import RunPlan
    from engine.stopping import StopRequest
    from tasks.base import BaseTask
    from tasks.binding import BoundRun
    from tasks.config import RunConfig

C = TypeVar("C", bound="RunConfig")

logger = logging.getLogger(__name__)


@FLAGS
@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Flags that set what a run does and where its results are written.

    Attributes:
        config: YAML file; see configs/ (default: the default config of the task).
        output: folder of the run (default: runs/<task>/<config's name>).
        resume: resume from the newest checkpoint in --output.
        evaluate: do not train; evaluate the weights of init.checkpoint (with --resume: the weights of the run).
        wait: seconds to wait if --output is in use, because a lost node releases its run late (default: fail immediately).
    """

    config: File | None = None
    output: Path | None = None
    resume: bool = False
    evaluate: bool = False
    wait: Positive | None = None


def run_script(argv: Sequence[str], name: str) -> int:
    """Runs the command of a task's script, such as ``Pretrain.py``; returns the exit status.

    Args:
        argv: the command-line arguments.
        name: name of the task in the table.

    Raises:
        UserError: if the command line, the config or the data are invalid.
    """

    def run(*overrides: Override, flags: RunFlags = RunFlags()) -> int:
        from tasks.binding import bind_run

        return run_task(bind_run(flags.config, overrides, name, remedy="run {script}"), flags)

    overrides = "config values to override, as key=value."
    run.__doc__ = f"Run this task in one process: {TASKS[name].help}.\n\nArgs:\n    overrides: {overrides}"
    return execute(run, argv, TASKS[name].script)


def run_task(run: BoundRun, flags: RunFlags, command: Sequence[str] | None = None) -> int:
    """Trains and reports, or only reports with ``--evaluate``; returns the exit status. ``run.py``, the scripts of the tasks and
    ``python -m tasks.run`` all call this function.

    Args:
        run: the task and its config.
        flags: flags of the command line.
        command: the user's command, for the log; if None, the command line of this process.

    Raises:
        UserError: if the config or the data are invalid.
    """
    # Imported here so that --help and errors in the command line or the config do not wait for torch.
    from engine.run_folder import locked
    from engine.stopping import Stopped, StopRequest
    from engine.trackers import check_package
    from optim import lora
    from utils import events, log, open_files
    from utils.distributed import process_group, rank, world_size

    config: RunConfig = run.config
    task_class = run.source.load().task
    evaluates_other_weights = flags.evaluate and not flags.resume
    if evaluates_other_weights and config.init.checkpoint is None:
        raise UserError("--evaluate needs weights: set init.checkpoint=..., or --resume with the --output of a run")
    output = flags.output or default_output(run, evaluates_other_weights=evaluates_other_weights)
    try:
        with ExitStack() as stack:
            device = stack.enter_context(process_group(config.train.start_timeout_min, output))
            plan = None
            if not flags.evaluate:
                open_files.check_limit(config.data.workers)
                check_package(config.train.wandb)
                lora.check_package(config.optim.lora)
                plan = config.plan(world_size())
            stack.enter_context(locked(output, flags.wait or 0))
            stop = stack.enter_context(StopRequest(config.train.grace_s))
            try:
                _run(run, task_class, plan, output, flags, device, stop, list(sys.argv if command is None else command))
            except Stopped as stopped:
                if rank() == 0:
                    logger.warning(events.Stopped(by=stop.name, message=str(stopped)))
                return stopped.status
    except Exception as error:
        reported = file_access_error(error) if isinstance(error, OSError) else None
        log.log_error(reported or error)
        if reported is not None:
            raise reported from error
        raise
    return 0


def _run(
    run: BoundRun,
    task_class: type[BaseTask[Any, Any, Any]],
    plan: RunPlan | None,
    output: Path,
    flags: RunFlags,
    device: torch.device,
    stop: StopRequest,
    command: list[str],
) -> None:
    from engine.run_folder import RunFolder
    from tasks.pinned import with_pinned_data
    from utils import distributed, events, log

    config: RunConfig = run.config
    with stop.ending_process():
        folder, checkpoint = RunFolder.open(output, config, flags.resume, evaluate=flags.evaluate)
        log.set_up(folder.log, folder.events if distributed.rank() == 0 else None)
        started = events.Started(command=command, ranks=distributed.world_size(), trains=not flags.evaluate)
        logger.info(started)
        for fault in folder.checkpoint_faults:
            logger.warning(events.SkippedCheckpoint(fault=fault))
        if distributed.rank() == 0:
            run.source.remember(folder.path)
        with _watched("the set-up", config, folder):
            task_class.make_inputs(config)
            config = _with_available_inputs(config, folder, checkpoint, flags)
            config = with_pinned_data(
                config, folder.path, resumes=flags.resume, ignored_sections=("data",) if flags.evaluate else ()
            )
            task = task_class.build(config, checkpoint, trains=not flags.evaluate, plan=plan)
        if flags.evaluate:
            distributed.move_from_rank_0(task.model, device)
    if not flags.evaluate:
        _train(task, folder, device, checkpoint, stop)
    again = "rerun the same command" if flags.resume or flags.evaluate else "rerun with --resume"
    with stop.ending_process(lambda: f"the evaluation is not finished; {again} to finish it"):
        distributed.set_timeout(config.train.start_timeout_min)
        with _watched("the evaluation", config, folder):
            results = task.report(folder)
        if results:
            sys.stdout.write(f"{results}\n")
    logger.info(events.Finished())


def _watched(what: str, config: RunConfig, folder: RunFolder) -> AbstractContextManager[None]:
    """Context manager that watches the activity ``what``, and logs the stacks of all threads if it takes too long."""
    from engine.stall import StallWatch

    return StallWatch(config.train.stall_s, folder.log).watching(what)


def _train(
    task: BaseTask[Any, Any, Any],
    folder: RunFolder,
    device: torch.device,
    checkpoint: Checkpoint | None,
    stop: StopRequest,
) -> None:
    from engine.trainer import Trainer
    from tasks.checks import check_start
    from tasks.data_identity import data_identity
    from tasks.held_out_media import check_held_out_media
    from utils.distributed import on_rank_0, rank

    config = task.config
    with stop.ending_process(), _watched("the set-up", config, folder):
        check_start(task)
        check_held_out_media(task)
        if rank() == 0:
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
            checkpoint=checkpoint,
            data=on_rank_0(lambda: data_identity(config.data)),
            stop=stop,
        )
    trainer.fit()


def _with_available_inputs(config: C, folder: RunFolder, checkpoint: Checkpoint | None, flags: RunFlags) -> C:
    """Replaces missing inputs in the config with the copies that the run, or the run that it starts from, has kept.

    Raises:
        UserError: if an input of the run is missing, or the weights were trained with a different tokenizer.
    """
    from tasks.kept import check_token_ids, run_and_weights_of, with_kept_inputs
    from utils.inputs import check_inputs

    evaluates_own_run = flags.evaluate and flags.resume
    if evaluates_own_run and checkpoint is None and not folder.best.is_file():
        raise UserError(
            f"--evaluate --resume: {folder.path} has no weights", remedy="pass the --output of a run that was trained"
        )
    # With one of the run's own checkpoints, init is not needed, and an evaluation does not need training data.
    uses_own_weights = checkpoint is not None or evaluates_own_run
    run, weights = run_and_weights_of(config.init.checkpoint)
    if uses_own_weights:
        run, weights = folder.path, folder.best if checkpoint is None else checkpoint.model_file
    config = with_kept_inputs(config, run)
    check_inputs(config, (*(("init",) if uses_own_weights else ()), *(("data",) if flags.evaluate else ())))
    check_token_ids(config, run, weights, resumes=uses_own_weights)
    return config


def default_output(run: BoundRun, *, evaluates_other_weights: bool = False) -> Path:
    """Returns the folder for a run without --output. An evaluation of other weights gets a separate folder next to the run's
    folder."""
    suffix = "-evaluate" if evaluates_other_weights else ""
    return Path("runs") / run.source.name / f"{run.file.stem}{suffix}"
