"""``run.py --slurm``: write the script of a SLURM job that runs a task, and submit it.

One script serves the first start, each requeue and a start after a lost node: ``--resume`` goes on from the newest checkpoint, or
starts the run. The script queues the job again when the run was stopped in order (exit status 75), and after no other status.
Sources: the manuals of sbatch, srun and scontrol.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from engine.run_files import METRICS_FILE
from tasks.job import default_output
from tasks.kinds import Choice
from utils.clusters import ONE_NODE
from utils.config import load_config
from utils.errors import UserError
from utils.flags import positive
from utils.folder_lock import WAIT_S
from utils.processes import REQUEUE

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


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of a job of SLURM."""
    group = parser.add_argument_group("a job of SLURM")
    flag = group.add_argument
    flag("--slurm", action="store_true", help="submit the run as a job that is requeued and resumes until it is done")
    flag("--dry-run", action="store_true", help="print the job's script, and submit nothing")
    flag("--time", type=_time, metavar="T", help="as for sbatch: minutes, hours:minutes:seconds, days-hours, ...")
    flag("--partition", metavar="P", help="partition of the nodes")
    flag("--account", metavar="A", help="account that the job is charged to")
    flag("--qos", metavar="Q", help="quality of service")
    flag("--cpus-per-task", type=positive, metavar="N", help="cores per node: a task is a node here")
    flag("--mem", metavar="M", help="memory per node, such as 400G")
    flag("--job-name", metavar="NAME", help="name of the job (default: that of the run's folder)")
    flag(
        "--sbatch",
        action="append",
        default=[],
        type=_option,
        metavar="KEY[=VALUE]",
        help="another option of sbatch, such as --sbatch constraint=a100 or --sbatch exclusive; may be repeated",
    )


def check_flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End the program with one line and status 2 if the flags of :func:`add_flags` contradict the others."""
    if not arguments.slurm:
        given = [name for name in (*OPTIONS, "sbatch", "dry_run") if getattr(arguments, name)]
        if given:
            parser.error(f"--{given[0].replace('_', '-')} needs --slurm")
        return
    for name in ("master", "node_rank"):
        if getattr(arguments, name) is not None:
            parser.error(f"--{name.replace('_', '-')}: SLURM gives a job its nodes; leave it out with --slurm")


def submit(choice: Choice, arguments: argparse.Namespace) -> int:
    """Write the script into the run's folder and submit it, or with ``--dry-run`` print it; returns the exit status.

    Raises:
        UserError: for a mistake in the config, a folder with another run, a time too short to save a checkpoint, or no sbatch.
    """
    evaluates_others = arguments.evaluate and not arguments.resume
    output = Path(arguments.output) if arguments.output else default_output(choice, evaluates_others=evaluates_others)
    schema, _ = choice.load()
    config = load_config(choice.config, arguments.overrides, schema)
    _check_folder(output, arguments)
    _check_nodes(choice, arguments)
    text = script(choice, arguments, output, config.train.grace_s)
    if arguments.dry_run:
        sys.stdout.write(text)
        return 0
    if shutil.which("sbatch") is None:
        raise UserError(
            "--slurm: there is no sbatch here; run this on a login node of the cluster, or add --dry-run to see the script"
        )
    file = output / SCRIPT
    output.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    done = subprocess.run(["sbatch", "--parsable", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no reason").splitlines()[-1]
        raise UserError(f"sbatch refused {file}: {reason}; change the flags, or --sbatch KEY=VALUE")
    job = done.stdout.strip().splitlines()[-1].partition(";")[0]  # NUMBER;CLUSTER where there are several
    sys.stdout.write(f"job {job}: {file}; output in {output / LOG.replace('%j', job)}\n")
    return 0


def script(choice: Choice, arguments: argparse.Namespace, output: Path, grace_s: int) -> str:
    """The job's script.

    Args:
        choice: the task and its config.
        arguments: of the command line.
        output: folder of the run.
        grace_s: ``train.grace_s``.

    Raises:
        UserError: if the job's time is too short to save a checkpoint, or a path has a control character.
    """
    folder = output.absolute()
    notice_s = min(grace_s + MARGIN_S, LONGEST_NOTICE_S)
    if arguments.time is not None and _seconds(arguments.time) <= notice_s:
        raise UserError(
            f"--time {arguments.time}: the run is asked to stop {notice_s} s before the end (train.grace_s = {grace_s}, and "
            f"{MARGIN_S}), and would train nothing; give more time"
        )
    words = _command(choice, arguments, folder)
    for value in (str(Path.cwd()), *words, *_options(arguments, folder, notice_s)):
        if any(ord(sign) < ord(" ") for sign in value):
            raise UserError(
                f"--slurm: {value!r} has a line break or another control character, which no script of SLURM can have; rename it"
            )
    lines = [f"#SBATCH {shlex.quote(f'--{option}')}" for option in _options(arguments, folder, notice_s)]
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


def _options(arguments: argparse.Namespace, folder: Path, notice_s: int) -> list[str]:
    """Options of sbatch, without their dashes."""
    nodes = arguments.nodes
    values = {
        "job-name": arguments.job_name or folder.name,
        "nodes": "1" if nodes is None else f"{nodes.least}-{nodes.most}" if nodes.elastic else str(nodes.most),
        "ntasks-per-node": "1",
        "gpus-per-node": arguments.gpus,
        "cpus-per-task": arguments.cpus_per_task,
        "mem": arguments.mem,
        "time": arguments.time,
        "partition": arguments.partition,
        "account": arguments.account,
        "qos": arguments.qos,
        "signal": f"USR1@{notice_s}",
        "open-mode": "append",
        "output": str(Path(str(folder).replace("%", "%%")) / LOG),
    }
    return [*(f"{key}={value}" for key, value in values.items() if value is not None), "requeue", *arguments.sbatch]


def _command(choice: Choice, arguments: argparse.Namespace, folder: Path) -> list[str]:
    """The command of each node."""
    top = Path(__file__).parents[__name__.count(".")]
    start = [str(top / "run.py")] if (top / "run.py").is_file() else ["-m", "x2vlm"]
    words = [sys.executable, *start, "--task", choice.source.argument, "--config", str(choice.config.absolute())]
    words += ["--output", str(folder), "--wait", str(arguments.wait or WAIT_S)]
    # With --resume, an evaluation is one of the folder's own run.
    words += ["--resume"] if arguments.resume or not arguments.evaluate else []
    words += ["--gpus", str(arguments.gpus)] if arguments.gpus else []
    words += ["--cpu", str(arguments.cpu)] if arguments.cpu else []
    words += ["--evaluate"] if arguments.evaluate else []
    return [*words, *arguments.overrides]


def _check_folder(output: Path, arguments: argparse.Namespace) -> None:
    """Refuse a folder that holds a run, unless it is to be resumed: the job always resumes."""
    if arguments.resume or arguments.evaluate or not (output / METRICS_FILE).exists():
        return
    raise UserError(f"{output} already holds a run; add --resume to resume it, or give another --output")


def _check_nodes(choice: Choice, arguments: argparse.Namespace) -> None:
    """Refuse, before the job waits in the queue, numbers of ranks on which the run could not go on."""
    from tasks.ranks import check_ranks  # imports torch

    nodes, each = arguments.nodes or ONE_NODE, arguments.gpus or arguments.cpu
    if each is not None:
        check_ranks(choice, arguments, [count * each for count in nodes.counts], f"--nodes {nodes}")
    elif nodes.least < nodes.most:
        raise UserError(f"--nodes {nodes}: give --gpus N, the GPUs of a node, too")


def _option(text: str) -> str:
    """An option of sbatch for argparse, without its dashes."""
    key = text.lstrip("-").partition("=")[0]
    if not re.fullmatch(r"[a-z][a-z0-9-]*", key) or "\n" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no option of sbatch, such as constraint=a100")
    if key.replace("-", "_") in OPTIONS:  # --time is checked, which another one behind it would undo
        raise argparse.ArgumentTypeError(f"{text!r}: give --{key} without --sbatch")
    if key in OURS:
        raise argparse.ArgumentTypeError(f"{text!r}: run.py sets {key} itself; use its own flags")
    return text.lstrip("-")


def _time(text: str) -> str:
    """One of SLURM's forms of a time, for argparse."""
    match = TIME.fullmatch(text)
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return text
    if match is None or _seconds(text) == 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of SLURM's times: minutes, minutes:seconds, hours:minutes:seconds, days-hours, "
            "days-hours:minutes, days-hours:minutes:seconds"
        )
    return text


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
