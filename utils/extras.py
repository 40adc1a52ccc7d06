"""Imports the optional packages (the extras of ``pyproject.toml``), and says how to install them."""

from __future__ import annotations

import importlib
from typing import Any

from utils.errors import UserError

IN_CHECKOUT = __name__ == "utils.extras"
"""True in a checkout or an editable installation; in a wheel, this module is ``x2vlm.utils.extras`` (``setup.py``)."""


def install_command(extra: str) -> str:
    """Returns the command that installs the packages of an extra.

    In a checkout, the command contains ``-e``. Without it, pip would replace the editable installation of ``make setup`` by a
    copy, and later edits would have no effect.

    Args:
        extra: its name in ``pyproject.toml``.
    """
    return f'pip install -e ".[{extra}]"' if IN_CHECKOUT else f'pip install "x2vlm[{extra}]"'


def require(module: str, extra: str, where: object = "") -> Any:
    """Imports a module of an optional package.

    Args:
        module: its name, such as ``open_clip.loss``.
        extra: the name in ``pyproject.toml`` of the extra that contains the package.
        where: the config key, the flag, the file or the command that needs it.

    Raises:
        UserError: if the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UserError(f"needs {package}, which is not installed: {install_command(extra)}", where=where) from None
