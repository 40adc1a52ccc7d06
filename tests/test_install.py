"""When installed, the project is a single package, x2vlm, which adds no other name and needs no checkout."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
import urllib.request
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from run import COMMANDS
from setup import INSIDE, as_subpackage
from tests.conftest import tiny_run

pytestmark = pytest.mark.night

ROOT = Path(__file__).parent.parent
SOURCES = [
    *INSIDE, "x2vlm", "configs", "run.py", "setup.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md",
]  # fmt: skip


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources, because building leaves a folder behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in SOURCES:
        (source / path).symlink_to(ROOT / path)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        out,
        ".",
    ]
    subprocess.run(build, cwd=source, check=True)
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture
def editable(tmp_path) -> Callable[[Path], subprocess.CompletedProcess[str]]:
    """Runs a script in a fresh environment with an editable installation of the checkout."""
    folder, source = tmp_path / "fresh", tmp_path / "source"
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    source.mkdir()
    for path in SOURCES:
        (source / path).symlink_to(ROOT / path)
    into = [sys.executable, "-m", "pip", "--python", folder / "bin/python"]
    flags = ["-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*into, "install", *flags, "--editable", source], check=True)

    def of(script: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([folder / "bin/python", script], cwd="/", capture_output=True, text=True, check=False)

    return of


def test_a_script_in_another_folder_imports_an_editable_installation(editable, tmp_path):
    script = tmp_path / "scripts/ask.py"
    script.parent.mkdir()
    script.write_text("import x2vlm\nprint(x2vlm.__version__)\n")
    done = editable(script)
    assert done.stdout == "0.1.0\n", done.stderr
    (script.parent / "utils.py").write_text("")
    error = editable(script).stderr.splitlines()[-1]
    assert error.startswith("ImportError: x2vlm needs its package 'utils'") and f"{script.parent}/utils.py" in error


@pytest.fixture(scope="session")
def environment(wheel, tmp_path_factory) -> Path:
    """The folder of the programs of a fresh environment that has the wheel and only the packages in requirements.txt."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    into = [sys.executable, "-m", "pip", "--python", folder / "bin/python"]
    subprocess.run([*into, "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    return folder / "bin"


@pytest.fixture(scope="session")
def run(environment, tmp_path_factory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program of this environment in a folder with a module of somebody else."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "utils.py").write_text("raise SystemExit('this is a module of somebody else')\n")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def of(*command: str) -> subprocess.CompletedProcess[str]:
        program = [environment / command[0], *command[1:]]
        return subprocess.run(program, cwd=elsewhere, env=clean, capture_output=True, text=True, check=False)

    return of


def test_the_wheel_adds_one_name(wheel):
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert names == {"x2vlm", "x2vlm-0.1.0.dist-info"}


def test_the_wheel_has_the_module_of_every_command(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = [command.target.partition(":")[0].replace(".", "/") for command in COMMANDS.values()]
    assert len(modules) > 15
    assert [module for module in modules if f"x2vlm/{module}.py" not in names] == []


def test_imports_and_names_of_modules_are_below_x2vlm():
    ours = 'from utils.errors import A\n    from models import b\n"tasks.run", "engine.nothing", "run.py", "run:completion"\n'
    below = "from x2vlm.utils.errors import A\n    from x2vlm.models import b\n"
    below += '"x2vlm.tasks.run", "engine.nothing", "run.py", "x2vlm.run:completion"\n'
    other = "from dataset_of_mine import c\n"
    assert as_subpackage(ours + other) == below + other


def test_a_trained_model_is_used_from_another_folder(run, scenes_folder, tmp_path):
    """The model is trained by the installed command on ranks, in a folder that has a module of the user's called utils."""
    folder = tmp_path / "run"
    train = ["--task", "pretrain", "--cpu", "1", "--output", str(folder), "train.steps=1", "schedule.warmup_steps=0"]
    done = run(
        "x2vlm", *train, *[each for each in tiny_run(scenes_folder) if not each.startswith(("train.steps", "schedule"))]
    )
    assert done.returncode == 0, done.stderr
    image = next((scenes_folder / "images/test").iterdir())
    ask = (
        f"from x2vlm import load; print(load({str(folder)!r}).match({str(image)!r}, ['a red star', 'a circle']).shape)"
    )
    done = run("python", "-c", ask)
    assert (done.stdout, done.returncode) == ("(1, 2)\n", 0), done.stderr
    done = run(
        "python", "-m", "x2vlm", "predict", "match", "--model", str(folder), "--image", str(image), "--text", "a star"
    )
    assert done.returncode == 0 and "a star" in done.stdout, done.stderr


def test_commands_find_their_configs(run):
    done = run("x2vlm", "tables", "--cell", "coco_5k")
    assert done.returncode == 0 and "configs/retrieval/coco_base_4m.yaml" in done.stdout, done.stderr


def test_a_report_finds_its_templates(run, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    done = run("x2vlm", "report", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "vegaEmbed" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_from_the_wheel_alone_one_draws_pre_trains_predicts_fine_tunes_and_serves(environment, tmp_path):
    """In an empty folder, with QUICK's config and fewer steps."""

    def run(*command: str) -> str:
        done = subprocess.run(
            [environment / command[0], *command[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    scenes, shown = "data/scenes_quick", "configs/demo/retrieval.yaml"
    counts = ["--train", "60", "--val", "10", "--test", "10"]
    run("python", "-m", "x2vlm.demo.scenes", "--out", scenes, "--seed", "0", *counts)
    quick = ["--config", "configs/demo/pretrain_quick.yaml", "--cpu", "1", "--output", "runs/quick"]
    run("x2vlm", *quick, "train.steps=2", "schedule.warmup_steps=0.5")
    image = next((tmp_path / scenes / "images/test").iterdir())
    predict = ["--model", "runs/quick", "--image", str(image), "--text", "a red star"]
    assert "a red star" in run("x2vlm", "predict", "match", *predict)
    changes = [f"model.text.encoder={scenes}/tokenizer", "init.checkpoint=runs/quick", "train.steps=2"]
    for key, split in (("data.train", "train"), ("evaluation.validation", "val"), ("evaluation.test.test", "test")):
        changes.append(f"{key}.annotations={scenes}/retrieval_{split}.jsonl")
    (tmp_path / "mine.yaml").write_text(run("x2vlm", "config", shown, "--yaml", *changes, "schedule.warmup_steps=0.5"))
    run("x2vlm", "--config", "mine.yaml", "--cpu", "1", "--output", "runs/mine")
    assert (tmp_path / "runs/mine/evaluation.json").is_file()
    pytest.importorskip("gradio", reason="serving a page needs gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [environment / "x2vlm", "serve", "--model", "runs/mine", "--port", str(port)]
    with subprocess.Popen(serve, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            with urllib.request.urlopen(server.stdout.readline().strip(), timeout=30) as answer:
                assert b"<html" in answer.read()
        finally:
            server.terminate()
