"""README and docs: relative links resolve, command lines of run.py, make and python -m exist, and tables are complete."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import run
from commands.prepare import CONVERTERS
from dataset.config import CaptionedSplitConfig, GroundingSplitConfig, NLVRSplitConfig, QuestionsConfig
from dataset.prepare import document
from dataset.prepare.catalogue import GROUPS, SETS
from launch.command import launch
from tasks import TASKS
from tasks.binding import bind_run
from utils.commands import parse_arguments

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks/README.md",
]
NOT_PACKAGES = {"data", "docs", "runs", "weights"}
"""Top-level folders without code or configs: documents, and files that runs read and write."""
BLOCK = re.compile(r"```(?:bash|sh)?\n(.*?)```", re.S)


def commands() -> list[tuple[str, str]]:
    """(page, command line) for all code blocks, without commands that demonstrate an error message."""
    found = []
    for page in PAGES:
        for block in BLOCK.findall(page.read_text(encoding="utf-8")):
            whole = re.sub(r"\\\n\s*", "", block)  # a backslash at the end continues the line
            lines = [line.removeprefix("$ ") for line in whole.splitlines()]
            after = [*lines[1:], ""]
            pairs = zip(lines, after, strict=True)
            found += [(page.name, line) for line, following in pairs if not following.startswith("error:")]
    return [(page, line) for page, line in found if line.startswith(("python ", "make ", "torchrun "))]


COMMANDS = commands()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], target


def test_the_pages_have_commands():
    assert len(COMMANDS) > 20


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_printed_command_exists(page, line, monkeypatch):
    """Checks that its flags are known, that its config binds with its overrides, and that its module or target exists."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(line, comments=True)
    while "=" in words[0] and not words[0].startswith("-"):
        words = words[1:]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        variables = dict(word.split("=") for word in words[1:] if "=" in word)
        assert all(word in targets for word in words[1:] if "=" not in word)
        assert variables.get("TASK", "pretrain") in TASKS
    elif words[1] == "-m":
        assert importlib.util.find_spec(words[2]) is not None, words[2]
    elif words[1] == "run.py":
        check_run(words[2:])
    else:
        assert words[0] == "torchrun" or (ROOT / words[1]).is_file(), line


def test_the_job_of_kubernetes_runs_a_command_that_exists(monkeypatch):
    monkeypatch.chdir(ROOT)
    [block] = re.findall(r"```yaml\n(apiVersion.*?)```", (ROOT / "docs/cluster.md").read_text(encoding="utf-8"), re.S)
    replicas = yaml.safe_load(block)["spec"]["pytorchReplicaSpecs"]
    assert [replicas[role]["replicas"] for role in ("Master", "Worker")] == [1, 3]
    for role in replicas.values():
        assert role["restartPolicy"] == "OnFailure"
        [container] = role["template"]["spec"]["containers"]
        assert container["command"][:2] == ["python", "run.py"] and "--resume" in container["command"]
        check_run(container["command"][2:])


def check_run(arguments: list[str]) -> None:
    if arguments[0] in run.COMMANDS:
        parse_arguments(run.COMMANDS[arguments[0]].load(), arguments[1:], "run.py")
        return
    _, given = parse_arguments(launch, arguments, "run.py")
    given.apply_defaults()
    overrides, task, flags = (given.arguments[name] for name in ("overrides", "task", "flags"))
    if flags.config is None and task is None:
        assert flags.output and flags.resume
        return
    config = None if flags.config in (None, "C", "FILE") else flags.config
    if flags.config is not None and config is None:
        return
    assert not str(config).startswith("runs/"), (
        f"{config} is there only after a run; a page names a config of the repository"
    )
    bind_run(config, overrides, task)


def test_the_page_of_verified_claims_names_the_tier_of_each_test():
    named = re.findall(r"`(tests/[\w/]+\.py)` \((fast|slow)", (ROOT / "docs/verified.md").read_text(encoding="utf-8"))
    assert len(named) > 3
    for path, tier in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert ("pytestmark = pytest.mark.slow" in source) == (tier == "slow"), path


def test_the_readme_links_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"](docs/{page.name})" not in text]
    assert missing == []


def rows_of(page: str, section: str) -> list[list[str]]:
    """The cells of the rows of the first table below a title, without its header."""
    text = (ROOT / page).read_text(encoding="utf-8").split(f"\n## {section}\n", 1)[1]
    lines = [line for line in text.split("\n## ", 1)[0].splitlines() if line.startswith("|")]
    first = next(index for index, line in enumerate(lines) if re.fullmatch(r"\|[-|]+", line))
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[first + 1 :]]


def test_the_table_of_packages_names_exactly_the_folders():
    named = {name for row in rows_of("docs/architecture.md", "Packages") for name in re.findall(r"`(\w+)/`", row[0])}
    there = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    there = {name for name in there if not name.endswith(".egg-info")} - NOT_PACKAGES
    assert named == there


def test_the_table_of_packages_names_every_command_of_run():
    text = next(row[1] for row in rows_of("docs/architecture.md", "Packages") if row[0] == "`run.py`")
    assert set(re.findall(r"`(\w[\w-]*)`", text.split("Other commands:")[1])) == set(run.COMMANDS)


def test_the_data_pages_name_every_format_and_every_preparation_command():
    text = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("data.md", "pretraining_data.md"))
    formats = {
        name
        for config in (CaptionedSplitConfig, GroundingSplitConfig, NLVRSplitConfig, QuestionsConfig)
        for name in get_args(config.model_fields["format"].annotation)
    }
    assert len(formats) > 8
    assert [name for name in sorted(formats - {"records"}) if not re.search(rf"`(format: )?{name}`", text)] == []
    names = [*SETS, *GROUPS, *CONVERTERS]
    assert len(names) > 10
    assert [name for name in names if f"run.py prepare {name}" not in text] == []


def test_the_table_of_data_sets_is_up_to_date():
    """If this fails, run ``python -m dataset.prepare.document``."""
    page = document.PAGE.read_text(encoding="utf-8")
    assert document.with_table(page) == page and f"\n\n{document.table()}\n" in page


def test_the_data_tree_has_every_folder_that_a_paper_config_reads():
    """Folders of the demo and of the user's own records have separate pages."""
    own = ("scenes", "scenes_quick", "clips", "stamps", "stamps_six", "emoji", "own", "real")
    tree = (ROOT / "docs/data.md").read_text(encoding="utf-8").split("\n## Folder layout\n", 1)[1].split("```")[1]
    read = {
        folder
        for path in (ROOT / "configs").rglob("*.yaml")
        for folder in re.findall(r"(?<![\w/])data/([\w+]+)/", path.read_text(encoding="utf-8"))
    }
    assert len(read) > 10
    assert [folder for folder in sorted(read - set(own)) if f"{folder}/" not in tree] == []


def test_the_constraints_are_releases_within_the_ranges_of_every_requirement():
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines if line)}
    assert all(re.fullmatch(r"[\d.]+((b|post)\d+)?", version) for version in pinned.values()), (
        "releases must not have +cpu or +cu"
    )
    for file in ("requirements.txt", "requirements-dev.txt"):
        requested = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
        for requirement in (Requirement(line) for line in requested if line and not line.startswith("-r")):
            name = canonicalize_name(requirement.name)
            assert name in pinned, name
            assert requirement.specifier.contains(pinned[name]), name
