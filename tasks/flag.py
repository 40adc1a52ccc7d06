"""The type of the option --task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from tasks import TASKS

if TYPE_CHECKING:
    TaskName = str
else:
    # A task can also be a folder or a module; shells complete the names.
    TaskName = Annotated[Literal[tuple(TASKS)] | str, Parameter(metavar="TASK", show_choices=False)]
