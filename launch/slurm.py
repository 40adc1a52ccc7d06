"""Implements ``run.py --slurm``, which writes a SLURM job script that runs a task, and submits it.

The same script is used for the first start, for each requeue and for a restart after a lost node, because ``--resume`` continues
from the newest checkpoint, or starts the run if there is no checkpoint. The script requeues the job only if the run saved a
checkpoint and stopped on request (exit status 75). See the manuals of sbatch, srun and scontrol.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from engine.run_files import METRICS_FILE
from launch.placement import ONE_NODE, Placement, check_ranks
from tasks.run_flags import RunFlags
from utils.errors import UserError
from utils.flags import Positive, WrongValueError, named, read_by
from utils.printing import is_unicode
from utils.processes import REQUEUE

if TYPE_CHECKING:
    from tasks.binding import BoundRun

SCRIPT = "slurm.sh"
"""Name of the script in the run's folder."""

LOG = "slurm-%j.txt"
"""Name of the job's output file in the run's folder. %j is the job ID, which stays the same when the job is requeued."""

MARGIN_S = 120
"""Seconds between the end of ``train.grace_s`` and the job's time limit. A margin is needed because SLURM may send the signal up
to a minute early or late."""

MAX_NOTICE_S = 65535
"""Maximum time that sbatch accepts in --signal, in seconds."""

TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")
"""Matches minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes and days-hours:minutes:seconds."""

OPTIONS = ("time", "partition", "account", "qos", "cpus_per_task", "mem", "job_name")
"""Flags of this module that need --slurm, in addition to --sbatch and --dry-run."""

RESERVED_OPTIONS = ("nodes", "ntasks-per-node", "ntasks", "gpus-per-node", "signal", "requeue", "open-mode", "output")
"""sbatch options that users cannot set, because the script sets them."""


def _option(text: str) -> str:
    """Checks an sbatch option and returns it without leading dashes."""
    key = text.lstrip("-").partition("=")[0]
    if not re.fullmatch(r"[a-z][a-z0-9-]*", key) or "\n" in text:
        raise WrongValueError(f"{text!r} is not an sbatch option; use one such as constraint=a100")
    if key.replace("-", "_") in OPTIONS:  # a second --time would bypass the check of the first
        raise WrongValueError(f"{text!r}: pass --{key} directly, without --sbatch")
    if key in RESERVED_OPTIONS:
        raise WrongValueError(f"{text!r}: run.py sets {key}; use run.py's flags instead")
    return text.lstrip("-")


def _time(text: str) -> str:
    """Checks that a string is a SLURM time."""
    match = TIME.fullmatch(text)
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return text
    if match is None or _seconds(text) == 0:
        raise WrongValueError(
            f"{text!r} is not a SLURM time; use minutes, minutes:seconds, hours:minutes:seconds, days-hours, "
            "days-hours:minutes or days-hours:minutes:seconds"
        )
    return text


@Parameter(name="*", group="SLURM job")
@dataclass(frozen=True, kw_only=True)
class SlurmFlags:
    """Flags of a SLURM job.

    Attributes:
        slurm: submit the run as a job that is requeued and resumed until the run is done.
        dry_run: print the job script without submitting it.
        time: time limit as for sbatch: minutes, hours:minutes:seconds, days-hours, ...
        partition: partition of the nodes.
        account: account that the job is charged to.
        qos: quality of service.
        cpus_per_task: cores per node, since each node runs one task.
        mem: memory per node, such as 400G.
        job_name: name of the job (default: the name of the run's folder).
        sbatch: additional sbatch option, such as --sbatch constraint=a100 or --sbatch exclusive; may be repeated.
    """

    slurm: bool = False
    dry_run: bool = False
    time: Annotated[str | None, read_by(_time, metavar="TIME")] = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    cpus_per_task: Positive | None = None
    mem: str | None = None
    job_name: str | None = None
    sbatch: Annotated[list[Annotated[str, read_by(_option)]], named("KEY[=VALUE]")] = field(default_factory=list)

    def check(self, placement: Placement) -> None:
        """Raises :class:`UserError` if the flags contradict each other or the placement flags."""
        if not self.slurm:
            used = [name for name in (*OPTIONS, "sbatch", "dry_run") if getattr(self, name)]
            if used:
                raise UserError(
                    f"--{used[0].replace('_', '-')} needs --slurm", remedy="add --slurm, or remove this flag"
                )
            return
        placement.check_restarts(ONE_NODE)  # SLURM restarts the whole job
        for name in ("master", "node_rank"):
            if getattr(placement, name) is not None:
                raise UserError(
                    "with --slurm, SLURM assigns the nodes of a job",
                    where=f"--{name.replace('_', '-')}",
                    remedy="remove this flag",
                )


@dataclass(frozen=True)
class Job:
    """A SLURM job that runs a task.

    Attributes:
        run: the task and its config.
        flags: flags of the run.
        placement: devices and nodes of the run.
        options: options of the job.
        folder: absolute path of the run's folder.
        arguments: the arguments of ``run.py`` on each node.
    """

    run: BoundRun
    flags: RunFlags
    placement: Placement
    options: SlurmFlags
    folder: Path
    arguments: list[str]


def submit(job: Job) -> int:
    """Writes the job script to the run's folder and submits it. With ``--dry-run``, only prints the script. Returns the exit
    status.

    Raises:
        UserError: if the folder already contains a run, the time limit is too short to save a checkpoint,
            or sbatch is not installed.
    """
    # Imported here to keep --help fast.
    import shutil
    import subprocess

    _check_folder(job)
    _check_nodes(job)
    text = script(job, job.run.config.train.grace_s)
    if job.options.dry_run:
        sys.stdout.write(text)
        return 0
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch was not found",
            where="--slurm",
            remedy="run this on a login node of the cluster, or add --dry-run to see the script",
        )
    file = job.folder / SCRIPT
    job.folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    done = subprocess.run(["sbatch", "--parsable", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise UserError(f"sbatch refused {file}: {reason}", remedy="change the flags, or --sbatch KEY=VALUE")
    job_id = done.stdout.strip().splitlines()[-1].partition(";")[0]  # ID;CLUSTER if there are several clusters
    sys.stdout.write(f"job {job_id}: {file}; output in {job.folder / LOG.replace('%j', job_id)}\n")
    return 0


def script(job: Job, grace_s: int) -> str:
    """Returns the job script.

    Args:
        job: the job.
        grace_s: ``train.grace_s`` of the run.

    Raises:
        UserError: if the time limit is too short to save a checkpoint, or a path contains a control character
            or is not valid UTF-8.
    """
    notice_s = min(grace_s + MARGIN_S, MAX_NOTICE_S)
    if job.options.time is not None and _seconds(job.options.time) <= notice_s:
        raise UserError(
            f"the run is asked to stop {notice_s} s before the end (train.grace_s = {grace_s}, plus {MARGIN_S}), "
            "so it would not train at all",
            where=f"--time {job.options.time}",
            remedy="increase --time",
        )
    command, options = _command(job), _options(job, notice_s)
    for value in (str(Path.cwd()), *command, *options):
        if any(ord(character) < ord(" ") for character in value) or not is_unicode(value):
            raise UserError(
                f"{value!r} contains a line break, another control character, or bytes that are not valid UTF-8, "
                "which a SLURM script must not contain",
                where="--slurm",
                remedy="rename it",
            )
    lines = [f"#SBATCH {shlex.quote(f'--{option}')}" for option in options]

    return TEMPLATE.format(
        options="\n".join(lines),
        folder=shlex.quote(str(Path.cwd())),
        command=shlex.join(["srun", "--kill-on-bad-exit=0", "--wait=0", *command]),
        status=REQUEUE,
        notice_s=notice_s,
    )


TEMPLATE = """#!/bin/bash
{options}

# Written by run.py --slurm. The run is asked to stop {notice_s} s before its time limit: it saves a checkpoint and exits with
# status {status}, and this script then requeues the job. When a node is lost, SLURM requeues the job automatically.
cd {folder} || exit 2
# srun reads the number of cores per task only from this variable.
if [ -n "${{SLURM_CPUS_PER_TASK:-}}" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi
# SIGTERM means scancel, after which the job must not be requeued, or preemption, after which SLURM itself requeues the job. The
# trap keeps this shell alive while the run saves a checkpoint.
terminated=
trap 'terminated=1' TERM
{command}
status=$?
if [ "$status" -eq {status} ] && [ -z "$terminated" ]; then
  echo "status {status}: requeueing job $SLURM_JOB_ID, which will resume"
  scontrol requeue "$SLURM_JOB_ID" || echo "scontrol could not requeue the job: submit this script again" >&2
fi
exit "$status"
"""


def _options(job: Job, notice_s: int) -> list[str]:
    """Returns the sbatch options, without leading dashes."""
    nodes, options = job.placement.nodes, job.options
    values = {
        "job-name": options.job_name or job.folder.name,
        "nodes": "1" if nodes is None else f"{nodes.min}-{nodes.max}" if nodes.elastic else str(nodes.max),
        "ntasks-per-node": "1",
        "gpus-per-node": job.placement.gpus,
        "cpus-per-task": options.cpus_per_task,
        "mem": options.mem,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "signal": f"USR1@{notice_s}",
        "open-mode": "append",
        "output": str(Path(str(job.folder).replace("%", "%%")) / LOG),
    }
    return [*(f"{key}={value}" for key, value in values.items() if value is not None), "requeue", *options.sbatch]


def _command(job: Job) -> list[str]:
    """Returns the command that runs on each node."""
    program = Path(__file__).parents[__name__.count(".")] / "run.py"
    start = [str(program)] if program.is_file() else ["-m", "x2vlm"]
    return [sys.executable, *start, *job.arguments]


def _check_folder(job: Job) -> None:
    """Raises :class:`UserError` if the folder contains a run and --resume was not passed. (The job's own command always contains
    --resume.)"""
    if job.flags.resume or job.flags.evaluate or not (job.folder / METRICS_FILE).exists():
        return
    raise UserError(f"{job.folder} already contains a run", remedy="add --resume to resume it, or use another --output")


def _check_nodes(job: Job) -> None:
    """Raises :class:`UserError` if the run does not support one of the possible numbers of nodes. Without this check, the job
    would wait in the queue before it fails."""
    nodes, per_node = job.placement.nodes or ONE_NODE, job.placement.gpus or job.placement.cpu
    if per_node is not None:
        check_ranks(job.run.config, [count * per_node for count in nodes.counts], f"--nodes {nodes}")
    elif nodes.min < nodes.max:
        raise UserError("also pass --gpus N, the number of GPUs per node", where=f"--nodes {nodes}")


def _seconds(text: str) -> float:
    """Converts a SLURM time to seconds."""
    match = TIME.fullmatch(text)
    if match is None:  # UNLIMITED
        return float("inf")
    first, second, third = (int(match[name] or 0) for name in ("first", "second", "third"))
    if match["days"] is not None:
        return ((int(match["days"]) * 24 + first) * 60 + second) * 60 + third
    if match["third"] is not None:
        return (first * 60 + second) * 60 + third
    return first * 60 + second
