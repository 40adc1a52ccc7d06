"""The notebook runs from the first to the last cell, and is committed with the results of such a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.tasks.painted import ROOT

CELLS = json.loads((ROOT / "examples/quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


@pytest.fixture
def checkout(run, data, tmp_path, monkeypatch) -> Path:
    """The folder in which the notebook is opened, with a model of random weights, and images under the names of scenes."""
    shutil.copytree(run("pretrain"), tmp_path / "runs/demo/pretrain-seed0")
    (tmp_path / "data/scenes/images/test").mkdir(parents=True)
    for number in range(6):
        shutil.copy(data / f"images/{number}.png", tmp_path / f"data/scenes/images/test/{number:06d}.png")
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    return tmp_path


@pytest.mark.slow
def test_the_cells_run_in_order(checkout):
    names: dict[str, object] = {}
    for cell in CODE:
        exec(compile("".join(cell["source"]), "examples/quickstart.ipynb", "exec"), names)
    assert Path.cwd() == checkout
    assert len(names["hits"]) == 4 and len(names["maps"]) == 9  # type: ignore[arg-type]
    assert {path.name for path in (checkout / "runs/demo").glob("*.png")} == {"located.png", "found.png", "maps.png"}


def test_the_notebook_has_its_results():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, 1 + len(CODE)))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"execute_result"}
    assert sum("image/png" in output["data"] for output in outputs) == 4


def test_links_of_the_notebook_resolve():
    text = "".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    links = [part.partition(")")[0] for part in text.split("](")[1:]]
    assert links and all((ROOT / "examples" / link).is_file() for link in links)
