"""``run.py --slurm``: write the script of a SLURM job that runs a task, and submit it.

One script serves the first start, each requeue and a start after a lost node: ``--resume`` goes on from the newest checkpoint, or
starts the run. The script queues the job again when the run was stopped in order (exit status 75), and after no other status.
Sources: the manuals of sbatch, srun and scontrol.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from engine.run_files import METRICS_FILE
from launch.placement import ONE_NODE, Placement
from tasks.job import RunFlags
from utils.errors import UserError
from utils.flags import Positive, WrongValueError, read_by
from utils.processes import REQUEUE

if TYPE_CHECKING:
    from tasks.kinds import Choice

SCRIPT = "slurm.sh"
"""Name of the script in the run's folder."""

LOG = "slurm-%j.txt"
"""Name of the job's output in the run's folder; %j is the job's number, which a requeue keeps."""

MARGIN_S = 120
"""Seconds from the end of ``train.grace_s`` to the end of the job's time; SLURM may signal up to a minute early or late."""

LONGEST_NOTICE_S = 65535
"""Largest time of sbatch's --signal."""

TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")
"""minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds."""

OPTIONS = ("time", "partition", "account", "qos", "cpus_per_task", "mem", "job_name")
"""Flags of this module that need --slurm, beside --sbatch and --dry-run."""

OURS = ("nodes", "ntasks-per-node", "ntasks", "gpus-per-node", "signal", "requeue", "open-mode", "output")
"""Options of sbatch that the script sets itself."""


def _option(text: str) -> str:
    """An option of sbatch, without its dashes."""
    key = text.lstrip("-").partition("=")[0]
    if not re.fullmatch(r"[a-z][a-z0-9-]*", key) or "\n" in text:
        raise WrongValueError(f"{text!r} is no option of sbatch, such as constraint=a100")
    if key.replace("-", "_") in OPTIONS:  # --time is checked, which another one behind it would undo
        raise WrongValueError(f"{text!r}: give --{key} without --sbatch")
    if key in OURS:
        raise WrongValueError(f"{text!r}: run.py sets {key} itself; use its own flags")
    return text.lstrip("-")


def _time(text: str) -> str:
    """One of SLURM's forms of a time."""
    match = TIME.fullmatch(text)
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return text
    if match is None or _seconds(text) == 0:
        raise WrongValueError(
            f"{text!r} is none of SLURM's times: minutes, minutes:seconds, hours:minutes:seconds, days-hours, "
            "days-hours:minutes, days-hours:minutes:seconds"
        )
    return text


@Parameter(name="*", group="A job of SLURM")
@dataclass(frozen=True, kw_only=True)
class SlurmFlags:
    """A job of SLURM.

    Attributes:
        slurm: submit the run as a job that is requeued and resumes until it is done.
        dry_run: print the job's script, and submit nothing.
        time: as for sbatch: minutes, hours:minutes:seconds, days-hours, ...
        partition: partition of the nodes.
        account: account that the job is charged to.
        qos: quality of service.
        cpus_per_task: cores per node: a task is a node here.
        mem: memory per node, such as 400G.
        job_name: name of the job (default: that of the run's folder).
        sbatch: another option of sbatch, such as --sbatch constraint=a100 or --sbatch exclusive; may be repeated.
    """

    slurm: bool = False
    dry_run: bool = False
    time: Annotated[str | None, read_by(_time)] = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    cpus_per_task: Positive | None = None
    mem: str | None = None
    job_name: str | None = None
    sbatch: list[Annotated[str, read_by(_option)]] = field(default_factory=list)

    def check(self, placement: Placement) -> None:
        """Raises :class:`UserError` if the flags contradict each other, or those of the placement."""
        if not self.slurm:
            given = [name for name in (*OPTIONS, "sbatch", "dry_run") if getattr(self, name)]
            if given:
                raise UserError(f"--{given[0].replace('_', '-')} needs --slurm; add it, or leave this out")
            return
        for name in ("master", "node_rank"):
            if getattr(placement, name) is not None:
                raise UserError(f"--{name.replace('_', '-')}: SLURM gives a job its nodes; leave it out with --slurm")


@dataclass(frozen=True)
class Job:
    """A job of SLURM that runs a task.

    Attributes:
        choice: the task and its config.
        flags: of the run.
        placement: its devices and nodes.
        options: of the job.
        folder: of the run; absolute.
        words: the arguments of ``run.py`` on each node.
    """

    choice: Choice
    flags: RunFlags
    placement: Placement
    options: SlurmFlags
    folder: Path
    words: list[str]


def submit(job: Job) -> int:
    """Write the script into the run's folder and submit it, or with ``--dry-run`` print it; returns the exit status.

    Raises:
        UserError: for a mistake in the config, a folder with another run, a time too short to save a checkpoint, or no sbatch.
    """
    from utils.config import load_config  # imports pydantic, for which --help need not wait

    schema, _ = job.choice.load()
    config = load_config(job.choice.config, job.choice.overrides, schema)
    _check_folder(job)
    _check_nodes(job)
    text = script(job, config.train.grace_s)
    if job.options.dry_run:
        sys.stdout.write(text)
        return 0
    if shutil.which("sbatch") is None:
        raise UserError(
            "--slurm: there is no sbatch here; run this on a login node of the cluster, or add --dry-run to see the script"
        )
    file = job.folder / SCRIPT
    job.folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    done = subprocess.run(["sbatch", "--parsable", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no reason").splitlines()[-1]
        raise UserError(f"sbatch refused {file}: {reason}; change the flags, or --sbatch KEY=VALUE")
    number = done.stdout.strip().splitlines()[-1].partition(";")[0]  # NUMBER;CLUSTER where there are several
    sys.stdout.write(f"job {number}: {file}; output in {job.folder / LOG.replace('%j', number)}\n")
    return 0


def script(job: Job, grace_s: int) -> str:
    """The job's script. ``grace_s``: ``train.grace_s`` of the run.

    Raises:
        UserError: if the job's time is too short to save a checkpoint, or a path has a control character.
    """
    notice_s = min(grace_s + MARGIN_S, LONGEST_NOTICE_S)
    if job.options.time is not None and _seconds(job.options.time) <= notice_s:
        raise UserError(
            f"--time {job.options.time}: the run is asked to stop {notice_s} s before the end (train.grace_s = {grace_s}, and "
            f"{MARGIN_S}), and would train nothing; give more time"
        )
    words, options = _command(job), _options(job, notice_s)
    for value in (str(Path.cwd()), *words, *options):
        if any(ord(sign) < ord(" ") for sign in value):
            raise UserError(
                f"--slurm: {value!r} has a line break or another control character, which no script of SLURM can have; rename it"
            )
    lines = [f"#SBATCH {shlex.quote(f'--{option}')}" for option in options]
    command = shlex.join(["srun", "--kill-on-bad-exit=0", "--wait=0", *words])
    return TEMPLATE.format(
        options="\n".join(lines),
        folder=shlex.quote(str(Path.cwd())),
        command=command,
        status=REQUEUE,
        notice_s=notice_s,
    )


TEMPLATE = """#!/bin/bash
{options}

# Written by run.py --slurm. The run is asked to stop {notice_s} s before the end of its time: it saves a checkpoint and ends with
# status {status}. Then, and only then, it is queued again. SLURM queues it again by itself when a node is lost.
cd {folder} || exit 2
# srun takes the cores of a task from this variable alone.
if [ -n "${{SLURM_CPUS_PER_TASK:-}}" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi
# scancel stops the job for good, and a preempted job is queued by SLURM; a trap lets the run save before this script ends.
terminated=
trap 'terminated=1' TERM
{command}
status=$?
if [ "$status" -eq {status} ] && [ -z "$terminated" ]; then
  echo "status {status}: job $SLURM_JOB_ID is queued again, and resumes"
  scontrol requeue "$SLURM_JOB_ID" || echo "scontrol could not queue it again: submit this script once more" >&2
fi
exit "$status"
"""


def _options(job: Job, notice_s: int) -> list[str]:
    """Options of sbatch, without their dashes."""
    nodes, given = job.placement.nodes, job.options
    values = {
        "job-name": given.job_name or job.folder.name,
        "nodes": "1" if nodes is None else f"{nodes.least}-{nodes.most}" if nodes.elastic else str(nodes.most),
        "ntasks-per-node": "1",
        "gpus-per-node": job.placement.gpus,
        "cpus-per-task": given.cpus_per_task,
        "mem": given.mem,
        "time": given.time,
        "partition": given.partition,
        "account": given.account,
        "qos": given.qos,
        "signal": f"USR1@{notice_s}",
        "open-mode": "append",
        "output": str(Path(str(job.folder).replace("%", "%%")) / LOG),
    }
    return [*(f"{key}={value}" for key, value in values.items() if value is not None), "requeue", *given.sbatch]


def _command(job: Job) -> list[str]:
    """The command of each node."""
    top = Path(__file__).parents[__name__.count(".")]
    start = [str(top / "run.py")] if (top / "run.py").is_file() else ["-m", "x2vlm"]
    return [sys.executable, *start, *job.words]


def _check_folder(job: Job) -> None:
    """Refuse a folder that holds a run, unless it is to be resumed: the job always resumes."""
    if job.flags.resume or job.flags.evaluate or not (job.folder / METRICS_FILE).exists():
        return
    raise UserError(f"{job.folder} already holds a run; add --resume to resume it, or give another --output")


def _check_nodes(job: Job) -> None:
    """Refuse, before the job waits in the queue, numbers of ranks on which the run could not go on."""
    from launch.ranks import check_ranks  # imports torch

    nodes, each = job.placement.nodes or ONE_NODE, job.placement.gpus or job.placement.cpu
    if each is not None:
        check_ranks(job.choice, [count * each for count in nodes.counts], f"--nodes {nodes}")
    elif nodes.least < nodes.most:
        raise UserError(f"--nodes {nodes}: give --gpus N, the GPUs of a node, too")


def _seconds(text: str) -> float:
    """Seconds of one of SLURM's forms of a time."""
    match = TIME.fullmatch(text)
    if match is None:  # UNLIMITED
        return float("inf")
    first, second, third = (int(match[name] or 0) for name in ("first", "second", "third"))
    if match["days"] is not None:
        return ((int(match["days"]) * 24 + first) * 60 + second) * 60 + third
    if match["third"] is not None:
        return (first * 60 + second) * 60 + third
    return first * 60 + second
