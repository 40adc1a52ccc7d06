"""Flags that several commands share, and argparse types for their values."""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable, Sequence

from utils.config import nearest_keys


def add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task", metavar="TASK", help="a task's name, a folder with task.py, or a module (default: the config's task)"
    )


def add_config(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    default = "" if required else " (default: the task's own)"
    parser.add_argument("--config", required=required, metavar="FILE", help=f"YAML file; see configs/{default}")


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="DIR", help="folder of the run (default: runs/<task>/<config's name>)")


def add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="resume from the newest checkpoint in --output")


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="do not train: evaluate the weights of init.checkpoint (with --resume: those of the run)",
    )


def add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait",
        type=positive,
        metavar="S",
        help="wait up to S seconds for an --output in use: a lost node gives its run up late (default: refuse at once)",
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the config's")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str], keys: Sequence[str] = ()) -> argparse.Namespace:
    """Parse flags and overrides in any order. A wrong argument ends the program with one line and status 2.

    Args:
        parser: with :func:`add_overrides`.
        argv: words of the command line.
        keys: paths of the keys that overrides may set, to explain a key that was given as a flag.
    """
    arguments, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        word = next((word for word in unknown if word.startswith("-")), unknown[0])
        given = word.partition("=")[0]
        name = given.lstrip("-").replace("-", "_")
        near = nearest_keys(name, keys)[:2]
        flags = [flag for action in parser._actions for flag in action.option_strings]
        is_key = any(key.rpartition(".")[2] == name for key in near)
        close = [] if is_key else difflib.get_close_matches(given, flags, n=1)
        close = close or [f"{key}=VALUE" for key in near]
        hint = f"did you mean {' or '.join(close)}?" if close else "see --help"
        parser.error(f"{word} is not a flag; {hint} (values of the config are given as key=value, without dashes)")
    for text in arguments.overrides:
        if "=" not in text:
            close = nearest_keys(text, keys)[:2]
            remedy = f"; did you mean {' or '.join(f'{key}=VALUE' for key in close)}?" if close else ""
            remedy = f"; did you mean --config {text}?" if text.endswith((".yaml", ".yml")) else remedy
            parser.error(f"{text!r} is neither a flag nor of the form key=value{remedy}")
    return arguments


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """One of some names, for argparse; a misspelled one is reported with the nearest."""

    def name(text: str) -> str:
        if text in names:
            return text
        close = difflib.get_close_matches(text, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(names)}"
        raise argparse.ArgumentTypeError(f"{text!r} is unknown; {hint}")

    return name


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:  # not isdigit, which takes ² for a digit
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def positive_real(text: str) -> float:
    """A finite number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def within(least: float, most: float) -> Callable[[str], float]:
    """A number from ``least`` to ``most``, for argparse."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least:g} to {most:g}")
        return value

    return number


def sentence(text: str) -> str:
    """A text that is not blank, for argparse."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is blank; give a text")
    return text


def share(text: str) -> float:
    """A number above 0 and at most 1, for argparse."""
    value = positive_real(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 1, all there is")
    return value
