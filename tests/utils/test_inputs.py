"""The files named in a config: all missing files are reported at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from dataset.shards.finding import find_shards
from tests.messages import OneLine, naming
from utils.config import Config, bind, dump_config
from utils.errors import UserError
from utils.inputs import (
    InputFile,
    InputFolder,
    InputModel,
    InputShards,
    InputWeightedShards,
    InputWeights,
    check_inputs,
    inputs_of,
    missing_inputs,
)


class Split(Config):
    annotations: InputFile
    images: InputFolder | None = None


class Data(Config):
    train: list[Split] = Field(default_factory=list)
    files: InputShards = Field(default_factory=list)


class Everything(Config):
    encoder: InputModel = "bert-base-uncased"
    checkpoint: InputWeights | None = None
    data: Data = Data()
    test: dict[str, Split] = Field(default_factory=dict)
    name: str = "no/input"


def test_inputs_are_found_anywhere_in_the_config():
    config = Everything(
        checkpoint="runs/x",
        data=Data(train=[Split(annotations="a"), Split(annotations="b", images="c")], files=["d", "e*"]),
        test={"one": Split(annotations="f")},
    )
    assert [(key, path) for key, _, path in inputs_of(config)] == [
        ("encoder", "bert-base-uncased"),
        ("checkpoint", "runs/x"),
        ("data.train[0].annotations", "a"),
        ("data.train[1].annotations", "b"),
        ("data.train[1].images", "c"),
        ("data.files", "d"),
        ("data.files", "e*"),
        ("test.one.annotations", "f"),
    ]


def test_the_paths_of_weighted_shards_are_inputs():
    class Stream(Config):
        files: InputWeightedShards

    stream = bind({"files": ["a.tar", {"path": "b", "weight": 2}]}, Stream)
    assert list(inputs_of(stream, "data.")) == [("data.files", "shards", "a.tar"), ("data.files", "shards", "b")]
    assert dump_config(stream) == "files:\n- a.tar\n- path: b\n  weight: 2.0\n"


def test_missing_files_are_reported_together_and_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("")
    Path("shard-1.jsonl").write_text("")
    config = Everything(
        encoder="data/tokenizer",
        data=Data(train=[Split(annotations="there", images="gone")] * 4, files=["shard-*.jsonl", "none-*.tar"]),
        test={"one": Split(annotations="x" * 5000)},
    )
    assert list(missing_inputs(config)) == ["data/tokenizer", "gone", "none-*.tar", "x" * 5000]
    assert list(missing_inputs(config, ("data", "test"))) == ["data/tokenizer"]
    with pytest.raises(UserError) as error:
        check_inputs(config)
    first, *lines = str(error.value).split("\n")
    assert first == OneLine("4 files")
    assert lines[0] == "  data/tokenizer  (encoder)"
    assert lines[1] == "  gone  (data.train[0].images, data.train[1].images and 2 more keys)"


def test_one_missing_file_is_reported_in_one_line():
    with pytest.raises(UserError, match=naming("test.one.annotations", "gone")) as error:
        check_inputs(Everything(test={"one": Split(annotations="gone")}))
    assert "\n" not in str(error.value)


def test_a_name_on_the_hub_is_not_a_path():
    check_inputs(Everything(encoder="google-bert/bert-base-uncased"))


@pytest.mark.parametrize(
    ("entry", "file"),
    [
        ("set[1]", "a.jsonl"),
        ("set[1]/a.jsonl", "a.jsonl"),
        ("set[1]/*.jsonl", "a.jsonl"),
        ("b[1].jsonl", "b[1].jsonl"),
        ("b*", "b[1].jsonl"),
    ],
)
def test_brackets_in_a_name_are_not_a_pattern(tmp_path, entry, file):
    (tmp_path / "set[1]").mkdir()
    for name in ("set[1]/a.jsonl", "b[1].jsonl"):
        (tmp_path / name).write_text("{}\n")
    path = str(tmp_path / entry)
    assert not missing_inputs(Everything(data=Data(files=[path])))
    assert [found.name for found in find_shards([path], "data.files")] == [file]
