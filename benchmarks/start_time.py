"""CPU time of ``run.py --help``, relative to an empty Python program: ``python -m benchmarks.start_time``."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.commands import call
from utils.flags import Positive

ROOT = Path(__file__).parents[1]
EMPTY = ("-c", "pass")
HELP = ("run.py", "--help")


def cpu_s(words: Sequence[str], environment: Mapping[str, str]) -> float:
    """Returns the CPU time of a Python process, in seconds, user and system time together."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured_pairs(rounds: int, cache: Path) -> list[tuple[float, float]]:
    """Returns the CPU times of ``run.py --help`` and ``python -c pass``, in seconds, measured alternately. Both use compiled
    modules (bytecode) from the folder ``cache``, as after any first run."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for words in (EMPTY, HELP):
        cpu_s(words, environment)  # compiles the modules
    return [(cpu_s(HELP, environment), cpu_s(EMPTY, environment)) for _ in range(rounds)]


def start_time(*, rounds: Positive = 15) -> int:
    """Measure the CPU time of ``run.py --help`` and of ``python -c pass``.

    Args:
        rounds: number of measurements of each.
    """
    with tempfile.TemporaryDirectory() as cache:
        pairs = measured_pairs(rounds, Path(cache))
    ratios = [of_help / of_empty for of_help, of_empty in pairs]
    for title, times in zip(("run.py --help", "python -c pass"), zip(*pairs, strict=True), strict=True):
        sys.stdout.write(f"{title:15}{1000 * statistics.median(times):6.0f} ms\n")
    sys.stdout.write(f"ratio: {statistics.median(ratios):.2f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(call(start_time, sys.argv[1:], "python -m benchmarks.start_time"))
