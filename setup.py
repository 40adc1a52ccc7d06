"""Installs the project as a single package, ``x2vlm``, which contains the packages of the checkout as subpackages.

In the checkout, ``utils``, ``models`` and the other packages are top-level packages. Installed under these names, they would
conflict with other projects, many of which also have a package ``utils``. The wheel therefore places them inside ``x2vlm`` and
rewrites their imports: ``from utils.errors import UserError`` becomes ``from x2vlm.utils.errors import UserError``. Nothing else
is changed.

An editable installation (``pip install -e .``) imports all packages from the checkout instead, so that ``import x2vlm`` works in
any folder and every edit takes effect immediately.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
INSIDE = (
    "batches",
    "utils",
    "optim",
    "scheduler",
    "metrics",
    "models",
    "dataset",
    "engine",
    "tasks",
    "launch",
    "tools",
    "commands",
    "demo",
)
"""Packages that become subpackages of x2vlm. run.py becomes the module x2vlm.run."""

NAMES = "|".join([*INSIDE, "run"])
IMPORT = re.compile(rf"^(\s*from )({NAMES})(?=[. ])", re.MULTILINE)
MODULE = re.compile(rf'"((?:{NAMES})(?:\.\w+)*)(:\w+)?"')
"""Matches a string that may name a module, or a module and a function, as in the table of commands in ``commands``."""


class BuildAsOnePackage(build_py):
    """Copies the sources and rewrites their imports."""

    def run(self) -> None:
        if self.editable_mode:
            return
        for source, target in files():
            copy = Path(self.build_lib, target)
            copy.parent.mkdir(parents=True, exist_ok=True)
            text = source.read_text(encoding="utf-8")
            copy.write_text(as_subpackage(text) if source.suffix == ".py" else text, encoding="utf-8")


def files() -> Iterator[tuple[Path, Path]]:
    """Yields each file of the wheel, with its path in the wheel."""
    top = [*sorted((HERE / "x2vlm").rglob("*.py")), HERE / "x2vlm/py.typed"]
    yield from ((path, path.relative_to(HERE)) for path in top)
    subpackages = [path for package in INSIDE for path in sorted((HERE / package).rglob("*.py"))]
    subpackages += [
        *sorted((HERE / "tools/report/templates").iterdir()),
        *sorted((HERE / "configs").rglob("*.yaml")),
        HERE / "run.py",
        HERE / "requirements.txt",
    ]
    yield from ((path, Path("x2vlm") / path.relative_to(HERE)) for path in subpackages)


def as_subpackage(text: str) -> str:
    """Rewrites the source of a module so that it imports the packages inside x2vlm."""
    return MODULE.sub(_renamed, IMPORT.sub(r"\1x2vlm.\2", text))


def _renamed(found: re.Match[str]) -> str:
    module, function = found[1], found[2] or ""
    path = HERE.joinpath(*module.split("."))
    is_module = (path.is_dir() or path.with_suffix(".py").is_file()) and ("." in module or function)
    return f'"x2vlm.{module}{function}"' if is_module else found[0]


if __name__ == "__main__":
    editable = "editable_wheel" in sys.argv
    setup(
        cmdclass={"build_py": BuildAsOnePackage},
        packages=["x2vlm", *(INSIDE if editable else ())],
        py_modules=["run"] if editable else [],
    )
