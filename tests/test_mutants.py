"""The command that plants mistakes in the code and counts the mistakes that the tests catch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests import mutants
from tests.messages import naming
from tests.mutants import choose, draw, files_in, mutants_of

SUMS = '''"""Sums."""

LIMIT = 3


def total(values: list[int], start: int = 0) -> int:
    """The sum of values up to 100."""
    result = sum(values, start=start)
    if not values:
        raise ValueError("2 values" + "or more")
    return max(result, 100) if result > 100 and start < 9 else result


def untested(é: int) -> int: return é - 1
'''

DOUBLES = "def double(value: int) -> int:\n    return 2 * value\n"

TESTS = """
from pathlib import Path
import pytest
from metrics.doubles import double
from models.sums import total, untested

def test_total():
    assert total([1, 2]) == 3

@pytest.mark.slow
def test_limit():
    assert total([98, 99]) == 197
    assert total([100, 1], start=8) == 109

def test_runs():
    untested(double(2))

def test_here():
    total([1, 2])
    assert Path("runs").is_dir(), "there is no such folder in a copy of the checkout"
"""


def test_every_kind_of_change_is_made_only_inside_functions():
    source = SUMS.encode()
    found = {(mutant.operator, mutant.change) for mutant in mutants_of("sums.py", source)}
    assert found == {
        ("keyword", "sum(values, start=start) -> sum(values)"),
        ("boolean", "not values -> (values)"),
        ("return", "max(result, 100) if result > 100 and start < 9 else result -> None"),
        ("min/max", "max -> min"),
        ("constant", "100 -> 101"),
        ("boolean", "result > 100 and start < 9 -> (result > 100 or start < 9)"),
        ("condition", "result > 100 and start < 9 -> not (result > 100 and start < 9)"),
        ("comparison", "result > 100 -> (result >= 100)"),
        ("comparison", "start < 9 -> (start <= 9)"),
        ("constant", "9 -> 10"),
        ("return", "é - 1 -> None"),
        ("arithmetic", "é - 1 -> (é + 1)"),
        ("constant", "1 -> 2"),
    }


@pytest.mark.parametrize(
    ("code", "texts"),
    [
        ("x.sum(dim=1)", {"x.sum()", "x.sum(dim=2)", "x.sum(dim=0)"}),
        ("x[a:b]", {"x[(a) + 1:b]", "x[a:(b) + 1]"}),
        ("x.self.max(y)", {"x.self.min(y)"}),
        ("f(a=x.b)", {"f()"}),
        ("[y for y in x if x.b]", {"[y for y in x if not (x.b)]"}),
        ("0.0", {"1.0"}),
        ("True", {"False"}),
        ("zip(a, b, strict=True)", set()),
        ("a is not b in c", {"(a is b in c)", "(a is not b not in c)"}),
        ("f'{1}' + x", set()),
    ],
)
def test_an_expression_has_the_expected_changes(code, texts):
    source = f"def f(x):\n    y = {code}\n".encode()
    changed = {mutant.apply(source).decode().splitlines()[1] for mutant in mutants_of("f.py", source)}
    assert changed == {f"    y = {text}" for text in texts}


def test_a_larger_draw_starts_with_the_smaller_one():
    found = mutants_of("sums.py", SUMS.encode())
    drawn = draw(found, 10, seed=0)
    assert len({mutant.location for mutant in drawn}) == len(drawn) == 4, "one mutant per line"
    assert draw(found, 2, seed=0) == drawn[:2]
    assert {tuple(draw(found, 2, seed=seed)) for seed in range(9)} != {tuple(drawn[:2])}


def test_a_limited_number_of_tests_comes_from_all_files_fastest_first():
    seconds = {"a::1": 0.1, "a::2": 0.2, "a::3": 0.3, "b::1": 5.0, "b::2": 0.4, "c::1": 0.5}
    assert choose(seconds, seconds, 4) == ["a::1", "a::2", "b::2", "c::1"]
    assert choose(seconds, seconds, 9) == ["c::1", "a::1", "a::2", "a::3", "b::2", "b::1"]


def test_paths_restrict_the_draw_to_files_and_to_folders():
    files = ["metrics/box_sets.py", "models/core/set_head.py", "models/core/text.py", "models/core_of_tasks.py"]
    assert files_in(files, ["models/core"]) == files[1:3]
    assert files_in(files, ["models/core/", "./metrics/box_sets.py", "models/core/text.py"]) == files[:3]
    assert files_in(files, ["."]) == files


@pytest.mark.parametrize("path", ["models/cor", "optim", "models/core/none.py"])
def test_a_path_without_recorded_files_is_an_error(path):
    with pytest.raises(SystemExit, match=naming(f"--paths {path}", "no recorded file", "record again")):
        files_in(["models/core/set_head.py"], ["models", path])


def test_every_package_that_is_recorded_exists():
    assert [package for package in mutants.PACKAGES if not (mutants.ROOT / package / "__init__.py").is_file()] == []
    assert {"x2vlm", "metrics"} <= set(mutants.PACKAGES)


@pytest.mark.night
def test_the_tests_of_each_tier_catch_what_they_cover_and_the_checkout_is_unchanged(tmp_path):
    pytest.importorskip("pytest_cov", reason="needs pytest-cov: pip install -r requirements-dev.txt")
    files = {
        "models/sums.py": SUMS,
        "metrics/doubles.py": DOUBLES,
        "tests/test_sums.py": TESTS,
        "pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-m \"not slow\"'\nmarkers = ['slow']",
        ".gitignore": "runs/",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    shutil.copy(mutants.__file__, tmp_path / "tests")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)

    def command(*arguments: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
        command = [sys.executable, "-m", "tests.mutants", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    one = ("run", "--paths", "models", "--count=1", "--seed=5")
    assert "recorded 4 tests" in command("record", "-p", "no:cacheprovider")
    fast, every = command(*one), command(*one, "--jobs=2", "--tests", "slow or not slow")
    assert fast.splitlines()[-1].split() == ["total", "0", "of", "1", "caught", "0%"]
    assert every.splitlines()[-1].split() == ["total", "1", "of", "1", "caught", "100%"]
    results = (tmp_path / "runs/mutants/results.jsonl").read_text()
    first, second = map(json.loads, results.splitlines())
    assert first["change"] == second["change"], "both tiers must have the same mutants"
    assert (first["by"], second["by"]) == (None, "tests/test_sums.py::test_limit")
    assert first["unreliable"] == ["tests/test_sums.py::test_here"]
    assert command(*one) == fast
    assert (tmp_path / "runs/mutants/results.jsonl").read_text() == results, "known results must not be computed again"
    shares = command("run", "--paths", "metrics").splitlines()[-2:]
    assert [line.split()[:4] for line in shares] == [["metrics", "0", "of", "1"], ["total", "0", "of", "1"]]
    assert (tmp_path / "models/sums.py").read_text(encoding="utf-8") == SUMS
