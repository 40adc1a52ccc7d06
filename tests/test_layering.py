"""Arrows between packages point one way.

utils <- batches, optim, scheduler, metrics <- models, dataset <- engine <- tasks <- launch <- tools <- commands
tasks <- x2vlm <- commands; tasks <- examples; models, dataset <- demo
"""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "utils": {"utils"},
    "batches": {"utils", "batches"},
    "scheduler": {"utils", "scheduler"},
    "optim": {"utils", "optim"},
    "metrics": {"utils", "metrics"},
    "models": {"utils", "batches", "optim", "models"},
    "dataset": {"utils", "batches", "dataset"},
    "demo": {"utils", "batches", "models", "dataset", "demo"},
    "engine": {"utils", "batches", "optim", "scheduler", "engine"},
    "tasks": {"utils", "batches", "optim", "scheduler", "metrics", "models", "dataset", "engine", "tasks"},
    "launch": {"utils", "engine", "tasks", "launch"},
    "tools": {
        "utils",
        "batches",
        "optim",
        "scheduler",
        "metrics",
        "models",
        "dataset",
        "engine",
        "tasks",
        "launch",
        "tools",
    },
    "x2vlm": {"utils", "batches", "metrics", "models", "dataset", "engine", "tasks", "x2vlm"},
}
ALLOWED["commands"] = {*ALLOWED, "commands"} - {"demo"}
TOP = ("demo", "commands", "examples")
"""Packages that no other package imports, except tests and benchmarks. The module of a command is imported when the command is
called."""
SCRIPTS = [path for path in ROOT.glob("*.py") if path.name not in ("run.py", "setup.py")]


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_task_script_imports_no_tools(script):
    assert "tools" not in imported_packages(script)


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_packages_below_it(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        above = (imported_packages(path) & ALLOWED.keys()) - ALLOWED[package]
        assert not above, f"{path.relative_to(ROOT)} imports {', '.join(sorted(above))}"


INSIDE_MODELS = {
    "config": set(),
    "flops": set(),
    "core": {"config", "core", "flops"},
    "pretraining": {"config", "core", "flops", "pretraining"},
    "tasks": {"config", "core", "flops", "tasks"},
    "inference": {"config", "core", "pretraining", "tasks", "inference"},
    "checkpoints": {"config", "core", "pretraining", "tasks", "checkpoints"},
    "reference": {"config", "core", "pretraining"},
}
"""For each part of ``models``, the parts that it may import."""


def imported_parts(path: Path) -> set[str]:
    """The parts of ``models`` that a file imports."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {module.split(".")[1] for module in modules if module.startswith("models.")}


@pytest.mark.parametrize("part", INSIDE_MODELS)
def test_a_part_of_models_imports_only_parts_below_it(part):
    files = [*(ROOT / "models").rglob("*.py")]
    assert {path.relative_to(ROOT / "models").parts[0].removesuffix(".py") for path in files} == {
        *INSIDE_MODELS,
        "__init__",
    }
    for path in files:
        if path.relative_to(ROOT / "models").parts[0].removesuffix(".py") == part:
            assert imported_parts(path) <= INSIDE_MODELS[part], path.relative_to(ROOT)


def modules_of(package: str) -> dict[str, Path]:
    """The modules of a package by name."""
    files = {path.relative_to(ROOT).with_suffix("").parts: path for path in (ROOT / package).rglob("*.py")}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for parts, path in files.items()}


@pytest.mark.parametrize("package", [*ALLOWED, "examples"])
def test_modules_of_a_package_import_each_other_in_one_direction(package):
    """This includes imports inside functions, and imports for type checkers only."""
    modules = modules_of(package)
    imports: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found.add(whole if whole in modules else node.module)
        imports[name] = (found & modules.keys()) - {name}
    TopologicalSorter(imports).prepare()  # raises CycleError


@pytest.mark.parametrize("package", ["commands", "launch", "tools", "tasks", "engine", "demo"])
def test_folders_of_a_package_import_each_other_in_one_direction(package):
    imports: dict[str, set[str]] = {}
    for name, path in modules_of(package).items():
        own = name.split(".")[1:2]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if own and isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
                imports.setdefault(own[0], set()).update({(node.module or "").split(".")[1]} - set(own))
    TopologicalSorter(imports).prepare()


def test_every_package_has_a_place_in_the_order():
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert ALLOWED.keys() <= ours <= ALLOWED.keys() | set(TOP)


@pytest.mark.parametrize("package", TOP)
def test_a_package_at_the_top_is_imported_only_by_itself_and_tests(package):
    others = (ALLOWED.keys() | {"docs", *TOP}) - {package}
    scripts = SCRIPTS if package == "commands" else ROOT.glob("*.py")  # run.py has the table of commands
    hooks = ROOT / "docs" / "hooks.py"  # like run.py, the hooks of the documentation site use everything
    for path in [*scripts, *(path for other in others for path in (ROOT / other).rglob("*.py") if path != hooks)]:
        assert package not in imported_packages(path), path.relative_to(ROOT)


def test_run_imports_only_tables_and_the_framework_of_commands():
    ours = ALLOWED.keys() | set(TOP) | {"benchmarks", "tests"}
    assert imported_packages(ROOT / "run.py") & ours == {"commands", "tasks", "utils"}
    assert imported_packages(ROOT / "tasks" / "__init__.py") <= {"__future__", "pathlib", "typing"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_task_script_is_short(script):
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 60


def test_nothing_reads_the_environment_at_import():
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                    continue
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
                    continue
                text = ast.unparse(node)
                assert re.search(r"\benvironb?\b", text) is None, f"{path.relative_to(ROOT)}:{node.lineno}"
                assert "getenv" not in text, f"{path.relative_to(ROOT)}:{node.lineno}"


LOADS_OF_TRANSFORMERS = ("AutoConfig", "AutoModel", "AutoTokenizer", "BertTokenizer", "model_class(hub_config)")


def test_transformers_never_runs_code_of_a_folder():
    """Without ``trust_remote_code=False``, transformers asks on standard input whether to run it."""
    found = 0
    for path in (path for package in {*ALLOWED, *TOP} for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr in ("from_pretrained", "from_config"):
                loads = ast.unparse(node.func.value)
                assert loads in LOADS_OF_TRANSFORMERS, f"{path}:{node.lineno}: list the class {loads}"
                given = {each.arg: ast.unparse(each.value) for each in node.keywords}
                assert given.get("trust_remote_code") == "False", f"{path}:{node.lineno}"
                found += 1
    assert found == 6
