"""Finds a task by its name in the table, by its folder, or by its module.

Only the config class of a built-in task is needed to check a config, so this module does not import torch, and a task's other
modules are imported only when its model or data are built.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks import ROOT, TASKS
from utils.config import Config
from utils.errors import UserError
from utils.files import expanded, read_json
from utils.flags import nearest

if TYPE_CHECKING:
    from models.core.xvlm import XVLM
    from tasks.base import BaseTask
    from tasks.config import RunConfig

DEFAULT_CONFIG = "config.yaml"
"""Name of the default config of a task outside the checkout, in the same folder as its ``task.py``."""

TASK_FILE = "task.json"
"""Name of the file in a run's folder that says where a task outside the checkout is defined."""

EXPECTED_TASK = "TaskKind(config class, task class)"


class TaskKind(NamedTuple):
    """The classes of a task. A task outside the checkout defines this as ``TASK`` in its module.

    Attributes:
        config: config class of a run.
        task: task class.
        model: class of the network, built from the section ``model`` of the config and the size of the vocabulary. Only
            :func:`x2vlm.load` needs it; if None, trained models of the task cannot be loaded.
        calls: the task's own calls for inference, by name. ``x2vlm.load(run).call(NAME, images, texts)`` and ``run.py predict
            NAME`` call the function with the loaded model, a list of images and a list of texts. It returns, for each image, a
            list with one result (a text, a number, or a dict or list of them) for each text.
    """

    config: type[RunConfig]
    task: type[BaseTask[Any, Any, Any]]
    model: Callable[[Any, int], XVLM] | None = None
    calls: Mapping[str, Callable[..., Any]] = MappingProxyType({})


@dataclass(frozen=True)
class TaskSource:
    """Where a task is defined.

    Attributes:
        argument: how the command line names the task.
        name: name of the folder of its runs in ``runs/``.
        default_config: the default config, or None.
        entry: name of the task in the table; None for a task outside the checkout.
        module: the module that defines ``TASK``, for a task outside the checkout.
        folder: the folder from which this module is imported, or None if it was importable already.
    """

    argument: str
    name: str
    default_config: Path | None
    entry: str | None = None
    module: str = ""
    folder: Path | None = None

    def config_class(self) -> type[RunConfig]:
        """Imports the config class of the task.

        Raises:
            UserError: for the reasons listed in :meth:`load`.
        """
        if self.entry is None:
            return self.load().config
        schema: type[RunConfig] = imported(TASKS[self.entry].config)
        return schema

    def load(self) -> TaskKind:
        """Imports all classes of the task. Exceptions that its modules raise are not caught.

        Raises:
            UserError: if the module does not define ``TASK``, or its value has the wrong type.
        """
        if self.entry is not None:
            entry = TASKS[self.entry]
            return TaskKind(imported(entry.config), imported(entry.task), imported(entry.model))
        module = importlib.import_module(self.module)
        file = getattr(module, "__file__", None) or self.module
        if not hasattr(module, "TASK"):
            raise UserError("does not define TASK", where=file, remedy=f"end it with TASK = {EXPECTED_TASK}")
        return _checked(module.TASK, file)

    def model_class(self) -> Callable[[Any, int], XVLM]:
        """Imports the class of the network, but not the classes that only training needs.

        Raises:
            UserError: if the task declares no network, or for the reasons listed in :meth:`load`.
        """
        if self.entry is not None:
            model: Callable[[Any, int], XVLM] = imported(TASKS[self.entry].model)
            return model
        declared = self.load().model
        if declared is None:
            raise UserError(
                f"task {self.argument}: its TASK declares no model, so its runs cannot be loaded",
                remedy="pass the class of the network as the third argument of TaskKind",
            )
        return declared

    def calls(self) -> Mapping[str, Callable[..., Any]]:
        """Returns the calls that the task declares for inference."""
        return {} if self.entry is not None else self.load().calls

    def remember(self, folder: Path) -> None:
        """Writes to the folder of a run where a task outside the checkout is defined; see :func:`task_of_run`."""
        if self.entry is None:
            place = {"module": self.module, "folder": None if self.folder is None else str(self.folder)}
            (folder / TASK_FILE).write_text(json.dumps(place) + "\n", encoding="utf-8")


def imported(name: str) -> Any:
    """Imports ``module:attribute``."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def model_section(schema: type[Config]) -> type[Config]:
    """Returns the class of the section ``model`` in a config class."""
    section = schema.model_fields["model"].annotation
    assert isinstance(section, type) and issubclass(section, Config)
    return section


def find_task(argument: str) -> TaskSource:
    """Finds a task by its name in the table, by a folder that contains ``task.py``, or by a module.

    A folder is imported as a package, so that relative imports, pickling and worker processes work: its parent folder is appended
    to ``sys.path``. For a module, the working directory is appended.

    Raises:
        UserError: if the task does not exist.
    """
    if argument in TASKS:
        return TaskSource(argument, argument, ROOT / TASKS[argument].default_config, entry=argument)
    path = expanded(argument)
    if path.is_dir():
        return _in_folder(argument, Path(os.path.abspath(path)))
    if path.is_file():
        raise UserError("this is a file", where=f"--task {argument}", remedy=f"pass its folder {path.parent}")
    if os.sep in argument or argument.startswith((".", "~")):
        raise UserError("no such folder", where=f"--task {argument}")
    return _in_module(argument)


def task_of_run(folder: Path, name: object) -> TaskSource | None:
    """Returns the task of the run in ``folder``, or None if it is neither in the table nor remembered by the run.

    A remembered task is imported from the absolute path that :meth:`TaskSource.remember` has written. The code in a run's own
    folder is never executed, because such a folder may have been downloaded.

    Args:
        folder: folder of the run.
        name: value of ``task`` in the run's config.

    Raises:
        UserError: if the task is no longer where it was.
    """
    if isinstance(name, str) and name in TASKS:
        return find_task(name)
    file = folder / TASK_FILE
    if not file.is_file():
        return None
    remedy = (
        f"pass --task FOLDER, in Python task=FOLDER; to resume the run, also pass --config {folder / DEFAULT_CONFIG}"
    )
    try:
        place = read_json(file)
        module, parent = str(place["module"]), place["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError("cannot be read", where=file, remedy=remedy) from None
    if parent is not None:
        path = Path(str(parent)) / module.rpartition(".")[0].replace(".", os.sep)
        if not path.is_absolute() or path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} is not a folder outside the run", where=file, remedy=remedy)
        if not (path / "task.py").is_file():
            raise UserError(
                f"the task of this run was in {path}, which does not exist now",
                where=file,
                remedy=remedy,
            )
        return find_task(str(path))
    return find_task(module)


def _in_folder(argument: str, folder: Path) -> TaskSource:
    file = folder / "task.py"
    if not file.is_file():
        raise UserError(
            f"{folder} has no task.py",
            where=f"--task {argument}",
            remedy=f"write one that ends with TASK = {EXPECTED_TASK}",
        )
    if not folder.name.isidentifier():
        raise UserError(
            f"{folder.name!r} is not a Python identifier, but the folder is imported as a package",
            where=f"--task {argument}",
            remedy="rename it",
        )
    module = f"{folder.name}.task"
    _append_to_path(folder.parent)
    spec = _spec_of(module)
    if spec is None or spec.origin is None or not file.samefile(spec.origin):
        other = _location_of(_spec_of(folder.name))
        raise UserError(
            f"Python imports a different {folder.name!r} ({other})",
            where=f"--task {argument}",
            remedy=f"rename the folder {folder}",
        )
    return TaskSource(argument, folder.name, _default_config_beside(file), module=module, folder=folder.parent)


def _in_module(argument: str) -> TaskSource:
    _append_to_path(Path.cwd())
    spec, module = _spec_of(argument), argument
    if spec is None:
        close = nearest(argument, TASKS)
        hint = f"did you mean {close!r}?" if close else f"known: {', '.join(TASKS)}"
        raise UserError(f"task {argument}: there is no such task, folder or module", remedy=hint)
    if spec.submodule_search_locations is not None:
        module = f"{argument}.task"
        location, spec = _location_of(spec), _spec_of(module)
        if spec is None:
            raise UserError(
                f"the package ({location}) has no module task",
                where=f"--task {argument}",
                remedy="name the module that defines TASK",
            )
    *packages, last = module.split(".")
    name = packages[-1] if last == "task" and packages else last
    config = _default_config_beside(Path(spec.origin)) if spec.origin else None
    return TaskSource(argument, name, config, module=module)


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
        raise UserError(f"TASK is {kind!r:.80}", where=file, remedy=f"set it to {EXPECTED_TASK}")
    for position, member, base in (("first", kind.config, RunConfig), ("second", kind.task, BaseTask)):
        if not (isinstance(member, type) and issubclass(member, base)):
            name = getattr(member, "__name__", repr(member))
            raise UserError(
                f"the {position} class of TASK, {name}, is not a subclass of {base.__name__}",
                where=file,
                remedy=f"write {EXPECTED_TASK}",
            )
    arguments = list(inspect.signature(kind.task.training_data).parameters)
    if arguments[3:4] != ["plan"]:
        raise UserError(
            f"{kind.task.__name__}.training_data has the parameters {', '.join(arguments)}",
            where=file,
            remedy="add plan, the plan of the run, as the fourth",
        )
    return kind
