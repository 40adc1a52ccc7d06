"""Every shipped config is valid, and builds on the meta device with the published sizes."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from models.checkpoints.rename import DROPPED, TIED, published_to_ours
from tasks import TASKS
from tasks.binding import bind_run
from tasks.kinds import find_task
from utils.config import Config, dump_config, load_config
from utils.config_files import read_config

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted(ROOT.glob("configs/*/*.yaml"))
RUNS = [path for path in CONFIGS if path.parent.name != "presets"]
COUNTS = json.loads((ROOT / "tests/golden/checkpoint_keys/param_counts.json").read_text())
PUBLISHED_SIZE = {"pretrain": 224, "vqa": 768}
"""Image size in the golden files; other tasks use 384."""


def task_of(path: Path) -> str:
    """The name of the folder is the task. In the demo's folder, the file's name starts with the task."""
    return path.stem.split("_")[0] if path.parent.name in ("demo", "own", "real") else path.parent.name


@cache
def load(path: Path, *overrides: str) -> Config:
    return load_config(path, overrides, bind_run(path, []).source.load().config)


TOTALS: dict[tuple[object, ...], int] = {}
"""Numbers of parameters, by the properties that a model is built from."""


def total(path: Path, *overrides: str) -> int:
    """The number of parameters of a config's model. Equal models are built once."""
    config = load(path, *overrides)
    streams = config.data.streams() if hasattr(config.data, "streams") else {}
    weights = tuple((name, stream.weight) for name, stream in streams.items())
    objective = getattr(config.train, "objective", None)
    built_from = (type(config), config.model_dump_json(include={"model", "loss"}), weights, objective)
    if built_from not in TOTALS:
        with torch.device("meta"):
            model = bind_run(path, []).source.load().task.build_model(config, config.model.text.arch.vocab_size or 200)
        TOTALS[built_from] = sum(parameter.numel() for parameter in model.parameters())
    return TOTALS[built_from]


def test_every_task_has_configs_and_a_demo():
    assert {read_config(path).values.get("task") for path in RUNS} == TASKS.keys()
    for name, entry in TASKS.items():
        assert (ROOT / entry.script).is_file()
        assert ROOT / entry.default_config in RUNS
        assert read_config(ROOT / entry.default_config).values.get("task") == name


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_config_names_its_task_binds_and_builds(path):
    assert read_config(path).values.get("task") in (task_of(path), *TASKS[task_of(path)].also)
    assert total(path) > 0


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("pretrain/base_4m", "pretrain_base"),
        ("pretrain/large_4m", "pretrain_large"),
        ("pretrain/base_1b", "pretrain_base"),
        ("pretrain/base_1b_stage2", "pretrain_base_video"),
        ("pretrain/large_1b_stage2", "pretrain_large_video"),
        ("retrieval/coco_base_4m", "retrieval_base"),
        ("nlvr/nlvr2_base_4m", "nlvr_base"),
        ("grounding/refcoco_plus_base_4m", "grounding_base"),
        ("vqa/vqa2_base_4m", "vqa_base"),
        ("captioning/coco_base_4m", "captioning_base"),
    ],
)
def test_presets_have_the_published_number_of_parameters(name, published):
    """The models have the published image sizes, because position bias tables grow with them."""
    size = f"model.vision.image_size={PUBLISHED_SIZE.get(name.split('/')[0], 384)}"
    assert total(ROOT / "configs" / f"{name}.yaml", size) == COUNTS[published]["total"]


@pytest.mark.parametrize(
    ("name", "published", "frames"),
    [("retrieval/msrvtt_base", "retrieval_base_video", 8), ("vqa/msrvtt_qa_base", "videoqa_base", 5)],
)
def test_video_configs_have_the_published_number_of_parameters(name, published, frames):
    """The models have the image sizes and numbers of frames in the files."""
    given = ["model.vision.image_size=224", f"model.vision.video.frames={frames}"]
    assert total(ROOT / "configs" / f"{name}.yaml", *given) == COUNTS[published]["total"]


@pytest.mark.parametrize(
    "name",
    [
        "retrieval/coco_base_4m",
        "nlvr/nlvr2_base_4m",
        "grounding/refcoco_plus_base_4m",
        "vqa/vqa2_base_4m",
        "captioning/coco_base_4m",
    ],
)
def test_every_published_tensor_has_a_parameter_in_a_base_model(name):
    """At the resolution of the files, names and shapes in the published files are exactly the names and shapes of our
    parameters."""
    path = ROOT / "configs" / f"{name}.yaml"
    task = task_of(path)
    config = load(path, f"model.vision.image_size={PUBLISHED_SIZE.get(task, 384)}")
    with torch.device("meta"):
        model = find_task(task).load().task.build_model(config, None)
    published = json.loads((ROOT / "tests/golden/checkpoint_keys" / f"{task}_base.json").read_text())["keys"]
    rename = published_to_ours(text_layers=12)
    expected = {
        rename(key): tuple(shape)
        for key, shape in published.items()
        if key.rsplit(".", 1)[-1] not in DROPPED and key not in TIED
    }
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("pretrain/multilingual_base", "pretrain_cclm_base"),
        ("retrieval/multi30k_base", "plus_retrieval_base"),
        ("nlvr/xvnli_base", "plus_xvnli_base"),
        ("nlvr/marvl_base", "plus_marvl_base"),
        ("vqa/xgqa_base", "plus_vqa_base"),
    ],
)
def test_presets_with_xlm_r_have_the_published_number_of_parameters(name, published):
    size = f"model.vision.image_size={224 if name.startswith('pretrain') else 384}"
    assert total(ROOT / "configs" / f"{name}.yaml", size) == COUNTS[published]["total"]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_config_starts_with_its_command(path):
    head = path.read_text(encoding="utf-8").split("base:")[0]
    assert all(line.startswith("#") for line in head.strip().splitlines())
    relative = path.relative_to(ROOT).as_posix()
    assert f"--config {relative}" in head or "make demo" in head


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_resolved_config_survives_the_round_trip(path, tmp_path):
    config = load(path)
    copy = tmp_path / "config.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy, [], bind_run(path, []).source.load().config) == config


@pytest.mark.parametrize("size", ["base", "large"])
def test_xlm_r_replaces_only_the_text_encoder_of_the_english_model(size):
    """Settings with which the English checkpoint was trained, and which its shapes do not show, do not change."""
    english = load(ROOT / f"configs/pretrain/{size}_4m.yaml").model
    for path in sorted(ROOT.glob(f"configs/*/m*_{size}.yaml")):
        config = load(path)
        if config.model.text.encoder.startswith("xlm-roberta"):
            assert config.model.fusion == english.fusion, path
            assert (config.model.text.arch.family, config.model.text.arch.eps) == ("roberta", 1e-5)
            assert (config.model.text.arch.pad_id, config.model.text.arch.vocab_size) == (1, 250002)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_configs_of_the_paper_read_pixels_as_released(path):
    """The released readers ignore EXIF orientation and drop alpha. Our own configs show images as people see them."""
    is_ours = path.parent.name in ("demo", "own", "real") or path.stem.endswith("_tiny")
    assert load(path).data.pixels == ("shown" if is_ours else "stored")
