"""Arrows between packages point one way.

utils <- batches, optim, scheduler, metrics <- models, dataset <- engine <- tasks <- launch <- tools, examples
tasks <- x2vlm; models, dataset <- demo
"""

import ast
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
TOP = ("demo", "tools", "examples", "x2vlm")
"""Packages that no other imports, tests and benchmarks apart: a command's module is imported when the command is asked for."""
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
def test_a_package_imports_only_what_lies_below_it(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        above = (imported_packages(path) & ALLOWED.keys()) - ALLOWED[package]
        assert not above, f"{path.relative_to(ROOT)} imports {', '.join(sorted(above))}"


INSIDE_MODELS = {
    "core": {"core"},
    "pretraining": {"core", "pretraining"},
    "tasks": {"core", "tasks"},
    "inference": {"core", "pretraining", "tasks", "inference"},
    "checkpoints": {"core", "pretraining", "tasks", "checkpoints"},
    "reference": {"core", "pretraining"},
}
"""For each part of ``models``, the parts that it may import."""


def imported_parts(path: Path) -> set[str]:
    """The parts of ``models`` that a file imports."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {module.split(".")[1] for module in modules if module.startswith("models.")}


@pytest.mark.parametrize("part", INSIDE_MODELS)
def test_a_part_of_models_imports_only_what_lies_below_it(part):
    files = [*(ROOT / "models").rglob("*.py")]
    assert {path.relative_to(ROOT / "models").parts[0].removesuffix(".py") for path in files} == {
        *INSIDE_MODELS,
        "__init__",
    }
    for path in files:
        if path.relative_to(ROOT / "models").parts[0].removesuffix(".py") == part:
            assert imported_parts(path) <= INSIDE_MODELS[part], path.relative_to(ROOT)


@pytest.mark.parametrize("part", ["core", "pretraining", "tasks", "inference"])
def test_modules_of_a_part_of_models_import_each_other_in_one_direction(part):
    """This includes imports that only type checkers use."""
    folder = ROOT / "models" / part
    imports = {}
    for path in folder.glob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        prefix = f"models.{part}"
        found = set()
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module == prefix:
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{prefix}."):
                found.add(node.module.split(".")[2])
        imports[path.stem] = found & {other.stem for other in folder.glob("*.py")}
    TopologicalSorter(imports).prepare()  # raises CycleError


def test_every_package_of_ours_has_its_place_in_the_order():
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert ALLOWED.keys() <= ours <= ALLOWED.keys() | set(TOP)


@pytest.mark.parametrize("package", TOP)
def test_a_package_at_the_top_is_imported_by_itself_and_tests_alone(package):
    others = (ALLOWED.keys() | {"docs", *TOP}) - {package}
    for path in [*ROOT.glob("*.py"), *(path for other in others for path in (ROOT / other).rglob("*.py"))]:
        assert package not in imported_packages(path), path.relative_to(ROOT)


def test_run_imports_only_tables_and_the_framework_of_commands():
    ours = ALLOWED.keys() | set(TOP) | {"benchmarks", "tests"}
    assert imported_packages(ROOT / "run.py") & ours == {"tasks", "utils", "launch"}
    assert imported_packages(ROOT / "tasks" / "__init__.py") <= {"__future__", "typing"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_task_script_is_short(script):
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 60


def test_nothing_reads_the_environment_at_import():
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                    continue
                text = ast.unparse(node)
                assert "environ" not in text, f"{path.relative_to(ROOT)}:{node.lineno}"
                assert "getenv" not in text, f"{path.relative_to(ROOT)}:{node.lineno}"


LOADS_OF_TRANSFORMERS = ("AutoConfig", "AutoModel", "AutoTokenizer", "BertTokenizer")


def test_transformers_never_runs_code_of_a_folder():
    """Without ``trust_remote_code=False`` transformers asks on standard input whether to run it."""
    found = 0
    for path in (path for package in {*ALLOWED, *TOP} for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr in ("from_pretrained", "from_config") and isinstance(node.func.value, ast.Name):
                assert node.func.value.id in LOADS_OF_TRANSFORMERS, f"{path}:{node.lineno}: list the class"
                given = {each.arg: ast.unparse(each.value) for each in node.keywords}
                assert given.get("trust_remote_code") == "False", f"{path}:{node.lineno}"
                found += 1
    assert found == 6
