"""Curves at Weights & Biases: the same values as in TensorBoard, runs that continue, and failures that do not stop a run.

A small module replaces the package, with the part of its interface that is used. One test uses the real package offline.
"""

from __future__ import annotations

import importlib.machinery
import socket
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.config import WandbConfig
from engine.metrics_log import MetricsLog
from engine.run_folder import RunFolder
from engine.trackers import check_package, send_report, show_images
from tests.engine.test_tensorboard import curve
from tests.engine.toy import ToyTask, trainer
from tests.messages import naming
from utils.errors import UserError


class FakeRun:
    """A run on the server. It keeps the rows by step, and ignores steps that decrease."""

    def __init__(self, ident: str):
        self.id, self.step, self.rows, self.status = ident, 0, dict[int, dict[str, float]](), list[int]()
        self.shown: dict[str, Any] = {}

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        if step is None:
            self.shown |= values
            return
        assert step >= self.step, "W&B ignores decreasing steps with a warning"
        self.step = step
        self.rows.setdefault(step, {}).update(values)

    def finish(self, exit_code: int = 0) -> None:
        self.status.append(exit_code)
        self.step += 1  # a resumed run starts after its last step


class FakeWandb(types.ModuleType):
    Run = FakeRun
    fault: Exception | None = None
    asks = True

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin=__file__)
        self.runs, self.calls = dict[str, FakeRun](), list[dict[str, Any]]()

    def Image(self, image: np.ndarray, caption: str) -> tuple[tuple[int, ...], str]:
        return image.shape, caption

    def Html(self, text: str, inject: bool) -> str:
        return text

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def setup(self, settings: dict[str, Any]) -> None:
        self.asks = not settings["silent"]

    def init(self, **options: Any) -> FakeRun:
        assert not self.asks, "without a key, W&B would ask for a login at a terminal"
        if self.fault is not None:
            raise self.fault
        self.calls.append(options)
        assert options["resume"] == "allow"
        return self.runs.setdefault(options["id"], FakeRun(options["id"]))


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def only_run(wandb: FakeWandb) -> FakeRun:
    (run,) = wandb.runs.values()
    return run


def log(folder: Path, after: int, values: dict[int, float], config: WandbConfig | None = None) -> None:
    """Simulates a process that resumes ``after`` a step, logs ``values``, and validates after the last of them."""
    written = MetricsLog(RunFolder(folder), after, config or WandbConfig())
    for step, value in values.items():
        written.write({"step": step, "loss": value})
    written.write_validation(max(values), {"accuracy": value / 10})
    written.sync()
    written.close()


def test_values_and_names_are_the_same_as_in_tensorboard(tmp_path, wandb):
    log(tmp_path, 0, {1: 5.0, 2: 4.0, 4: 3.0})
    assert only_run(wandb).rows == {1: {"loss": 5}, 2: {"loss": 4}, 4: {"loss": 3, "validation/accuracy": 0.3}}
    assert curve(tmp_path, "loss") == [(1, 5.0), (2, 4.0), (4, 3.0)]
    assert only_run(wandb).status == [0]


def test_a_run_is_shown_in_the_configured_project_and_nothing_else_is_sent(tmp_path, wandb):
    (tmp_path / "config.yaml").write_text("seed: 3\ntrain: {steps: 4}\n")
    config = WandbConfig(project="p", entity="e", name="n", group="g", mode="offline")
    log(tmp_path, 0, {1: 5.0}, config)
    (call,) = wandb.calls
    assert {name: call[name] for name in ("project", "entity", "name", "group", "mode")} == config.model_dump(
        exclude={"images"}
    )
    assert call["config"] == {"seed": 3, "train": {"steps": 4}}
    assert call["dir"] == str(tmp_path)
    off = {"disable_code", "disable_git", "x_disable_meta", "x_disable_stats", "x_disable_machine_info"}
    assert all(call["settings"][name] is True for name in off)
    assert call["settings"]["console"] == "off" and call["settings"]["x_save_requirements"] is False


def test_without_a_name_a_run_is_named_after_its_folder(tmp_path, wandb):
    (tmp_path / "demo").mkdir()
    log(tmp_path / "demo", 0, {1: 5.0})
    assert wandb.calls[0]["name"] == "demo"


def test_a_resumed_run_continues_the_same_run_and_sends_no_step_twice(tmp_path, wandb):
    log(tmp_path, 0, {1: 5.0, 2: 4.0, 3: 3.0})
    log(tmp_path, 2, {3: 3.0, 4: 2.0})
    assert [call["id"] for call in wandb.calls] == [(tmp_path / "wandb_id").read_text().strip()] * 2
    rows = only_run(wandb).rows
    assert [rows[step]["loss"] for step in sorted(rows)] == [5, 4, 3, 2]


def test_a_run_that_enables_wandb_later_is_shown_from_its_start(tmp_path, wandb):
    before = MetricsLog(RunFolder(tmp_path), 0)
    for step in (1, 2):
        before.write({"step": step, "loss": 6.0 - step})
    before.write_validation(1, {"accuracy": 0.1})
    before.close()
    assert not wandb.runs
    log(tmp_path, 2, {3: 3.0})
    assert only_run(wandb).rows == {
        1: {"loss": 5, "validation/accuracy": 0.1},
        2: {"loss": 4},
        3: {"loss": 3, "validation/accuracy": 0.3},
    }


def test_images_are_shown_under_their_names_unless_disabled(tmp_path, wandb):
    image = np.zeros((20, 30, 3), np.uint8)
    show_images(RunFolder(tmp_path), WandbConfig(), {"predictions/test": image}, 4)
    assert not wandb.runs, "evaluating other weights must not create a run at W&B"
    log(tmp_path, 0, {1: 5.0, 4: 4.0})
    show_images(RunFolder(tmp_path), WandbConfig(images=False), {"predictions/test": image}, 4)
    assert not only_run(wandb).shown
    show_images(RunFolder(tmp_path), WandbConfig(), {"predictions/test": image}, 4)
    assert only_run(wandb).shown == {"predictions/test": ((20, 30, 3), "step 4")}
    assert only_run(wandb).status == [0, 0]


def test_the_report_is_shown_in_the_run(tmp_path, wandb):
    page = tmp_path / "report.html"
    page.write_text("<p>fine</p>")
    (tmp_path / "config.yaml").write_text("train: {wandb: null}\n")
    with pytest.raises(UserError, match=naming("--wandb", "train.wandb")):
        send_report(tmp_path, page)
    (tmp_path / "config.yaml").write_text("train: {wandb: {project: p}}\n")
    log(tmp_path, 0, {1: 5.0})
    send_report(tmp_path, page)
    assert only_run(wandb).shown == {"report": "<p>fine</p>"}
    wandb.fault = RuntimeError("no such host\nand more")
    with pytest.raises(UserError, match=naming("no such host", page)):
        send_report(tmp_path, page)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_run_continues_if_wandb_cannot_start(tmp_path, wandb, caplog):
    wandb.fault = RuntimeError("no such host\nand more")
    log(tmp_path, 0, {1: 5.0, 2: 4.0})
    reported = f"{tmp_path}: the run at W&B cannot be written (no such host); the run continues without them"
    assert warnings(caplog) == [reported]
    assert curve(tmp_path, "loss") == [(1, 5.0), (2, 4.0)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_continues_with_one_warning_if_wandb_fails_later(tmp_path, wandb, caplog, monkeypatch):
    def fail(self: FakeRun, values: dict[str, float], step: int | None = None) -> None:
        raise BrokenPipeError("the service has ended")

    monkeypatch.setattr(FakeRun, "log", fail)
    log(tmp_path, 0, {1: 5.0, 2: 4.0})
    assert len(warnings(caplog)) == 1 and "the service has ended" in warnings(caplog)[0]


def test_a_run_that_fails_is_shown_as_failed(tmp_path, wandb):
    with pytest.raises(UserError, match="not finite"):
        trainer(tmp_path, ToyTask(poison={2}), wandb={}).fit()
    assert only_run(wandb).status == [1]
    assert 1 in only_run(wandb).rows


def test_a_run_without_the_section_never_imports_the_package(tmp_path, wandb):
    trainer(tmp_path, steps=2).fit()
    assert not wandb.calls and not (tmp_path / "wandb_id").exists()


def test_a_missing_package_is_reported_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    check_package(None)
    with pytest.raises(UserError, match=naming("train.wandb", "wandb", 'pip install -e ".[wandb]"')):
        check_package(WandbConfig())
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "wandb").mkdir()  # where W&B has written its files
    with pytest.raises(UserError):
        check_package(WandbConfig())


@pytest.mark.slow
def test_the_real_package_writes_an_offline_run_without_data_about_the_machine(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setattr(socket, "gethostname", lambda: "name-of-the-host")
    monkeypatch.setenv("SOME_TOKEN", "a-secret-value")
    (tmp_path / "config.yaml").write_text("seed: 31415\n")
    log(tmp_path, 0, {1: 5.0, 2: 0.8125}, WandbConfig(mode="offline"))
    show_images(RunFolder(tmp_path), WandbConfig(mode="offline"), {"predictions/a": np.ones((9, 9, 3), np.uint8)}, 2)
    wandb.teardown()  # as at the end of the process: until then, W&B's service may still be writing
    ident = (tmp_path / "wandb_id").read_text().strip()
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{ident}.wandb"))
    content = b"".join(file.read_bytes() for file in files)
    for sent in ("31415", "validation/accuracy", "0.8125", "predictions/a"):
        assert sent.encode() in content
    for kept in ("name-of-the-host", "SOME_TOKEN", "a-secret-value", str(tmp_path.parent)):
        assert kept.encode() not in content
