"""Command-line commands. A command is a function whose parameters are the flags and whose docstring is the help.

A parameter without a default is a required flag, a keyword-only ``batch_size`` becomes ``--batch-size``, a ``bool`` takes no
value, and ``*overrides`` collects the remaining arguments. Flags that several commands share are the fields of a dataclass marked
with :data:`FLAGS`. The "Args" section of the docstring describes the flags, "Examples" is printed at the end of the help, and
"Returns" describes the exit statuses. :mod:`utils.flags` defines the types of values.

cyclopts parses the arguments and prints the help. Of the four libraries that we tried, only cyclopts both accepts a flag with
several values (``--records a b``) and lets us write the error messages. It takes 81 ms of CPU time to run a small command and 163
ms to print its help. In comparison, typer takes 150 and 136 ms, pydantic-settings 164 and 162 ms, tyro 85 and 88 ms, and argparse
27 and 33 ms.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args, get_origin

from cyclopts import (
    App,
    Argument,
    ArgumentCollection,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    RepeatArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
    default_name_transform,
)
from cyclopts.token import Token
from cyclopts.utils import is_option_like

from utils.errors import UserError, one_line_errors
from utils.flags import NotAnOverrideError, WrongValueError, unknown
from utils.subcommands import subcommands_of

FLAGS = Parameter(name="*")
"""Decorator for a dataclass whose fields are flags."""

STANDARD_INPUT = "/dev/stdin"

OVERRIDES = "overrides"
"""Name of the parameter that collects config overrides."""


class DashedText(str):
    """An argument that begins with a dash and contains a space, such as "-5 degrees". No flag contains a space, so this is a
    value, but cyclopts treats every argument that begins with a dash as a flag."""

    def startswith(self, prefix: str | tuple[str, ...], *bounds: Any) -> bool:
        return prefix != "-" and super().startswith(prefix, *bounds)


Keys = Callable[[], Sequence[str]]

NUMBERS = {int: "a whole number", float: "a number"}
"""Descriptions of the values of each type, for error messages."""


class CommandLine(NamedTuple):
    """The parser of a command's arguments, and the text that is printed after the help of its flags."""

    app: App
    end_of_help: str


class HelpFormatter:
    """Extends cyclopts's help formatter: joins the lines of a flag's description, and shows the names of positional arguments in
    the usage line. Names are followed by dots if several values are allowed, as in ``RUNS...``.

    Args:
        command: the function whose parameters are the flags.
        name: name of the command, which may consist of several words, such as ``python -m benchmarks.gpu``.
    """

    def __init__(self, command: Callable[..., int], name: str):
        self.command, self.name = command, name

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        labels = {label.removesuffix("..."): label for label in self._positionals}
        for entry in panel.entries:
            description = entry.description.primary_renderable
            description.plain = " ".join(description.plain.split())
            entry.positional_label = labels.get(entry.positional_label, entry.positional_label)
        self._default()(console, options, panel)

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        positionals = self._positionals
        flags = [word for word in usage.plain.split() if not word.startswith("[ARGS")]
        flags = flags[: len(flags) - sum(positionals.values())]  # drop cyclopts's labels for required arguments
        named = [label if required else f"[{label}]" for label, required in positionals.items()]
        if any("..." not in label for label in positionals) and "COMMAND" in flags:
            flags.remove("COMMAND")  # the first positional argument is the command
        # A flag with several values takes all arguments up to the next flag, so single positional arguments come before the
        # flags.
        single = [label for label in named if "..." not in label]
        several = [label for label in named if "..." in label]
        start = len(self.name.split())
        usage.plain = " ".join([*flags[:start], *single, *flags[start:], *several]) + "\n"
        self._default().render_usage(console, options, usage)

    @cached_property
    def _positionals(self) -> dict[str, bool]:
        """Maps the names of the positional arguments to whether they are required. Asking cyclopts would take 6 ms."""
        found = {}
        for parameter in inspect.signature(self.command, eval_str=True).parameters.values():
            if parameter.kind is not parameter.KEYWORD_ONLY:
                hint, options = Parameter.from_annotation(parameter.annotation)
                label = next(iter(options.name or [default_name_transform(parameter.name)])).upper()
                several = parameter.kind is parameter.VAR_POSITIONAL or get_origin(hint) in (list, tuple)
                required = parameter.kind is not parameter.VAR_POSITIONAL and parameter.default is parameter.empty
                found[label + "..." * several] = required
        return found

    @staticmethod
    def _default() -> Any:
        from cyclopts.help import DefaultFormatter  # slow to import, and only needed for the help

        return DefaultFormatter()


@one_line_errors
def call(command: Callable[..., int] | CommandLine, argv: Sequence[str], name: str, keys: Keys = tuple) -> int:
    """Runs a command like :func:`execute`, but prints user errors as one line and returns exit status 2 for them."""
    return execute(command, argv, name, keys)


def execute(command: Callable[..., int] | CommandLine, argv: Sequence[str], name: str, keys: Keys = tuple) -> int:
    """Runs a command and returns its exit status.

    Args:
        command: the function, or the command line that :func:`command_line` has built for it.
        argv: the arguments after the command's name. A lone ``-`` means standard input.
        name: name of the command as shown in its help.
        keys: returns the config keys that overrides may set. They are suggested to users who write a key as a flag.

    Raises:
        UserError: if the command line is invalid, or if the command raises such an error.
    """
    command, function, bound = _parsed(command, argv, name, keys)
    status = function(*bound.args, **bound.kwargs)
    if status is None:  # cyclopts has printed the help
        sys.stdout.write(command.end_of_help)
        return 0
    return int(status)


def parse_arguments(
    command: Callable[..., int] | CommandLine, argv: Sequence[str], name: str, keys: Keys = tuple
) -> tuple[Callable[..., int | None], inspect.BoundArguments]:
    """Returns the function that :func:`call` would run, and its arguments.

    Raises:
        UserError: if the command line is invalid.
    """
    _, function, bound = _parsed(command, argv, name, keys)
    return function, bound


def _parsed(
    command: Callable[..., int] | CommandLine, argv: Sequence[str], name: str, keys: Keys
) -> tuple[CommandLine, Callable[..., int | None], inspect.BoundArguments]:
    """Parses the arguments of a command or of its subcommand; see :func:`parse_arguments`."""
    if argv and (subcommand := subcommands_of(command).get(argv[0])) is not None:
        return _parsed(subcommand.load(), argv[1:], f"{name} {argv[0]}", keys)
    command = command if isinstance(command, CommandLine) else command_line(command, name)
    # A lone dash is standard input. Values that begin with a dash are marked, because cyclopts would take them for flags.
    arguments = [
        STANDARD_INPUT
        if text == "-"
        else DashedText(text)
        if text.startswith("-") and " " in text.partition("=")[0]
        else text
        for text in argv
    ]
    _reject_values_of_switches(command.app, arguments)
    try:
        function, bound, _ = command.app.parse_args(arguments, exit_on_error=False, print_error=False, verbose=False)
    except CycloptsError as error:
        raise UserError(_message(error, command.app, keys)) from None
    return command, function, bound


def _reject_values_of_switches(app: App, arguments: Sequence[str]) -> None:
    """Raises :class:`UserError` if a switch has a value, as in ``--resume=no``, which cyclopts would accept."""
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    values = {
        name: value for name, equals, value in (flag.partition("=") for flag in flags) if equals and name[:1] == "-"
    }
    for argument in app.assemble_argument_collection(parse_docstring=False) if values else ():
        if argument.is_flag() and (name := argument.name) in values:
            raise UserError(f"{name} takes no value", remedy=f"remove {values[name]!r}")


def command_line(command: Callable[..., int], name: str) -> CommandLine:
    """Builds the command line of a command named ``name``."""
    # The help is the docstring up to its first section, with each paragraph on one line, since the help wraps lines itself.
    text = re.split(r"^\w+:\n", inspect.getdoc(command) or "", maxsplit=1, flags=re.MULTILINE)[0]
    app = App(
        name=name,
        help=re.sub(r"(?<=\S)\n(?=\S)", " ", text).strip(),
        help_format="plaintext",
        version_flags=(),
        default_parameter=Parameter(negative=(), json_list=False, show_default=_shown_default),
    )
    app.help_formatter = HelpFormatter(command, name)
    app["--help"].show = False  # otherwise each help begins with a list of commands whose only entry is --help
    app.default(command)
    for position, (word, subcommand) in enumerate(subcommands_of(command).items()):
        app.command(subcommand.target, name=word, help=subcommand.help, sort_key=position)
    # cyclopts would rewrap the lines of the examples in an epilogue, so they are printed separately.
    return CommandLine(app, "".join(f"\n{part}\n" for part in _end_of_help(command)))


def argv_of(command: Callable[..., Any], *overrides: str, **values: Any) -> list[str]:
    """Returns the arguments with which :func:`call` would run ``command(*overrides, **values)``. Default values are omitted.

    Positional arguments, which can be passed by keyword or as the first of ``overrides``, precede the flags, because a flag with
    several values takes all arguments up to the next flag.

    Raises:
        TypeError: if a name in ``values`` is not a parameter of the command.
    """
    if unknown_names := values.keys() - inspect.signature(command).parameters:
        raise TypeError(f"{command.__name__} has no parameter {', '.join(sorted(unknown_names))}")
    positionals: list[str] = []
    flags: list[str] = []
    for argument in command_line(command, "").app.assemble_argument_collection(parse_docstring=False):
        if argument.field_info.kind is inspect.Parameter.VAR_POSITIONAL or argument.children:
            continue
        name, default = argument.field_info.name, argument.field_info.default
        value = values[name] if name in values else _in_dataclass(values, name, default)
        if argument.index is not None:
            positionals += _strings_of(argument, value) if name in values and value is not None else ()
        elif value is True or (value == [] and default is None):  # an explicitly given list may be empty
            flags.append(argument.name)
        elif value is not None and value is not False and value != default:
            strings = _strings_of(argument, value)
            if argument.token_count()[0] > 1:  # a pair, such as --stair A B
                flags += [argument.name, *strings]
                continue
            for each in strings:
                # A value that begins with a dash would be treated as a flag.
                flags += [f"{argument.name}={each}"] if each.startswith("-") else [argument.name, each]
    positionals += overrides
    dashed = any(each.startswith("-") for each in positionals)
    return [*flags, "--", *positionals] if dashed else [*positionals, *flags]


def _strings_of(argument: Argument, value: Any) -> list[str]:
    """Returns the strings from which a flag's value is parsed. A tuple with a custom parser is parsed from a single string, such
    as ``0,1``."""
    if type(value) is tuple and argument.parameter.converter:
        return [",".join(map(str, value))]
    return list(map(str, value)) if type(value) in (list, tuple) else [str(value)]


def _in_dataclass(values: dict[str, Any], name: str, default: Any) -> Any:
    """Returns the value of a flag that is a field of a dataclass."""
    sections = (value for value in values.values() if is_dataclass(value))
    return next((getattr(section, name) for section in sections if hasattr(section, name)), default)


def _end_of_help(command: Callable[..., Any]) -> Iterator[str]:
    """Yields the examples and the exit statuses from a command's docstring."""
    document = f"{inspect.getdoc(command) or ''}\n"
    for section, title in (("Examples", "examples:\n"), ("Returns", "exit status: ")):
        if found := re.search(rf"^{section}:\n((?:    .*\n|\n)+)", document, re.MULTILINE):
            text = inspect.cleandoc(found[1])
            yield title + (re.sub("^", "  ", text, flags=re.MULTILINE) if section == "Examples" else text)


def _shown_default(value: Any) -> str | None:
    """Returns a default value as shown in the help, or None to hide it."""
    if value is None or value is False or value in ([], ()):
        return None
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _message(error: CycloptsError, app: App, keys: Keys) -> str:
    """Returns the message for an invalid command line, which says what is wrong and suggests the closest flag or config key."""
    name = app.name[0]
    if isinstance(error, UnknownOptionError):
        return _unknown_flag(error.token.keyword or error.token.value, error.argument_collection, keys)
    if isinstance(error, UnusedCliTokensError):
        return f"{(error.unused_tokens or ['?'])[0]!r} is one argument too many; see {name} --help"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        unknown_flags = [word for word in error.unused_tokens or () if is_option_like(word)]
        if unknown_flags and not error.keyword:  # the missing flag may be misspelled
            return _unknown_flag(unknown_flags[0], app.assemble_argument_collection(), keys)
        flag = error.keyword or error.argument.name
        return f"{flag} {'needs a value' if error.keyword else 'is missing'}; see {name} --help"
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} was given twice; pass it once"
    if isinstance(error, CoercionError) and error.token is not None:
        return _value_message(error, error.token, keys)
    return str(error)


def _value_message(error: CoercionError, token: Token, keys: Keys) -> str:
    if (wrong := _wrong_value(error)) is not None:
        problem = str(wrong)
        if isinstance(wrong, NotAnOverrideError) and (near := _nearest_keys(token.value, keys)):
            problem += f"; did you mean {' or '.join(f'{key}=VALUE' for key in near)}?"
        return f"{token.keyword}: {problem}" if token.keyword else problem
    if get_origin(error.target_type) is Literal:
        problem = unknown(token.value, get_args(error.target_type))
        return f"{token.keyword}: {problem}" if token.keyword else problem
    if error.target_type in NUMBERS:
        return f"{token.keyword}: {token.value!r} is not {NUMBERS[error.target_type]}"
    return str(error)


def _wrong_value(error: BaseException) -> WrongValueError | None:
    """Returns the error from :mod:`utils.flags` that led to ``error``, or None. (For list values, cyclopts does not set it as the
    cause, but as the context.)"""
    cause = error.__cause__ or error.__context__
    if cause is None or isinstance(cause, WrongValueError):
        return cause
    return _wrong_value(cause)


def _nearest_keys(name: str, keys: Keys) -> list[str]:
    from utils.config_files import nearest_keys  # only needed for errors

    return nearest_keys(name, keys())[:2]


def _unknown_flag(word: str, arguments: ArgumentCollection, keys: Keys) -> str:
    given = word.partition("=")[0]
    name = given.lstrip("-").replace("-", "_")
    if any(argument.index is not None and argument.name == name.upper() for argument in arguments):
        return f"{given} is not a flag; pass {name.upper()} without a flag"
    takes_overrides = any(argument.field_info.name == OVERRIDES for argument in arguments)
    near = _nearest_keys(name, keys) if takes_overrides else []
    is_key = any(name in (key, key.rpartition(".")[2]) for key in near)
    flags = [flag for argument in arguments for flag in argument.names if flag.startswith("-")]
    close = [] if is_key else difflib.get_close_matches(given, flags, n=1)
    close = close or [f"{key}=VALUE" for key in near]
    hint = f"did you mean {' or '.join(close)}?" if close else "see --help"
    explained = " (config values are set with key=value, without dashes)" if takes_overrides else ""
    return f"{given} is not a flag; {hint}{explained}"
