"""Commands of the command line. A command is a function: its parameters are the flags, and its docstring is the help.

A parameter without a default is a required flag, a keyword-only ``batch_size`` is ``--batch-size``, a ``bool`` takes no value,
and ``*overrides`` collects the remaining words. Flags that several commands share are the fields of a dataclass, marked with
:data:`FLAGS`. The section "Args" describes the flags, "Examples" is printed at the end of the help, and "Returns" describes the
exit statuses. :mod:`utils.flags` has the types of values.

cyclopts reads the arguments and prints the help. Of four libraries, it alone takes a flag with several values (``--records a b``)
and lets us word the errors. It needs 81 ms of processor time to run a small command and 163 ms for its help; typer needs 150 and
136 ms, pydantic-settings 164 and 162 ms, tyro 85 and 88 ms, and argparse 27 and 33 ms.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin

from cyclopts import (
    App,
    ArgumentCollection,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    RepeatArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
)
from cyclopts.token import Token

from utils.errors import UserError, one_line_errors
from utils.flags import NotAnOverrideError, WrongValueError, unknown
from utils.subcommands import subcommands_of

FLAGS = Parameter(name="*")
"""Decorates a dataclass whose fields are flags."""

STANDARD_INPUT = "/dev/stdin"

OVERRIDES = "overrides"
"""Name of the parameter that collects values of the config."""

Keys = Callable[[], Sequence[str]]

NUMBERS = {int: "a whole number", float: "a number"}
"""Words for the values of a type, in errors."""


class CommandLine(NamedTuple):
    """The command line of a command: how its arguments are read, and what is printed after the help of its flags."""

    app: App
    end_of_help: str


class HelpFormatter:
    """cyclopts's formatter, with descriptions of flags that take several lines in a docstring."""

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        for entry in panel.entries:
            description = entry.description.primary_renderable
            description.plain = " ".join(description.plain.split())
        self._default()(console, options, panel)

    def render_usage(self, *arguments: Any) -> None:
        self._default().render_usage(*arguments)

    @staticmethod
    def _default() -> Any:
        from cyclopts.help import DefaultFormatter  # takes time, and only the help needs it

        return DefaultFormatter()


@one_line_errors
def call(command: Callable[..., int] | CommandLine, argv: Sequence[str], name: str, keys: Keys = tuple) -> int:
    """Run a command as :func:`execute` does; a mistake of the user is printed as one line and has the exit status 2."""
    return execute(command, argv, name, keys)


def execute(command: Callable[..., int] | CommandLine, argv: Sequence[str], name: str, keys: Keys = tuple) -> int:
    """Run a command and return its exit status.

    Args:
        command: the function, or its :func:`command_line`.
        argv: the words after the name of the command. A lone ``-`` is standard input.
        name: how the command is called, for its help.
        keys: lists the config keys that overrides may set, to help a user who writes a key as a flag.

    Raises:
        UserError: for a mistake in the command line, or of the command.
    """
    command, argv, name = _subcommand(command, argv, name)
    command = command if isinstance(command, CommandLine) else command_line(command, name)
    function, bound = read_words(command, argv, name, keys)
    status = function(*bound.args, **bound.kwargs)
    if status is None:  # the function has printed the help
        sys.stdout.write(command.end_of_help)
        return 0
    return int(status)


def read_words(
    command: Callable[..., int] | CommandLine, argv: Sequence[str], name: str, keys: Keys = tuple
) -> tuple[Callable[..., int | None], inspect.BoundArguments]:
    """The function that :func:`call` would call, and its arguments.

    Raises:
        UserError: the words are wrong.
    """
    command, argv, name = _subcommand(command, argv, name)
    app = (command if isinstance(command, CommandLine) else command_line(command, name)).app
    words = [STANDARD_INPUT if word == "-" else word for word in argv]
    try:
        function, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False, verbose=False)
    except CycloptsError as error:
        raise UserError(_message(error, name, keys)) from None
    return function, bound


def _subcommand(
    command: Callable[..., int] | CommandLine, argv: Sequence[str], name: str
) -> tuple[Callable[..., int] | CommandLine, Sequence[str], str]:
    """The subcommand that the first word names, the words after it, and its name; for other words, the command itself."""
    subcommands = subcommands_of(command)
    if argv and argv[0] in subcommands:
        return _subcommand(subcommands[argv[0]].load(), argv[1:], f"{name} {argv[0]}")
    return command, argv, name


def command_line(command: Callable[..., int], name: str) -> CommandLine:
    """The command line of a command that is called ``name``."""
    app = App(
        name=name,
        help=_description(command),
        help_format="plaintext",
        help_formatter=HelpFormatter(),
        version_flags=(),
        default_parameter=Parameter(negative=(), show_default=_shown_default),
    )
    app["--help"].show = False  # or the help of each command begins with a list of commands, which is --help alone
    app.default(command)
    for word, subcommand in subcommands_of(command).items():
        app.command(subcommand.target, name=word, help=subcommand.help)
    # Not an epilogue of cyclopts, which would break the lines of the examples.
    return CommandLine(app, "".join(f"\n{part}\n" for part in _end_of_help(command)))


def argv_of(command: Callable[..., Any], *overrides: str, **values: Any) -> list[str]:
    """The words with which :func:`call` would call ``command(*overrides, **values)``. Values equal to the default are omitted.

    Overrides precede the flags, because a flag with several values takes all words up to the next flag.
    """
    words: list[str] = []
    for argument in command_line(command, "").app.assemble_argument_collection():
        if argument.field_info.kind is inspect.Parameter.VAR_POSITIONAL or argument.children:
            continue
        name, default = argument.field_info.name, argument.field_info.default
        value = values[name] if name in values else _in_dataclass(values, name, default)
        if value is True or (value == [] and default is None):  # a list that is given may be empty
            words.append(argument.name)
        elif value is not None and value is not False and value != default:
            for each in value if isinstance(value, list | tuple) else [value]:
                words += [argument.name, str(each)]
    return [*overrides, *words]


def _in_dataclass(values: dict[str, Any], name: str, default: Any) -> Any:
    """The value of a flag that is the field of a dataclass."""
    sections = (value for value in values.values() if is_dataclass(value))
    return next((getattr(section, name) for section in sections if hasattr(section, name)), default)


def _description(command: Callable[..., Any]) -> str:
    """The docstring above its first section. A paragraph is one line, which the help breaks where its page ends."""
    text = re.split(r"^\w+:\n", inspect.getdoc(command) or "", maxsplit=1, flags=re.MULTILINE)[0]
    return re.sub(r"(?<=\S)\n(?=\S)", " ", text).strip()


def _end_of_help(command: Callable[..., Any]) -> Iterator[str]:
    """The examples and the exit statuses in a command's docstring."""
    document = f"{inspect.getdoc(command) or ''}\n"
    for section, title in (("Examples", "examples:\n"), ("Returns", "exit status: ")):
        if found := re.search(rf"^{section}:\n((?:    .*\n|\n)+)", document, re.MULTILINE):
            text = inspect.cleandoc(found[1])
            yield title + (re.sub("^", "  ", text, flags=re.MULTILINE) if section == "Examples" else text)


def _shown_default(value: Any) -> str | None:
    """A default as the help shows it; None if it need not be shown."""
    if value is None or value is False or value in ([], ()):
        return None
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _message(error: CycloptsError, name: str, keys: Keys) -> str:
    """The line for a mistake in the command line: what is wrong, and the nearest flag or config key."""
    if isinstance(error, UnknownOptionError):
        return _unknown_flag(error.token, error.argument_collection, keys)
    if isinstance(error, UnusedCliTokensError):
        return f"{(error.unused_tokens or ['?'])[0]!r} is one argument too many; see {name} --help"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        flag = error.keyword or error.argument.name
        return f"{flag} {'needs a value' if error.keyword else 'is missing'}; see {name} --help"
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} was given twice; give it once"
    if isinstance(error, CoercionError) and error.token is not None:
        return _of_a_value(error, error.token, keys)
    return str(error)


def _of_a_value(error: CoercionError, token: Token, keys: Keys) -> str:
    if (wrong := _wrong_value(error)) is not None:
        fact = str(wrong)
        if isinstance(wrong, NotAnOverrideError) and (near := _nearest_keys(token.value, keys)):
            fact += f"; did you mean {' or '.join(f'{key}=VALUE' for key in near)}?"
        return f"{token.keyword}: {fact}" if token.keyword else fact
    if get_origin(error.target_type) is Literal:
        fact = unknown(token.value, get_args(error.target_type))
        return f"{token.keyword}: {fact}" if token.keyword else fact
    if error.target_type is bool:
        return f"{token.keyword} takes no value; remove {token.value!r}"
    if error.target_type in NUMBERS:
        return f"{token.keyword}: {token.value!r} is not {NUMBERS[error.target_type]}; give one"
    return str(error)


def _wrong_value(error: BaseException) -> WrongValueError | None:
    """The error of a type of :mod:`utils.flags` that led to this one; in a list, cyclopts does not name it as the cause."""
    earlier = error.__cause__ or error.__context__
    if earlier is None or isinstance(earlier, WrongValueError):
        return earlier
    return _wrong_value(earlier)


def _nearest_keys(name: str, keys: Keys) -> list[str]:
    from utils.config_files import nearest_keys  # only mistakes need it

    return nearest_keys(name, keys())[:2]


def _unknown_flag(token: Token, arguments: ArgumentCollection, keys: Keys) -> str:
    given = (token.keyword or token.value).partition("=")[0]
    name = given.lstrip("-").replace("-", "_")
    takes_overrides = any(argument.field_info.name == OVERRIDES for argument in arguments)
    near = _nearest_keys(name, keys) if takes_overrides else []
    is_key = any(key.rpartition(".")[2] == name for key in near)
    flags = [flag for argument in arguments for flag in argument.names if flag.startswith("-")]
    close = [] if is_key else difflib.get_close_matches(given, flags, n=1)
    close = close or [f"{key}=VALUE" for key in near]
    hint = f"did you mean {' or '.join(close)}?" if close else "see --help"
    explained = " (values of the config are given as key=value, without dashes)" if takes_overrides else ""
    return f"{given} is not a flag; {hint}{explained}"
