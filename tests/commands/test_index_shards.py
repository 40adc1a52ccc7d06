"""``run.py index-shards`` writes the indexes of a config's streams to the location where a run with this config looks for
them."""

from __future__ import annotations

import os

import pytest

from dataset.shards import making
from run import main
from tasks.config import PretrainConfig
from tasks.pretrain import PretrainTask
from tests.messages import OneLine
from utils.config import load_config

DEMO = "configs/demo/pretrain.yaml"


def test_the_lists_of_a_config_are_indexed_where_its_run_looks_for_them(tiny_overrides, tmp_path, monkeypatch, capsys):
    overrides = [each for each in tiny_overrides if not each.startswith("data.cache_index")]
    overrides.append(f"data.cache_index={tmp_path / 'index'}")
    assert main(["index-shards", "--config", DEMO, "--workers", "2", *overrides]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ["data.images.files", "data.regions.files", "evaluation.files"]
    assert "40 records in 1 shard" in printed[0] and str(tmp_path / "index") in printed[0]
    monkeypatch.setattr(making, "scan_shard", lambda *_: pytest.fail("scanned again"))
    PretrainTask.build(load_config(DEMO, overrides, PretrainConfig))


def test_one_list_is_indexed_in_a_folder(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text("{}\n{}\n")
    assert main(["index-shards", str(tmp_path), "--index", str(tmp_path / "index")]) == 0
    assert capsys.readouterr().out.startswith(f"FILES: 2 records in 1 shard; {tmp_path / 'index'}/")


@pytest.mark.parametrize("given", ["x.jsonl", "x.tar", "x.parquet", ""])
def test_a_fifo_is_not_a_shard(given, tmp_path, capsys):
    os.mkfifo(tmp_path / (given or "x.jsonl"))
    assert main(["index-shards", str(tmp_path / given), "--index", str(tmp_path / "index")]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line]
    assert line == OneLine(tmp_path / (given or "x.jsonl"), "is a FIFO, not a regular file")


@pytest.mark.parametrize(
    ("argv", "reported"),
    [
        ([], "pass either --config FILE or a list of files"),
        (["--config", DEMO, "data"], "pass either --config FILE or a list of files"),
        (["nowhere"], "FILES: nowhere does not exist"),
        (["--config", "configs/demo/nlvr.yaml"], "--config configs/demo/nlvr.yaml: names no shards"),
    ],
)
def test_mistakes_are_reported_in_one_line_with_status_2(argv, reported, capsys):
    assert main(["index-shards", *argv]) == 2
    assert reported in capsys.readouterr().err
