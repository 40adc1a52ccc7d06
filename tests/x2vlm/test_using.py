"""Every command and every example in docs/using.md runs, with models of the same names and with the same format of output."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from metrics.calibration import Calibration, ModelCalibration
from run import main
from tests.tasks.painted import ROOT
from x2vlm import load
from x2vlm.calibration import write_calibration

PAGE = (ROOT / "docs/using.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(python run\.py predict .*)$", PAGE, re.MULTILINE)
SEARCH = re.findall(r"^(python run\.py (?:index|search) .*)$", PAGE, re.MULTILINE)
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
OUTPUT = dict(re.findall(r"^(python run\.py [^\n]*)\n```\n\n```\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def checkout(run, data, tmp_path, monkeypatch) -> Path:
    """A folder with the demo's models and the calibrated emoji and clip art model, with random weights, and some images under the
    names of scenes and composites."""
    for task, name in {"pretrain": "pretrain", "captioning": "captioning", "vqa": "vqa", "nlvr": "nlvr"}.items():
        shutil.copytree(run(task), tmp_path / f"runs/demo/{name}-seed0")
    folder = tmp_path / "data/scenes/images/test"
    folder.mkdir(parents=True)
    for name in re.findall(r"images/test/(\d+\.png)", PAGE):
        shutil.copy(data / "images/1.png", folder / name)
    real = tmp_path / "runs/real/pretrain-seed0"
    shutil.copytree(run("pretrain"), real)
    same = Calibration((1.0, 1.0), 0.0)
    write_calibration(real, ModelCalibration(same, same), load(real).network)
    for name in re.findall(r"--image (data/real/\S+)", PAGE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (224, 224), "white").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shape_of(text: str) -> list[str]:
    """Lines without their numbers and answers, so that they do not depend on the weights."""
    lines = [re.sub(r"-?\b\d+(\.\d+)?", "N", line).rstrip() for line in text.rstrip().splitlines()]
    return sorted(re.sub(r"^(  \S.*\?  ).*|^  (true|false)|^  a .*", r"\1", line) for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_as_printed(command, checkout, capsys):
    assert main(shlex.split(command)[2:]) == 0
    printed = capsys.readouterr().out
    if command in OUTPUT:
        assert len(printed.splitlines()) == len(OUTPUT[command].splitlines())
        if " caption " not in command:
            assert shape_of(printed) == shape_of(OUTPUT[command])
    for drawn in re.findall(r"--save (\S+)", command):
        assert (checkout / drawn).is_file()


def test_a_folder_is_indexed_and_searched_as_printed(checkout, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(checkout / "cache"))
    for number, path in enumerate(sorted((checkout / "data/scenes/images/test").iterdir())):
        Image.new("RGB", (64, 64), (number, 40, 90)).save(path)
    for command in SEARCH:
        assert main(shlex.split(command)[2:]) == 0
        printed, shown = (
            shape_of(text.replace(f"{checkout}/", "")) for text in (capsys.readouterr().out, OUTPUT[command])
        )
        assert printed == shown
    assert (checkout / "search.png").is_file()


@pytest.mark.parametrize(
    "example",
    [each for each in EXAMPLES if "Training" not in each],
    ids=lambda example: re.sub(r"\W+", " ", example)[:40],
)
def test_an_example_runs_as_printed(example, checkout, monkeypatch, capsys):
    """The mteb tasks use made-up data here instead of downloads. ``test_training.py`` runs the example of training steps."""
    if "import mteb" in example:
        made_up = pytest.importorskip("mteb.mocks.mock_tasks")
        import mteb

        made = [made_up.MockAny2AnyRetrievalT2ITask(), made_up.MockImageTextPairClassificationTask()]
        monkeypatch.setattr(mteb, "get_tasks", lambda tasks: made)
        monkeypatch.setenv("MTEB_CACHE", str(checkout / "cache"))
    if "sentence_transformers" in example:
        pytest.importorskip("sentence_transformers")
    exec(compile(example, "docs/using.md", "exec"), {})


def test_the_page_has_commands_with_output_and_examples():
    assert len(COMMANDS) == 7 and len(SEARCH) == 2 and len(OUTPUT) == 11 and len(EXAMPLES) == 7
