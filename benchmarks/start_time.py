"""CPU time of ``run.py --help``, relative to an empty Python program: ``python -m benchmarks.start_time``."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.harness import Comparison, Rounds, in_words, print_line
from utils.commands import call

ROOT = Path(__file__).parents[1]
EMPTY = ("-c", "pass")
HELP = ("run.py", "--help")


def cpu_s(words: Sequence[str], environment: Mapping[str, str]) -> float:
    """Returns the CPU time of a Python process, in seconds, user and system time together."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compared_times(flags: Rounds) -> Comparison:
    """Compares the CPU times of ``run.py --help`` and ``python -c pass``. Both use compiled modules (bytecode) from a temporary
    folder, as after any first run; the round that warms up compiles them."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        commands = {"run.py --help": HELP, "python -c pass": EMPTY}
        return flags.compare({name: partial(cpu_s, words, environment) for name, words in commands.items()})


def main(*, flags: Rounds = Rounds()) -> int:
    """Measures the CPU time of ``run.py --help`` and of ``python -c pass``.

    Examples:
        python -m benchmarks.start_time
    """
    compared = compared_times(flags)
    for name in compared.rounds[0]:
        print_line(f"{name:15} {in_words(compared.median(name))}")
    return flags.conclude(compared.ratio, compared.rounds)


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.start_time"))
