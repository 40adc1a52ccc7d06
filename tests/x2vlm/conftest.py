"""Fixtures for the tests of x2vlm: models of each task with random weights, and 16 painted images."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint import MODEL_FILE
from engine.run_files import CONFIG_FILE
from models.config import VideoConfig
from models.tasks.retrieval import RetrievalModel
from tasks.config import PretrainConfig
from tasks.pretrain import PretrainTask
from tests.conftest import tiny_run
from tests.tasks.conftest import data, overrides  # noqa: F401 (fixtures)
from tests.tasks.painted import ROOT, task_of
from utils.config import dump_config, load_config
from utils.files import write_text
from utils.weight_file import save_weights
from x2vlm import Model, load
from x2vlm.runtime import TorchRuntime


@pytest.fixture(scope="session")
def task(scenes_folder, overrides) -> Callable[[str], Any]:  # noqa: F811
    """A task with large random weights, because a freshly initialised model has nearly the same outputs for every input."""

    @functools.cache
    def of(name: str) -> Any:
        if name == "pretrain":
            more = ["model.fusion.layers=2", "model.text.arch.layers=2"]
            config = load_config(ROOT / "configs/demo/pretrain.yaml", [*tiny_run(scenes_folder), *more], PretrainConfig)
            built = PretrainTask.build(config)
        else:
            built = task_of(name, overrides)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in built.model.named_parameters():
                if parameter.dim() > 1:
                    strength = 10.0 if ".crossattention." in name else 0.2
                    parameter.add_(strength * torch.randn(parameter.shape, generator=generator))
        built.model.eval()
        return built

    return of


@pytest.fixture(scope="session")
def run(task, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a run: its config, its weights, and the other files that a run keeps."""

    @functools.cache
    def of(name: str) -> Path:
        folder, built = tmp_path_factory.mktemp("run") / name, task(name)
        folder.mkdir()
        write_text(folder / CONFIG_FILE, dump_config(built.config))
        save_weights(folder / MODEL_FILE, built.model.state_dict())
        built.keep_inputs(folder)
        return folder

    return of


@pytest.fixture(scope="session")
def model(run) -> Callable[[str], Model]:
    """The loaded model of a run."""
    return functools.cache(lambda name: load(run(name)))


@pytest.fixture(scope="session")
def video_model(task, model) -> Model:
    """A retrieval model for videos with two frames."""
    image = model("retrieval")
    video = image.settings.model.vision.model_copy(update={"video": VideoConfig(frames=2)})
    config = image.settings.model.model_copy(update={"vision": video})
    settings = image.settings.model_copy(update={"model": config})
    network = RetrievalModel(config, len(image.tokenizer))
    network.load_state_dict(image.network.state_dict(), strict=False)
    return Model(TorchRuntime(network.eval()), image.tokenizer, settings, origin="of videos")


@pytest.fixture
def photos(data, tmp_path) -> Path:  # noqa: F811
    """A folder with four images and a text file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        shutil.copy(data / f"images/{number}.png", folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    return folder
