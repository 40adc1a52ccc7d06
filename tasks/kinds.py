"""What a task is made of, and how a command finds one: by its name in the table, by its folder, or by its module.

Nothing here imports torch: a task's module is imported when the task is loaded.
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

from tasks import TASKS
from utils.config import peek, read_config
from utils.errors import UserError

if TYPE_CHECKING:
    from tasks.base import BaseTask, RunConfig

ROOT = Path(__file__).parent.parent
"""The checkout."""

CONFIG_FILE = "config.yaml"
"""The default config of a task outside the checkout, beside its ``task.py``."""

FORM = "TaskKind(config class, task class)"


class TaskKind(NamedTuple):
    """The two classes of a task. Its module defines one by the name ``TASK``."""

    config: type[RunConfig]
    task: type[BaseTask[Any, Any, Any]]


@dataclass(frozen=True)
class TaskSource:
    """Where a task is defined. ``given``: how the command line names it; ``name``: the folder of its runs below ``runs/``."""

    given: str
    name: str
    module: str
    default_config: Path | None

    def load(self) -> TaskKind:
        """Import the module and take its ``TASK``. What the module itself raises is not caught.

        Raises:
            UserError: if it defines none, or something else.
        """
        module = importlib.import_module(self.module)
        file = getattr(module, "__file__", None) or self.module
        if not hasattr(module, "TASK"):
            raise UserError(f"{file}: defines no TASK; end it with TASK = {FORM}")
        return _checked(module.TASK, file)

    def outside(self) -> bool:
        """Whether the task is not one of the table."""
        return self.given not in TASKS


@dataclass(frozen=True)
class Choice:
    """The task and the config of a command line. ``said``: the config's key ``task``; ``remedy``: see :func:`choose`."""

    source: TaskSource
    config: Path
    said: object
    remedy: str

    def load(self) -> TaskKind:
        """Both classes of the task.

        Raises:
            UserError: see :meth:`TaskSource.load`; also if the config is of a task of the table, and this one lies outside.
        """
        kind = self.source.load()
        own = kind.config.model_fields.get("task")
        if self.source.outside() and self.said in TASKS and (own is None or own.default != self.said):
            raise _contradiction(self.config, str(self.said), self.source.given, self.remedy)
        return kind


def choose(
    config: str | Path | None, overrides: Sequence[str], task: str | None, remedy: str = "leave out --task {task}"
) -> Choice:
    """The task and the config that a command line names by one of them, or by both.

    Args:
        config: None: the task's default.
        overrides: the config's values from the command line.
        task: a name, folder or module; None: what the config says, or the folder that it lies in.
        remedy: what to do where ``task`` is not what the config says; may name {task}, {said} and the {script} of ``said``.

    Raises:
        UserError: if there is no such task or config, or the two contradict each other.
    """
    if config is None and task is None:
        raise UserError("give --task TASK, or --config FILE that says its task")
    source = None if task is None else find_task(task)
    path = _default_config(source) if config is None and source is not None else Path(str(config))
    if not path.is_file():
        raise UserError(f"--config {path}: no such config file")
    said = peek(path, overrides, "task")
    if source is None:
        source = _task_of(path, overrides, said)
    elif not source.outside() and said != source.name and isinstance(said, str) and said in TASKS:
        if said not in TASKS[source.name].also:
            raise _contradiction(path, said, source.name, remedy)
        source = replace(source, module=TASKS[said].module)
    return Choice(source, path, said, remedy)


def kind_of(path: Path, overrides: list[str], task: str | None = None) -> TaskKind:
    """The config class and the task class of the config's task, or of ``task``.

    Raises:
        UserError: see :func:`choose`.
    """
    return choose(path, overrides, task).load()


def find_task(given: str) -> TaskSource:
    """The task of a name in the table, of a folder that holds ``task.py``, or of a module.

    Of a folder, its parent is appended to ``sys.path``, and the folder is imported as a package: relative imports, pickling
    and worker processes find it. Of a module, the working directory is.

    Raises:
        UserError: if there is none.
    """
    if given in TASKS:
        entry = TASKS[given]
        return TaskSource(given, given, entry.module, ROOT / entry.default_config)
    path = Path(given).expanduser()
    if path.is_dir():
        return _in_folder(given, Path(os.path.abspath(path)))
    if path.is_file():
        raise UserError(f"--task {given}: is a file; give its folder {path.parent}")
    if os.sep in given or given.startswith((".", "~")):
        raise UserError(f"--task {given}: no such folder")
    return _in_module(given)


def _in_folder(given: str, folder: Path) -> TaskSource:
    file = folder / "task.py"
    if not file.is_file():
        raise UserError(f"--task {given}: {folder} has no task.py; write one that ends with TASK = {FORM}")
    if not folder.name.isidentifier():
        raise UserError(
            f"--task {given}: {folder.name!r} is no Python name, and the folder is imported as a package; rename it"
        )
    module = f"{folder.name}.task"
    _append_to_path(folder.parent)
    spec = _spec_of(module)
    if spec is None or spec.origin is None or not file.samefile(spec.origin):
        other = _place_of(_spec_of(folder.name))
        raise UserError(f"--task {given}: Python imports another {folder.name!r} ({other}); rename the folder {folder}")
    return TaskSource(given, folder.name, module, _beside(file))


def _in_module(given: str) -> TaskSource:
    _append_to_path(Path.cwd())
    spec, module = _spec_of(given), given
    if spec is None:
        close = difflib.get_close_matches(given, TASKS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(TASKS)}"
        raise UserError(f"--task {given}: no task, folder or module has this name; {hint}")
    if spec.submodule_search_locations is not None:
        module = f"{given}.task"
        place, spec = _place_of(spec), _spec_of(module)
        if spec is None:
            raise UserError(f"--task {given}: the package ({place}) has no module task; name the module that has TASK")
    *packages, last = module.split(".")
    name = packages[-1] if last == "task" and packages else last
    return TaskSource(given, name, module, _beside(Path(spec.origin)) if spec.origin else None)


def _task_of(config: Path, overrides: Sequence[str], said: object) -> TaskSource:
    """The task of a config that is given without one."""
    if (config.parent / "task.py").is_file():
        return find_task(os.path.join(config.parent, ""))
    read_config(config, overrides)  # raises where the config cannot be read, and so says no task
    if not isinstance(said, str) or said not in TASKS:
        raise UserError(f"{config}: task is {said!r}, none of {', '.join(TASKS)}; set it, or give --task TASK")
    return find_task(said)


def _default_config(source: TaskSource) -> Path:
    if source.default_config is None:
        raise UserError(f"--task {source.given}: has no {CONFIG_FILE} beside its task.py; give --config FILE")
    return source.default_config


def _contradiction(config: Path, said: str, task: str, remedy: str) -> UserError:
    remedy = remedy.format(task=task, said=said, script=TASKS[said].script)
    return UserError(f"{config}: this is a config of task {said}; {remedy}")


def _append_to_path(folder: Path) -> None:
    """Let Python import from a folder; at the end, where it hides no module of the checkout."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()


def _spec_of(module: str) -> ModuleSpec | None:
    """Where Python finds a module; None: nowhere. Unlike ``importlib.util.find_spec``, imports none of its packages."""
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except ValueError:  # an empty name
        return None
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        # By the part alone: with the whole name, a folder without __init__.py would be looked up in its package's module.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return spec


def _place_of(spec: ModuleSpec | None) -> str:
    if spec is None:
        return "nowhere"
    return spec.origin or ", ".join(spec.submodule_search_locations or [])


def _beside(file: Path) -> Path | None:
    config = file.parent / CONFIG_FILE
    return config if config.is_file() else None


def _checked(kind: Any, file: str) -> TaskKind:
    # Imported here: torch takes seconds, and to find a task is not to load it.
    from tasks.base import BaseTask, RunConfig

    if not isinstance(kind, TaskKind):
        raise UserError(f"{file}: TASK is of type {type(kind).__name__}; make it a {FORM}")
    for place, found, base in (("first", kind.config, RunConfig), ("second", kind.task, BaseTask)):
        if not (isinstance(found, type) and issubclass(found, base)):
            shown = getattr(found, "__name__", repr(found))
            raise UserError(f"{file}: the {place} class of TASK, {shown}, is no {base.__name__}; write {FORM}")
    return kind
