"""The harness of the benchmarks: alternating measurements, medians, the last line ``ratio: N.NN``, and JSON.

The speed of a virtual machine changes within seconds. Therefore, each round measures all alternatives one after another, and only
measurements of the same round are compared. ``torch.utils.benchmark`` and pyperf measure one alternative after the other has
finished all its rounds, so they do not replace this module.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from utils.commands import FLAGS
from utils.files import write_text
from utils.flags import Positive, PositiveReal
from utils.progress import progress_bar

T = TypeVar("T")


@dataclass(frozen=True)
class Comparison:
    """The results of two alternatives.

    Attributes:
        rounds: the values of both alternatives in each round, by name.
    """

    rounds: list[dict[str, float]]

    @property
    def ratios(self) -> list[float]:
        """The value of the first alternative divided by the value of the second, for each round."""
        return [first / second for first, second in (values.values() for values in self.rounds)]

    @property
    def ratio(self) -> float:
        """The median of :attr:`ratios`."""
        return statistics.median(self.ratios)

    def median(self, name: str) -> float:
        """Returns the median value of an alternative."""
        return statistics.median(values[name] for values in self.rounds)


@FLAGS
@dataclass(frozen=True)
class Rounds:
    """Flags of all benchmarks that compare alternatives.

    Args:
        rounds: number of measurements of each alternative.
        minutes: no round starts after this time, but at least one round is measured (default: no limit).
        json: also write the results to a JSON file.
    """

    rounds: Positive = 5
    minutes: PositiveReal | None = None
    json: Path | None = None

    def measured(self, alternatives: Mapping[str, Callable[[], T]], *, warm_up: bool = True) -> Iterator[dict[str, T]]:
        """Yields the measurements of each round, by the name of the alternative. The order of the alternatives changes from round
        to round. Progress and the remaining time are shown on standard error.

        Args:
            alternatives: functions that measure an alternative once and return the result, such as :func:`seconds_of` a call.
            warm_up: whether to begin with an additional round whose measurements are discarded.
        """
        started, names = time.monotonic(), list(alternatives)
        first = 0 if warm_up else 1
        for number in progress_bar(
            range(first, self.rounds + 1), total=self.rounds + 1 - first, desc="rounds", leave=False
        ):
            if self.minutes is not None and number > 1 and time.monotonic() - started > 60 * self.minutes:
                sys.stderr.write(f"stopped after {number - 1} of {self.rounds} rounds (--minutes {self.minutes:g})\n")
                return
            values = {name: alternatives[name]() for name in (names if number % 2 else reversed(names))}
            if number:
                yield {name: values[name] for name in names}

    def compare(self, alternatives: Mapping[str, Callable[[], float]], *, warm_up: bool = True) -> Comparison:
        """Compares two alternatives, and prints a line with their seconds and the ratio of the seconds for each round.

        Args:
            alternatives: functions that return seconds; the first is divided by the second.
            warm_up: see :meth:`measured`.
        """
        rounds = []
        for values in self.measured(alternatives, warm_up=warm_up):
            rounds.append(values)
            first, second = values.values()
            shown = ", ".join(f"{name} {in_words(seconds)}" for name, seconds in values.items())
            print_line(f"{shown}, ratio {first / second:.3f}")
        return Comparison(rounds)

    def conclude(self, ratio: float, rounds: list[dict[str, Any]], *, digits: int = 2, **others: Any) -> int:
        """Prints the last line of a benchmark, and writes the results to the file passed with ``--json``. Returns the exit
        status.

        Args:
            ratio: the result.
            rounds: the measurements.
            digits: number of printed decimal places.
            others: other results for the JSON file.
        """
        write_results(self.json, {"ratio": ratio, "rounds": rounds, **others})
        print_line(f"ratio: {ratio:.{digits}f}")
        return 0


def seconds_of(run: Callable[[], object]) -> float:
    """Returns the wall time of a call in seconds."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def in_words(seconds: float) -> str:
    """Formats a duration in seconds, or in milliseconds if it is shorter than a second."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.2f} ms"


def print_line(line: str) -> None:
    """Prints a line immediately, even if standard output is a file."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def write_results(path: Path | None, results: Any) -> None:
    """Writes ``results``, which are JSON values, to the file passed with ``--json``, if any."""
    if path is not None:
        write_text(path, json.dumps(results, indent=2) + "\n")
