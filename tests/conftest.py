"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from demo.folder import FolderFlags
from demo.scenes.build import scenes
from tests.devices import DEVICES, PRETEND, as_in_a_run_without_tf32
from tests.pretend.device import as_accelerator, register
from tests.pretend.tensor import NAME

if PRETEND:
    register()  # before any test, because torch sets up its devices in the first backward pass


class ImmediateFailures:
    """Prints each failed test as soon as it fails. Pytest prints failures at the end, which an interrupted run never reaches."""

    def __init__(self, terminal: pytest.TerminalReporter):
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = (crash.message if crash else report.longreprtext).strip().splitlines() or [""]
            self.terminal.write_line(f"\nFAILED {report.nodeid} after {report.duration:.0f} s: {message[0][:300]}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):  # the workers of xdist report to this process
        config.pluginmanager.register(ImmediateFailures(terminal))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests for the night are slow tests, too, so that ``-m "not slow"`` leaves both out."""
    for item in items:
        if item.get_closest_marker("night") is not None:
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Excludes the imported modules from garbage collection. Tests that trigger a full collection would take half a second
    longer."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Uses one thread: the models are so small that several threads mostly wait for each other, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def isolated_logging() -> Iterator[None]:
    """Removes the log handlers that a run adds to its process, so that no test inherits the handlers of another test."""
    _remove_logging_of_runs()
    yield
    _remove_logging_of_runs()


@pytest.fixture(autouse=True)
def isolated_path() -> Iterator[None]:
    """Restores ``sys.path``. A task in a user's folder adds its folder there, and child processes would inherit it."""
    before = list(sys.path)
    yield
    sys.path[:] = before


def _remove_logging_of_runs() -> None:
    root = logging.getLogger()
    for handler in [each for each in root.handlers if not type(each).__module__.startswith("_pytest.")]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.WARNING)


@pytest.fixture(params=DEVICES)
def device(request) -> Iterator[torch.device]:
    """Each device in turn: the CPU, the pretend device (see :mod:`tests.devices`), and CUDA without TF32, which is marked ``gpu``
    and skipped if no GPU is available."""
    with as_accelerator() if request.param == NAME else nullcontext(), as_in_a_run_without_tf32():
        yield torch.device(request.param)


@pytest.fixture
def pretend() -> Iterator[torch.device]:
    """The pretend device (see :mod:`tests.devices`), in place of a GPU."""
    if not PRETEND:
        pytest.skip("this machine has a GPU, and torch supports one accelerator per process")
    with as_accelerator() as device:
        yield device


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory) -> Path:
    """A small scenes data set."""
    out = tmp_path_factory.mktemp("data") / "scenes"
    scenes(output=FolderFlags(out=out), seed=0, train=40, val=8, test=8, size=(32, 32))
    return out


@pytest.fixture(scope="session")
def tiny_overrides(scenes_folder) -> list[str]:
    """The overrides from :func:`tiny_run`, for ``scenes_folder``."""
    return tiny_run(scenes_folder)


def tiny_run(scenes_folder: Path) -> list[str]:
    """Overrides that shrink the demo's config to a run of seconds on a small scenes data set."""
    return [
        f"model.text.encoder={scenes_folder}/tokenizer",
        "model.text.arch={family: bert, width: 16, layers: 1, heads: 2, intermediate: 32, max_positions: 64}",
        "model.vision.image_size=32",
        "model.vision.stem=linear",  # random convolutions would hide the small differences that the tests look for
        "model.vision.width=16",
        "model.vision.depth=1",
        "model.vision.heads=2",
        "model.fusion.layers=1",
        "model.text.dropout=0.1",
        "model.vision.drop_path=0.1",
        f"data.images.files=[{scenes_folder}/train.jsonl]",
        f"data.regions.files=[{scenes_folder}/train.jsonl]",
        f"data.cache_index={scenes_folder}/index",
        "data.images.batch_size=4",
        "data.regions.batch_size=8",
        "data.regions.max_images=3",
        "data.workers=0",
        "optim.muon=null",  # which cannot be combined with FSDP2, LoRA and apex; tests/optim/test_muon.py has its own runs
        "schedule.warmup_steps=2",
        "train.steps=8",
        "train.log_every=1",
        "train.checkpoint_every=3",
        "train.deterministic=true",
        f"evaluation.files=[{scenes_folder}/val.jsonl]",
        "evaluation.panels=2",
    ]
