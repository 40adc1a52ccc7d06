"""Finds a task by its name in the table, by its folder, or by its module.

This module does not import torch. A task's module is imported only when the task is loaded.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks import ROOT, TASKS
from tasks.known_keys import check_keys
from utils.config_files import peek, read_config, why_no_file
from utils.errors import UserError
from utils.files import expanded

if TYPE_CHECKING:
    from tasks.base import BaseTask
    from tasks.config import RunConfig

DEFAULT_CONFIG = "config.yaml"
"""Name of the default config of a task outside the checkout, in the same folder as its ``task.py``."""

EXPECTED_TASK = "TaskKind(config class, task class)"


class TaskKind(NamedTuple):
    """The config class and the task class of a task. The task's module defines it as ``TASK``."""

    config: type[RunConfig]
    task: type[BaseTask[Any, Any, Any]]


@dataclass(frozen=True)
class TaskSource:
    """Where a task is defined.

    Attributes:
        argument: how the command line names the task.
        name: name of the folder of its runs in ``runs/``.
        module: the module that defines ``TASK``.
        default_config: the default config, or None.
    """

    argument: str
    name: str
    module: str
    default_config: Path | None

    def load(self) -> TaskKind:
        """Imports the module and returns its ``TASK``. Exceptions that the module raises are not caught.

        Raises:
            UserError: if the module does not define ``TASK``, or its value has the wrong type.
        """
        module = importlib.import_module(self.module)
        file = getattr(module, "__file__", None) or self.module
        if not hasattr(module, "TASK"):
            raise UserError(f"{file}: does not define TASK; end it with TASK = {EXPECTED_TASK}")
        return _checked(module.TASK, file)

    def outside(self) -> bool:
        """Returns True if the task is not in the table."""
        return self.argument not in TASKS


@dataclass(frozen=True)
class Choice:
    """The task and the config that a command line selects.

    Attributes:
        source: definition of the task.
        config: the config file.
        config_task: value of the config's key ``task``.
        overrides: argument of :func:`choose`.
        remedy: argument of :func:`choose`.
    """

    source: TaskSource
    config: Path
    config_task: object
    overrides: tuple[str, ...]
    remedy: str

    def check_keys(self) -> None:
        """Checks for misspelled keys. This does not import torch, which would take seconds.

        Raises:
            ConfigError: if the config or an override has a key that is unknown to the task.
        """
        if not self.source.outside():
            check_keys(
                next(name for name, entry in TASKS.items() if entry.module == self.source.module),
                self.config,
                self.overrides,
            )

    def load(self) -> TaskKind:
        """Loads the classes of the task.

        Raises:
            UserError: for the reasons listed in :meth:`check_keys` and :meth:`TaskSource.load`, or if this task is not in the
                table, but the config is for a task in the table.
        """
        self.check_keys()
        kind = self.source.load()
        field = kind.config.model_fields.get("task")
        if self.source.outside() and self.config_task in TASKS and (field is None or field.default != self.config_task):
            raise _contradiction(self.config, str(self.config_task), self.source.argument, self.remedy)
        return kind


def choose(
    config: str | Path | None, overrides: Sequence[str], task: str | None, remedy: str = "remove --task {task}"
) -> Choice:
    """Determines the task and the config from a command line that names one of them, or both.

    Args:
        config: a YAML file; if None, the default config of ``task``.
        overrides: ``key=value`` arguments that override config values.
        task: a name, folder or module; if None, the task in the config's folder, or the value of the config's key ``task``.
        remedy: advice in the error message if ``task`` contradicts the config; may contain {task}, {config_task}, and {script},
            the script of the config's task.

    Raises:
        UserError: if the task or the config does not exist, or if they contradict each other.
    """
    if config is None and task is None:
        raise UserError("pass --task TASK, or --config FILE with the key task")
    source = None if task is None else find_task(task)
    path = _default_config(source) if config is None and source is not None else Path(str(config))
    if not path.is_file():
        raise UserError(f"--config {path}: {why_no_file(path)}")
    config_task = peek(path, overrides, "task")
    if source is None:
        source = _task_of(path, overrides, config_task)
    elif not source.outside() and config_task != source.name and isinstance(config_task, str) and config_task in TASKS:
        if config_task not in TASKS[source.name].also:
            raise _contradiction(path, config_task, source.name, remedy)
        source = replace(source, module=TASKS[config_task].module)
    return Choice(source, path, config_task, tuple(overrides), remedy)


def kind_of(path: Path, overrides: list[str], task: str | None = None) -> TaskKind:
    """Returns the config class and the task class of ``task`` or, if ``task`` is None, of the config's task.

    Raises:
        UserError: for the reasons listed in :func:`choose`.
    """
    return choose(path, overrides, task).load()


def find_task(argument: str) -> TaskSource:
    """Finds a task by its name in the table, by a folder that contains ``task.py``, or by a module.

    A folder is imported as a package, so that relative imports, pickling and worker processes work: its parent folder is appended
    to ``sys.path``. For a module, the working directory is appended.

    Raises:
        UserError: if the task does not exist.
    """
    if argument in TASKS:
        entry = TASKS[argument]
        return TaskSource(argument, argument, entry.module, ROOT / entry.default_config)
    path = expanded(argument)
    if path.is_dir():
        return _in_folder(argument, Path(os.path.abspath(path)))
    if path.is_file():
        raise UserError(f"--task {argument}: this is a file; pass its folder {path.parent}")
    if os.sep in argument or argument.startswith((".", "~")):
        raise UserError(f"--task {argument}: no such folder")
    return _in_module(argument)


def _in_folder(argument: str, folder: Path) -> TaskSource:
    file = folder / "task.py"
    if not file.is_file():
        raise UserError(f"--task {argument}: {folder} has no task.py; write one that ends with TASK = {EXPECTED_TASK}")
    if not folder.name.isidentifier():
        raise UserError(
            f"--task {argument}: {folder.name!r} is not a Python identifier, but the folder is imported as a package; rename it"
        )
    module = f"{folder.name}.task"
    _append_to_path(folder.parent)
    spec = _spec_of(module)
    if spec is None or spec.origin is None or not file.samefile(spec.origin):
        other = _location_of(_spec_of(folder.name))
        raise UserError(
            f"--task {argument}: Python imports a different {folder.name!r} ({other}); rename the folder {folder}"
        )
    return TaskSource(argument, folder.name, module, _default_config_beside(file))


def _in_module(argument: str) -> TaskSource:
    _append_to_path(Path.cwd())
    spec, module = _spec_of(argument), argument
    if spec is None:
        close = difflib.get_close_matches(argument, TASKS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(TASKS)}"
        raise UserError(f"task {argument}: there is no such task, folder or module; {hint}")
    if spec.submodule_search_locations is not None:
        module = f"{argument}.task"
        location, spec = _location_of(spec), _spec_of(module)
        if spec is None:
            raise UserError(
                f"--task {argument}: the package ({location}) has no module task; name the module that defines TASK"
            )
    *packages, last = module.split(".")
    name = packages[-1] if last == "task" and packages else last
    return TaskSource(argument, name, module, _default_config_beside(Path(spec.origin)) if spec.origin else None)


def _task_of(config: Path, overrides: Sequence[str], config_task: object) -> TaskSource:
    """Returns the task of a config without ``--task``: the task in the config's folder, or the value of its key ``task``."""
    if (config.parent / "task.py").is_file():
        return find_task(os.path.join(config.parent, ""))
    read_config(config, overrides)  # raises if the config cannot be read, in which case its task is unknown
    if not isinstance(config_task, str) or config_task not in TASKS:
        raise UserError(
            f"{config}: task is {config_task!r}, not one of {', '.join(TASKS)}; set it, or pass --task TASK"
        )
    return find_task(config_task)


def _default_config(source: TaskSource) -> Path:
    if source.default_config is None:
        raise UserError(f"--task {source.argument}: has no {DEFAULT_CONFIG} next to its task.py; pass --config FILE")
    return source.default_config


def _contradiction(config: Path, config_task: str, task: str, remedy: str) -> UserError:
    remedy = remedy.format(task=task, config_task=config_task, script=TASKS[config_task].script)
    return UserError(f"{config}: this is a config for the task {config_task}; {remedy}")


def _append_to_path(folder: Path) -> None:
    """Appends a folder to ``sys.path``. It is added at the end, so that it does not shadow modules of the checkout."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()


def _spec_of(module: str) -> ModuleSpec | None:
    """Returns the spec of a module, or None if Python cannot find the module. Unlike ``importlib.util.find_spec``, this function
    does not import the parent packages."""
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except ValueError:  # an empty name
        return None
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        # Only the last part of the name is passed: with the full name, Python would look up the parent module of a folder without
        # __init__.py.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return spec


def _location_of(spec: ModuleSpec | None) -> str:
    if spec is None:
        return "nowhere"
    return spec.origin or ", ".join(spec.submodule_search_locations or [])


def _default_config_beside(file: Path) -> Path | None:
    config = file.parent / DEFAULT_CONFIG
    return config if config.is_file() else None


def _checked(kind: Any, file: str) -> TaskKind:
    # Imported here because torch takes seconds to import and is not needed to find a task.
    from tasks.base import BaseTask
    from tasks.config import RunConfig

    if not isinstance(kind, TaskKind):
        raise UserError(f"{file}: TASK is {kind!r:.80}; set it to {EXPECTED_TASK}")
    for position, member, base in (("first", kind.config, RunConfig), ("second", kind.task, BaseTask)):
        if not (isinstance(member, type) and issubclass(member, base)):
            name = getattr(member, "__name__", repr(member))
            raise UserError(
                f"{file}: the {position} class of TASK, {name}, is not a subclass of {base.__name__}; write {EXPECTED_TASK}"
            )
    return kind
