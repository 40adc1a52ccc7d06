"""The command that runs a task, ``python run.py`` without a subcommand. It binds the config and starts
:mod:`launch.rank` on every rank."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.run_files import CONFIG_FILE
from launch import slurm
from launch.placement import ONE_NODE, Nodes, Placement, check_ranks
from launch.rank import write_run
from launch.slurm import SlurmFlags
from tasks.flag import TaskName
from tasks.run_flags import RunFlags, output_folder
from utils.commands import argv_of
from utils.errors import UserError
from utils.flags import Override
from utils.processes import WAIT_S

if TYPE_CHECKING:
    from tasks.binding import BoundRun


def launch(
    *overrides: Override,
    task: TaskName | None = None,
    flags: RunFlags = RunFlags(),
    placement: Placement = Placement(),
    slurm_job: SlurmFlags = SlurmFlags(),
) -> int:
    """Run a task on the CPU, on GPUs, or on several nodes; or run another command.

    Args:
        overrides: config values to override, as key=value.
        task: a task's name, a folder with task.py, or a module (default: the config's task).

    Examples:
        python run.py --task pretrain --output runs/demo
        python run.py --config configs/pretrain/base_4m.yaml --gpus 8 --output runs/base_4m
        python run.py --config C --gpus 8 --evaluate init.checkpoint=base_4m.safetensors
        python run.py --output runs/base_4m --resume --evaluate
        python run.py --config C --gpus 8 --nodes 4 --node-rank 0 --master node0:29500 --output runs/base_4m
        python run.py --config C --gpus 8 --nodes 1:2 --master node0:29500 --output runs/base_4m --resume
        python run.py --config C --output runs/base_4m --slurm --nodes 4 --gpus 8 --time 24:00:00 --partition gpu --dry-run
        python run.py --task my/counting --cpu 2 optim.lr=3e-5
    """
    # Imported here to keep --help fast.
    from launch.clusters import launch_context, unused_nodes_warning

    slurm_job.check(placement)
    placement.check()
    run = run_of_command_line(flags, overrides, task)
    flags = replace(flags, output=output_folder(run, flags))
    if slurm_job.slurm:
        return slurm.submit(_job_of(run, overrides, flags, placement, slurm_job))
    context = launch_context(placement, os.environ)
    if context.detected and context.first:
        sys.stderr.write(f"started as {context}\n")
    elif context.nodes == ONE_NODE and (warning := unused_nodes_warning(os.environ)):
        sys.stderr.write(f"{warning}\n")
    from launch.torchrun import become_rank, ranks_of_node, run_ranks

    if context.rank is not None:
        become_rank(context)
        from tasks.job import run_task

        return run_task(run, flags)
    ranks = ranks_of_node(placement, context)
    _check_nodes(run, flags, context.nodes, ranks)
    if context.nodes.elastic:
        flags = replace(flags, wait=flags.wait or WAIT_S)
    with tempfile.TemporaryDirectory(prefix="x2vlm-") as folder:
        bound = Path(folder) / "run.json"
        write_run(bound, run, flags)
        command = ["-m", "launch.rank", str(bound)]
        on_cpu = placement.cpu is not None
        return run_ranks(context, ranks, command, grace_s=run.config.train.grace_s, on_cpu=on_cpu)


def run_of_command_line(flags: RunFlags, overrides: Sequence[str], task: str | None) -> BoundRun:
    """Binds the run that the command line selects. When resuming with neither a config nor a task, this is the config that the
    run has saved, which must not be damaged. The task is found as the run has recorded it, and code in the run's folder is never
    executed."""
    from engine.saved_config import read_saved_config
    from tasks.binding import bind_run
    from utils.config_files import why_no_file

    if flags.config is not None or task is not None or not (flags.resume and flags.output):
        return bind_run(flags.config, overrides, task)
    saved = flags.output / CONFIG_FILE
    if not saved.is_file():
        problem = f"its {CONFIG_FILE} {why_no_file(saved)[0]}" if saved.exists() else f"does not contain {CONFIG_FILE}"
        raise UserError(f"--output {flags.output} --resume: {problem}", remedy="pass the folder of a run, or --config")
    read_saved_config(saved)  # raises the error for a damaged config, which says how to continue
    return bind_run(saved, overrides, folder_may_be_task=False)


def _job_of(
    run: BoundRun, overrides: Sequence[str], flags: RunFlags, placement: Placement, options: SlurmFlags
) -> slurm.Job:
    """Returns the SLURM job. Its nodes run the same command without the flags for SLURM."""
    assert flags.output is not None
    folder = flags.output.absolute()
    flags_of_node = replace(
        flags,
        config=str(run.file.absolute()),
        output=folder,
        wait=flags.wait or WAIT_S,
        # If --resume is also set, --evaluate evaluates the run in the folder.
        resume=flags.resume or not flags.evaluate,
    )
    arguments = argv_of(
        launch,
        *overrides,
        task=run.source.argument,
        flags=flags_of_node,
        placement=Placement(gpus=placement.gpus, cpu=placement.cpu),
    )
    return slurm.Job(run, flags, placement, options, folder, arguments)


def _check_nodes(run: BoundRun, flags: RunFlags, nodes: Nodes, ranks: int) -> None:
    """Checks, before the ranks start, that the run fits every number of nodes that the job may have, with ``ranks`` ranks each.

    Raises:
        UserError: if the number of nodes may change but the run does not resume, or if the sizes in the config do not fit.
    """
    if nodes.elastic and not flags.resume:
        raise UserError(
            f"--nodes {nodes} restarts the ranks, which then resume from the newest checkpoint: add --resume (in an empty "
            "folder, the run starts from the beginning)"
        )
    if flags.evaluate:
        return
    if nodes.min < nodes.max:
        check_ranks(run.config, [count * ranks for count in nodes.counts], f"--nodes {nodes}")
    else:
        run.config.plan(nodes.max * ranks)  # raises an error if the sizes do not fit
