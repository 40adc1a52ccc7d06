"""Every shipped config binds, builds on the meta device with the published sizes, and names the source of its values."""

import json
import re
from pathlib import Path

import pytest
import torch

from models.checkpoints.rename import DROPPED, TIED, published_to_ours
from tasks import TASKS
from tasks.kinds import find_task, kind_of
from utils.config import Config, dump_config, load_config, peek

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted(ROOT.glob("configs/*/*.yaml"))
RUNS = [path for path in CONFIGS if path.parent.name != "presets"]
COUNTS = json.loads((ROOT / "tests/golden/checkpoint_keys/param_counts.json").read_text())
PUBLISHED_SIZE = {"pretrain": 224, "vqa": 768}
"""Of the pictures, in the golden files; 384 for the other tasks."""


def task_of(path: Path) -> str:
    """The folder names the task; in the demo's folder, the start of the file's name does."""
    return path.stem.split("_")[0] if path.parent.name in ("demo", "own") else path.parent.name


def load(path: Path, *overrides: str) -> Config:
    return load_config(path, overrides, kind_of(path, [])[0])


def total(path: Path, *overrides: str) -> int:
    config = load(path, *overrides)
    arch = config.model.text.arch
    with torch.device("meta"):
        model = kind_of(path, [])[1].build_model(config, arch.vocab_size or 200)
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_task_has_configs_and_a_demo():
    assert {peek(path, [], "task") for path in RUNS} == TASKS.keys()
    for name, entry in TASKS.items():
        assert (ROOT / entry.script).is_file()
        assert ROOT / entry.default_config in RUNS
        assert peek(ROOT / entry.default_config, [], "task") == name


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_config_says_its_task_binds_and_builds(path):
    assert peek(path, [], "task") in (task_of(path), *TASKS[task_of(path)].also)
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
    """At the published picture sizes, with which the tables of position biases grow."""
    size = f"model.vision.image_size={PUBLISHED_SIZE.get(name.split('/')[0], 384)}"
    assert total(ROOT / "configs" / f"{name}.yaml", size) == COUNTS[published]["total"]


@pytest.mark.parametrize(
    ("name", "published", "frames"),
    [("retrieval/msrvtt_base", "retrieval_base_video", 8), ("vqa/msrvtt_qa_base", "videoqa_base", 5)],
)
def test_video_configs_have_the_published_number_of_parameters(name, published, frames):
    """At the files' picture size and number of frames."""
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
def test_a_base_model_has_a_place_for_every_published_tensor(name):
    """At the files' resolution, names and shapes of the published files are those of our parameters, and there are no others."""
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


CELLS = [
    *(
        f"retrieval/{data}_{cell}"
        for data in ("coco", "flickr30k")
        for cell in ("base_4m", "large_4m", "base_1b", "large_1b")
    ),
    *(f"nlvr/nlvr2_{cell}" for cell in ("base_4m", "large_4m", "base_1b", "large_1b")),
    *(f"vqa/vqa2_{cell}" for cell in ("base_4m", "large_4m", "base_1b", "large_1b")),
    *(f"grounding/refcoco_plus_{cell}" for cell in ("base_4m", "large_4m", "base_1b", "large_1b")),
    *(f"captioning/coco_{cell}" for cell in ("base_4m", "large_4m", "base_1b", "large_1b")),
    *(f"{data}_{size}" for data in ("retrieval/msrvtt", "vqa/msrvtt_qa", "vqa/msvd_qa") for size in ("base", "large")),
]

MULTILINGUAL_CELLS = [
    *(
        f"retrieval/multi30k_{which}_{size}"
        for which in ("en", "de", "fr", "cs", "joint")
        for size in ("base", "large")
    ),
    *(
        f"retrieval/coco_multilingual_{which}_{size}"
        for which in ("en", "zh", "ja", "joint")
        for size in ("base", "large")
    ),
]


@pytest.mark.parametrize("cell", MULTILINGUAL_CELLS)
def test_every_cell_of_table_6_has_its_config_with_the_papers_number(cell):
    """Each replaces the text encoder, keeps the fusion's sizes, and trains on one language or on all."""
    path = ROOT / "configs" / f"{cell}.yaml"
    head = path.read_text(encoding="utf-8").split("base:")[0]
    assert re.search(r"# Paper, table 6 .mean recall.: (en|de|fr|cs|zh|ja) 9\d\.\d", head)
    config = load(path)
    assert config.init.checkpoint
    assert config.init.text == config.model.text.encoder
    language = None if "joint" in cell else cell.split("_")[-2]
    assert config.data.train.language == config.evaluation.validation.language == language
    assert {split.language for split in config.evaluation.test.values()} == set(
        re.findall(r"[a-z]{2}", "en de fr cs" if "30k" in cell else "en ja zh")
    )


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("pretrain/multilingual_base", "pretrain_cclm_base"),
        ("retrieval/multi30k_de_base", "plus_retrieval_base"),
        ("nlvr/xvnli_base", "plus_xvnli_base"),
        ("nlvr/marvl_base", "plus_marvl_base"),
        ("vqa/xgqa_base", "plus_vqa_base"),
    ],
)
def test_presets_with_xlm_r_have_the_published_number_of_parameters(name, published):
    size = f"model.vision.image_size={224 if name.startswith('pretrain') else 384}"
    assert total(ROOT / "configs" / f"{name}.yaml", size) == COUNTS[published]["total"]


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_of_tables_3_to_5_has_its_config_with_the_papers_number(cell):
    head = (ROOT / "configs" / f"{cell}.yaml").read_text(encoding="utf-8").split("base:")[0]
    assert re.search(r"# Paper, table [345]: .*\d", head)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_config_opens_with_its_command(path):
    head = path.read_text(encoding="utf-8").split("base:")[0]
    assert all(line.startswith("#") for line in head.strip().splitlines())
    relative = path.relative_to(ROOT).as_posix()
    assert f"--config {relative}" in head or "make demo" in head


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_values_name_their_source(path):
    """Each line with a value says paper, released or ours, itself or in a comment just above."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if any("Every value is ours" in line for line in lines):
        return
    for number, line in enumerate(lines):
        code = line.split("#")[0].strip()
        if not code or code.endswith(":") or code.removeprefix("- ").startswith(("base:", "format:")):
            continue
        said = " ".join(part.split("#", 1)[1] for part in lines[max(0, number - 1) : number + 1] if "#" in part)
        assert any(source in said for source in ("paper", "released", "ours")), f"{path}:{number + 1}: {line}"


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_resolved_config_reads_back_equal(path, tmp_path):
    config = load(path)
    copy = tmp_path / "config.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy, [], kind_of(path, [])[0]) == config


@pytest.mark.parametrize("size", ["base", "large"])
def test_the_two_steps_of_the_1b_runs_have_the_released_settings(size):
    first, second = (load(ROOT / f"configs/pretrain/{size}_1b{step}.yaml") for step in ("", "_stage2"))
    assert first.data.images.clean.probability == 0.15
    assert first.data.matching_steps == 200000
    assert first.data.text.max_tokens == 30
    assert (first.data.videos, second.data.images.clean, second.data.matching_steps) == (None, None, None)
    assert second.data.videos.clean.probability == 0.35
    assert (second.data.videos.join_clips, second.data.videos.min_frames) == (True, 8)
    assert second.model.vision.video.frames == 3
    assert second.init.checkpoint == f"runs/{size}_1b"
    rows, most = {"base": (64, 26), "large": (32, 14)}[size]
    for regions in (first.data.regions, second.data.regions):
        assert (regions.batch_size, regions.max_images) == (rows, most)


@pytest.mark.parametrize(
    ("size", "rows", "most", "rates"),
    [("base", 60, 26, (4e-5, 2e-5, 8e-5, 4e-5)), ("large", 30, 14, (3e-5, 1e-5, 6e-5, 3e-5))],
)
def test_multilingual_pre_training_has_the_released_settings(size, rows, most, rates):
    config = load(ROOT / f"configs/pretrain/multilingual_{size}.yaml")
    data, optim, text = config.data, config.optim, config.data.text
    assert (data.images.batch_size, data.regions.batch_size, data.translations.batch_size) == (rows, rows, rows)
    assert (data.regions.max_images, data.regions.max_regions) == (most, 5)
    assert (text.max_tokens, text.mask_prob, text.max_masks, text.whole_word) == (30, 0.4, 10, False)
    pairs = data.translations.text
    assert (pairs.max_tokens, pairs.mask_prob, pairs.max_masks, pairs.whole_word) == (64, 0.4, 16, False)
    assert (optim.lr, optim.vision_lr, optim.text_lr, optim.cross_lr) == rates
    assert (config.schedule.warmup_steps, config.train.epochs, config.train.precision) == (1000, 39, "fp32")
    assert config.model.text.encoder == config.init.text == f"xlm-roberta-{size}"
    assert config.model.word_table == "own"


@pytest.mark.parametrize("size", ["base", "large"])
def test_xlm_r_stands_beside_the_fusion_of_the_english_model(size):
    """What the English checkpoint was trained with, and no shape of it shows, stays."""
    english = load(ROOT / f"configs/pretrain/{size}_4m.yaml").model
    for path in sorted(ROOT.glob(f"configs/*/m*_{size}.yaml")):
        config = load(path)
        if config.model.text.encoder.startswith("xlm-roberta"):
            assert config.model.fusion == english.fusion, path
            assert (config.model.text.arch.family, config.model.text.arch.eps) == ("roberta", 1e-5)
            assert (config.model.text.arch.pad_id, config.model.text.arch.vocab_size) == (1, 250002)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_configs_of_the_paper_read_pixels_as_released(path):
    """The released readers apply no EXIF orientation and drop alpha; what is ours shows images as people see them."""
    is_ours = path.parent.name in ("demo", "own") or path.stem.endswith("_tiny")
    assert load(path).data.pixels == ("shown" if is_ours else "stored")


MEASURED_CELLS = [cell for cell in CELLS if not cell.startswith("vqa/vqa2")]
"""The numbers of VQA v2 come from its server: no split of ours has them."""


@pytest.mark.parametrize("cell", MEASURED_CELLS)
def test_the_published_numbers_of_a_config_are_those_of_its_head(cell):
    """In the order of the paper's table, and each for a metric that the task gives."""
    path = ROOT / "configs" / f"{cell}.yaml"
    head = re.search(r"# Paper, table [345]: (.*)", path.read_text(encoding="utf-8"))[1]
    published = load(path).evaluation.published
    values = [value for metrics in published.values() for value in metrics.values()]
    assert [float(number) for number in re.findall(r"\d+\.\d", head)] == values
    known = {
        "retrieval": {
            f"{way} R@{k}" for way in ("image to text", "text to image", "text to video") for k in (1, 5, 10)
        },
        "nlvr": {"accuracy"},
        "vqa": {"accuracy"},
        "grounding": {"IoU >= 0.5 (published script)"},
        "captioning": {"BLEU-4", "CIDEr"},
    }
    assert {name for metrics in published.values() for name in metrics} <= known[task_of(path)]
