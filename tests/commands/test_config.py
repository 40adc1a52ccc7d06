"""``run.py config`` lists every key with its type, default and meaning, or the values of a file with their locations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from commands.config import document
from run import main
from tasks import TASKS
from tasks.binding import bind_run
from tasks.kinds import find_task
from tests.messages import OneLine
from tools.config.keys import Key, keys_of
from utils.config import Config

ROOT = Path(__file__).parent.parent.parent


class Inner(Config):
    rate: float | None = Field(None, gt=0, lt=1, description="a share")


class Schema(Config):
    name: str
    kind: Literal["fast", "slow"] = "fast"
    inner: Inner = Inner()
    changed: Inner = Inner(rate=0.5)
    parts: tuple[Inner, ...] = ()
    splits: dict[str, Inner] | None = Field(None, description="by name")
    betas: tuple[float, float] = (0.9, 0.98)


def test_keys_have_types_limits_and_defaults():
    share = ("float > 0 < 1 or null", "null", "a share", False)
    assert list(keys_of(Schema)) == [
        Key("name", "text", "required", "", False),
        Key("kind", "fast or slow", '"fast"', "", False),
        Key("inner.rate", *share),
        Key("changed", "section", '{"rate": 0.5}', "", False),
        Key("changed.rate", *share),
        Key("parts[].rate", *share),
        Key("splits", "{name: section} or null", "null", "by name", False),
        Key("splits.<name>.rate", *share),
        Key("betas", "[float, float]", "[0.9, 0.98]", "", False),
    ]


@pytest.mark.parametrize("task", TASKS)
def test_every_key_of_every_task_has_a_description(task):
    assert not [
        key.path for key in keys_of(find_task(task).config_class()) if not key.meaning and key.type != "section"
    ]


def test_a_file_is_printed_as_a_complete_config(capsys, tmp_path, monkeypatch):
    """In any folder, a config that comes with the project is found by its name."""
    monkeypatch.chdir(tmp_path)
    assert main(["config", "configs/demo/retrieval.yaml", "train.steps=7", "--yaml"]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    expected = bind_run(ROOT / "configs/demo/retrieval.yaml", ["train.steps=7"]).config
    assert bind_run("mine.yaml", []).config == expected
    for wrong in (["retrieval", "--yaml"], ["mine.yaml", "train.", "--yaml"]):
        assert main(["config", *wrong]) == 2
        assert capsys.readouterr().err == OneLine("--yaml prints a whole config", "pass only a FILE")


def test_the_values_of_a_file_show_their_locations(capsys):
    assert (
        main(["config", "configs/pretrain/base_4m.yaml", "train.steps", "train.epochs", "optim.lr", "optim.lr=1e-5"])
        == 0
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    file = (ROOT / "configs/pretrain/base_4m.yaml").read_text().splitlines()
    (number,) = (number for number, line in enumerate(file, start=1) if line.startswith("  steps: 500000"))
    assert f"train.steps = 500000  (configs/pretrain/base_4m.yaml:{number})" in lines
    assert "train.epochs = null  (default)" in lines
    assert "optim.lr = 1e-05  (command line)" in lines


def test_a_section_on_the_command_line_replaces_the_one_in_the_file(capsys):
    assert main(["config", "configs/demo/nlvr.yaml", "data.augment", "data.augment={flip: 0.5}"]) == 0
    out = capsys.readouterr().out
    assert "data.augment.flip = 0.5  (command line)" in out
    assert "data.augment.scale = [0.2, 1.0]  (default)" in out
    assert "configs/" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["retreival"], ("'retrieval'",)),
        (["retrieval", "optin."], ("retrieval", "optin.")),
        (["retrieval", "optim.lr=1"], ("FILE", "retrieval")),
        (["configs/demo/nlvr.yaml", "optim.lrr=1"], ("optim.lr",)),
        (["gone.yaml"], ("gone.yaml",)),
    ],
)
def test_mistakes_are_reported_in_one_line(capsys, arguments, message):
    assert main(["config", *arguments]) == 2
    error = capsys.readouterr().err
    assert error == OneLine(*message)
    assert error.count("\n") == 1


def test_the_document_has_an_entry_for_every_key_of_every_task():
    entries = re.findall(r"^`([^`]+)`\n:   \S", document(), re.MULTILINE)
    keys = {key.path for task in TASKS for key in keys_of(find_task(task).config_class())}
    assert set(entries) == keys
