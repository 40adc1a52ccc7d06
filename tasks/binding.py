"""Binds a run: reads its config file and the command line once, finds the task, and checks every value.

This does not import torch, so a mistake in a config is reported in under a second. Only the config class of a task outside the
checkout may take longer to import.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks import ROOT, TASKS
from tasks.kinds import DEFAULT_CONFIG, TaskSource, find_task, task_of_run
from tasks.starting_run import with_kept_splits
from utils.config import bind
from utils.config_files import Locations, ReadConfig, read_config, why_no_file
from utils.errors import UserError
from utils.flags import nearest


@dataclass(frozen=True)
class BoundRun:
    """A run as selected by a command line.

    Attributes:
        source: definition of the task.
        file: the config file.
        read: the plain values of the file, its bases and the overrides, with their locations.
        config: the values, bound to the config class of the task.
    """

    source: TaskSource
    file: Path
    read: ReadConfig
    config: Any

    def as_json(self) -> dict[str, Any]:
        """Returns the run as values that JSON can represent, for :func:`rebind` in another process."""
        return {
            "task": self.source.argument,
            "file": str(self.file),
            "values": self.read.values,
            "locations": list(self.read.locations.items()),
        }


def bind_run(
    config: str | Path | None,
    overrides: Sequence[str],
    task: str | None = None,
    *,
    folder_may_be_task: bool = True,
) -> BoundRun:
    """Reads and checks the config of a run.

    Args:
        config: a YAML file; if None, the default config of ``task``. A relative path that does not exist may be that of a config
            that comes with the project: ``configs/demo/retrieval.yaml`` works in any folder.
        overrides: ``key=value`` arguments that override config values.
        task: a name, folder or module; if None, the task in the config's folder, or the value of the config's key ``task``.
        folder_may_be_task: whether a ``task.py`` next to the config defines the task.

    Raises:
        ConfigError: with a line for each mistake in the config, with its file, its line and the nearest valid key.
        UserError: if the task or the config does not exist, or if they contradict each other.
    """
    if config is None and task is None:
        raise UserError("pass --task TASK, or --config FILE with the key task")
    source = None if task is None else find_task(task)
    if config is None and source is not None:
        config = source.default_config
        if config is None:
            raise UserError(
                f"has no {DEFAULT_CONFIG} next to its task.py", where=f"--task {task}", remedy="pass --config FILE"
            )
    file = Path(str(config))
    if not file.exists() and (ROOT / file).is_file():
        file = ROOT / file
    if not file.is_file():
        what, remedy = why_no_file(file)
        raise UserError(what, where=f"--config {file}", remedy=remedy)
    read = read_config(file, overrides)
    if source is None:
        source = _task_of(file, read.values.get("task"), read.locations, folder_may_be_task)
    return _bind_task(source, file, read)


def rebind(run: Mapping[str, Any]) -> BoundRun:
    """Binds a run that another process has bound before; see :meth:`BoundRun.as_json`."""
    locations = {tuple(keys): location for keys, location in run["locations"]}
    return _bind_task(find_task(run["task"]), Path(run["file"]), ReadConfig(run["values"], locations, malformed=[]))


def _bind_task(source: TaskSource, file: Path, read: ReadConfig) -> BoundRun:
    config_task = read.values.get("task")
    if source.entry is not None and config_task != source.entry and config_task in TASKS:
        if config_task not in TASKS[source.entry].also:
            raise _contradiction(file, config_task, source.argument)
        source = replace(source, entry=config_task)
    schema = source.config_class()
    if source.entry is None and config_task in TASKS:
        field = schema.model_fields.get("task")
        if field is None or field.default != config_task:
            raise _contradiction(file, config_task, source.argument)
    read = read._replace(values=with_kept_splits(read.values, source.entry))
    config = bind(read.values, schema, read.locations, str(file), read.malformed)
    return BoundRun(source, file, read, config)


def _task_of(file: Path, config_task: object, locations: Locations, folder_may_be_task: bool) -> TaskSource:
    """Returns the task of a config without ``--task``: the task in the config's folder, the value of its key ``task``, or the
    task of the run that has saved the config."""
    if folder_may_be_task and (file.parent / "task.py").is_file():
        return find_task(os.path.join(file.parent, ""))
    source = task_of_run(file.parent, config_task)
    if source is None:
        near = None if not isinstance(config_task, str) else nearest(config_task, TASKS)
        hint = "" if near is None else f"did you mean {near!r}? "
        raise UserError(
            f"task is {config_task!r}, not one of {', '.join(TASKS)}",
            where=locations.get(("task",), str(file)),
            remedy=f"{hint}set it, or pass --task TASK",
        )
    return source


def _contradiction(file: Path, config_task: str, task: str) -> UserError:
    return UserError(
        f"this is a config for the task {config_task}, not for {task}",
        where=file,
        remedy=f"pass --task {config_task}, or run {TASKS[config_task].script}",
    )
