"""A data set is added in one module and one line: the example of docs/architecture.md becomes a command."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from dataset.prepare import catalogue, line_shards, sets
from dataset.prepare.catalogue import MODULES, SETS
from run import main
from tests.dataset.prepare import official
from tests.dataset.prepare.official import counted, image, parsed_records, write

PAGE = Path(__file__).parents[3] / "docs/architecture.md"


@pytest.fixture
def birds(tmp_path, monkeypatch) -> str:
    """Adds the data set of the documents, and returns its name."""
    section = PAGE.read_text(encoding="utf-8").split("\n### A pre-training data set\n")[1]
    write(tmp_path / "sets/birds.py", re.findall(r"```python\n(.*?)```", section, re.S)[0])
    monkeypatch.setattr(line_shards, "in_order", official.in_this_process)
    monkeypatch.setattr(sets, "__path__", [*sets.__path__, str(tmp_path / "sets")])
    monkeypatch.setattr(catalogue, "MODULES", (*MODULES, "birds"))
    declared = {data_set.name: data_set for data_set in catalogue._declared()}
    monkeypatch.setitem(SETS, "birds", declared["birds"])
    yield "birds"
    del sys.modules["dataset.prepare.sets.birds"]


def test_the_example_of_the_documents_makes_region_records(birds, tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    finch = {"species": "Green Finch.", "box": [1, 2, 10, 20]}
    described = [
        {
            "photo": "photos/1.png",
            "width": 64,
            "height": 48,
            "birds": [finch, {"species": "owl", "box": [99, 2, 3, 4]}],
        },
        {"photo": "photos/2.png", "width": 64, "height": 48, "birds": [{"species": "owl"}]},
        {"photo": "photos/3.png", "width": 64, "height": 48, "birds": [finch]},
    ]
    write(raw / "birds.json", described)
    for number in (1, 2):
        image(raw / f"photos/{number}.png")
    official.prepared(birds, raw, out, max_broken=0.5)
    assert [record["elems"] for record in parsed_records(out / "birds")] == [
        [{"caption": "green finch", "bb": [1, 2, 10, 20], "grain": "object"}]
    ]
    assert counted(out / "birds") == {
        "read": {"images": 3, "birds": 3},
        "written": {"images": 1, "birds": 1, "records": 1},
        "fixed": {},
        "skipped": {"box outside image": 1, "wrong type": 1, "missing image": 1},
    }
    examples = json.loads((out / "birds/_prepare/manifest.json").read_text())["counts"]["examples"]
    assert {"place": f"{raw}/birds.json[1]", "reason": "wrong type", "detail": "KeyError: 'box'"} in examples
    assert main(["prepare", "--list"]) == 0
    assert "birds: Birds\n" in capsys.readouterr().out


def test_every_module_of_a_data_set_is_in_the_catalogue():
    found = {path.stem for folder in sets.__path__ for path in Path(folder).glob("*.py")} - {"__init__"}
    assert found == set(MODULES)
    assert len(SETS) == sum(
        isinstance(value, catalogue.DataSet)
        for module in MODULES
        for value in vars(importlib.import_module(f"dataset.prepare.sets.{module}")).values()
    )
