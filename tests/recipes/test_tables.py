"""configs/tables.yaml: the results as printed in the paper, and a run for each cell that could measure them."""

import logging
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tasks.evaluation import Evaluation, Metric
from tasks.finetune import _with_published
from tasks.tables import TABLES, read_tables
from tests.messages import OneLine, naming
from tests.recipes.oracle import ROOT, load, runs_of_the_paper, shipped
from utils.config_files import ConfigError

CELLS = read_tables()
PRINTED = YAML(typ="safe").load((Path(__file__).parent / "results.yaml").read_text(encoding="utf-8"))
KNOWN = {
    "retrieval": {
        *(
            f"{direction} R@{k}"
            for direction in ("image to text", "text to image", "text to video")
            for k in (1, 5, 10)
        ),
        "mean recall",
    },
    "nlvr": {"accuracy"},
    "vqa": {"accuracy"},
    "video_qa": {"accuracy"},
    "grounding": {"IoU >= 0.5 (published script)"},
    "captioning": {"BLEU-4", "CIDEr"},
}
"""Names of a task's metrics."""


def printed() -> dict[str, list[float]]:
    """The results of each cell, in the order of its row in the paper."""
    cells = {}
    for column, rows in PRINTED["retrieval"].items():
        cells |= {f"3/{row}/{column}": [*ways["tr"], *ways["ir"]] for row, ways in rows.items()}
    for row, columns in PRINTED["image_text"].items():
        cells |= {
            f"4/{row}/{'vqa2' if column == 'vqa' else column}": list(numbers.values())
            for column, numbers in columns.items()
        }
    for row, columns in PRINTED["video_text"].items():
        cells |= {f"5/{row}/{column}": [columns[column]] for column in ("msrvtt_qa", "msvd_qa")}
        cells[f"5/{row}/msrvtt"] = columns["msrvtt_retrieval"]
    for row, columns in PRINTED["multilingual"].items():
        cells[f"6/{row}/multi30k"] = list(columns["multi30k"].values())
        cells[f"6/{row}/coco_multilingual"] = list(columns["coco"].values())
    return cells


def test_the_results_equal_the_printed_ones():
    numbers = {name: [x for split in cell.numbers.values() for x in split.values()] for name, cell in CELLS.items()}
    assert numbers == printed()


def test_splits_and_metrics_are_in_the_order_of_the_paper():
    """This ensures that equal lists of results mean equal cells."""
    assert list(CELLS["3/base_4m/coco_5k"].numbers["coco_5k"]) == [
        *(f"image to text R@{k}" for k in (1, 5, 10)),
        *(f"text to image R@{k}" for k in (1, 5, 10)),
    ]
    splits = {cell.column: list(cell.numbers) for cell in CELLS.values()}
    assert splits["vqa2"] == ["test-dev", "test-std"]
    assert splits["nlvr2"] == ["dev", "test-P"]
    assert splits["refcoco_plus"] == ["val", "testA", "testB"]
    assert splits["multi30k"] == ["en", "de", "fr", "cs"]
    assert splits["coco_multilingual"] == ["en", "zh", "ja"]
    assert list(CELLS["4/base_4m/coco_caption"].numbers["coco"]) == ["BLEU-4", "CIDEr"]


@pytest.mark.parametrize("name", CELLS)
def test_the_run_of_a_cell_binds_names_the_cell_and_measures_its_splits(name):
    cell = CELLS[name]
    config = load(ROOT / cell.config, *cell.overrides)
    assert config.evaluation.published == name
    assert config.init.checkpoint == cell.checkpoint
    assert {metric for split in cell.numbers.values() for metric in split} <= KNOWN[config.task]
    if cell.server is None:
        assert cell.numbers.keys() <= config.evaluation.test.keys()
    assert len(cell.protocol) > 80


def test_no_two_cells_claim_one_run():
    runs = [(cell.config, tuple(cell.overrides)) for cell in CELLS.values()]
    assert len(set(runs)) == len(runs)


def test_every_config_that_names_a_cell_is_the_config_of_that_cell():
    for name in runs_of_the_paper():
        cell = getattr(shipped(name).evaluation, "published", None)
        assert cell is None or CELLS[cell].config == f"configs/{name}.yaml"


@pytest.mark.parametrize("name", ["6/base/multi30k", "6/base/coco_multilingual"])
def test_a_cell_of_table_6_has_one_split_per_language_and_trains_on_all(name):
    config = load(ROOT / CELLS[name].config)
    assert config.data.train.language is None
    assert {split: test.language for split, test in config.evaluation.test.items()} == {
        split: split for split in CELLS[name].numbers
    }


def test_one_language_can_be_selected_by_an_override():
    given = ["data.train.language=de", "evaluation.validation.language=de", "evaluation.published=null"]
    config = load(ROOT / "configs/retrieval/multi30k_base.yaml", *given)
    assert config.data.train.language == config.evaluation.validation.language == "de"


def test_an_unknown_cell_is_rejected_with_the_nearest_name():
    with pytest.raises(ConfigError, match=naming("command line", "'3/base4m/coco_5k'")):
        load(ROOT / "configs/retrieval/coco_base_4m.yaml", "evaluation.published=3/base4m/coco_5k")
    with pytest.raises(ConfigError, match=r"did you mean '3/base_4m/coco_5k'\?$"):
        load(ROOT / "configs/retrieval/coco_base_4m.yaml", "evaluation.published=3/base4m/coco_5k")
    with pytest.raises(ConfigError, match=naming("TABLE/ROW/COLUMN", "null")):
        load(ROOT / "configs/retrieval/coco_base_4m.yaml", "evaluation.published=zzz")


def test_results_of_an_older_config_are_rejected_with_the_remedy():
    with pytest.raises(ConfigError, match=naming("configs/tables.yaml", "null")):
        load(ROOT / "configs/retrieval/coco_base_4m.yaml", "evaluation.published={coco_5k: {image to text R@1: 80.5}}")


def test_the_published_results_are_found_from_any_folder_and_shown_with_the_measured_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read_tables.cache_clear()
    assert TABLES.is_absolute()
    measured = {"dev": Evaluation((Metric("accuracy", 0.5),)), "test-P": Evaluation((Metric("accuracy", 0.4),))}
    shown = _with_published(measured, "4/base_4m/nlvr2")
    assert shown["dev"]["accuracy"].published == pytest.approx(0.859)
    assert shown["test-P"]["accuracy"].published == pytest.approx(0.861)


def test_unmeasured_splits_and_results_of_a_server_are_reported(caplog):
    with caplog.at_level(logging.INFO):
        _with_published({"dev": Evaluation((Metric("accuracy", 0.5),))}, "4/base_4m/nlvr2")
        _with_published({"held-out": Evaluation((Metric("accuracy", 0.5),))}, "4/base_4m/vqa2")
    assert OneLine("4/base_4m/nlvr2", "test-P") in caplog.messages
    assert OneLine("test-dev", "accuracy 79.2") in caplog.messages
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "INFO"]
