"""How to install the optional packages (the extras of ``pyproject.toml``)."""

from __future__ import annotations

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
