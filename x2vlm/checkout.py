"""Checks that the packages of a checkout can be imported by their top-level names.

In a checkout, and therefore in an editable installation, ``utils``, ``models`` and the other packages are top-level, so a user's
module with one of these names hides ours. In a wheel they are inside ``x2vlm`` (``setup.py``), where nothing can hide them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

TOP = Path(__file__).parent.parent
PACKAGES = "batches", "utils", "optim", "scheduler", "metrics", "models", "dataset", "engine", "tasks", "launch"


def check_names() -> None:
    """Raises :class:`ImportError` if a module outside the checkout hides one of our packages."""
    if (TOP / "x2vlm" / "utils").is_dir():
        return
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or not Path(spec.origin).is_relative_to(TOP):
            found = "nothing" if spec is None else spec.origin or ", ".join(spec.submodule_search_locations or ())
            raise ImportError(
                f"x2vlm needs its package {name!r} from {TOP}, but Python finds {found}; rename your module, or install x2vlm "
                f"without -e (pip install {TOP}), which keeps all packages inside x2vlm"
            )


check_names()
