"""``run.py prepare parquet`` converts shards of every format to Parquet files, and no broken record is lost."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import dataset.prepare.parquet as command
from dataset.records.schema import ImageKeys
from dataset.shards.readers import Shards
from engine.run_files import METRICS_FILE
from run import main
from tests.messages import OneLine
from utils.errors import UserError

ROOT = Path(__file__).parents[3]
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Runs the command and returns the records of all files, and its output. If the exit status is 2, no file may exist."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*words: str, out: str = "out", status: int = 0) -> tuple[list[dict], str]:
        found = main(["prepare", "parquet", *words, "--out", str(tmp_path / out), "--workers", "1"])
        printed = capsys.readouterr()
        assert found == status, printed
        if status > 1:
            return [], printed.err.splitlines()[-1]
        shards = Shards([str(tmp_path / out)])
        return [dict(shards.read(row).values) for row in range(len(shards))], printed.out

    return run


@pytest.fixture
def lines(tmp_path):
    def write(*records: object, name: str = "a.jsonl") -> str:
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in records))
        return str(path)

    return write


def test_json_lines_may_have_image_files_and_base64(convert, lines, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.jpg").write_bytes(b"first")
    file = lines(
        {"image": "1.jpg", "caption": "a", "n": 1},
        {"image": "data:image/jpeg;base64,c2Vjb25k", "caption": ["b", "c"], "score": 0.5},
        {"caption": "text", "elems": []},
    )
    records, printed = convert(file)
    assert records == [
        {"image": b"first", "caption": ["a"], "n": 1},
        {"image": b"second", "caption": ["b", "c"], "score": 0.5},
        {"caption": ["text"], "elems": []},
    ]
    assert OneLine("3 records in 1 files and 1 row groups") == printed.splitlines()[-2]


def test_records_without_an_image_are_counted(convert, tmp_path):
    table = pa.table({"image": pa.array([None, None], pa.binary()), "caption": ["a", "b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    _, printed = convert(str(tmp_path / "a.parquet"))
    assert printed.splitlines()[-1] == OneLine("2 of 2 records", "no image", "--image-key image")


def test_regions_may_have_boxes_of_both_formats_and_captions_by_language(convert, lines):
    one = {"caption": {"en": "a", "de": ["b", "c"]}, "bb": [1, 2, 3, 4.5]}
    two = {"caption": {"en": "d"}, "bb": [[1, 2, 3, 4], [5, 6, 7, 8]], "attributes": ["e"], "grain": "region"}
    none = {"caption": {"fr": "f"}, "bb": []}
    records, _ = convert(lines({"image": "data:,eA==", "elems": [one, two]}, {"image": "data:,eA==", "elems": [none]}))
    assert records[0]["elems"] == [
        {"caption": {"en": "a", "de": ["b", "c"]}, "bb": [[1, 2, 3, 4.5]]},
        {"caption": {"en": "d"}, "bb": [[1, 2, 3, 4], [5, 6, 7, 8]], "attributes": ["e"], "grain": "region"},
    ]
    assert records[1]["elems"] == [none]


def test_values_without_a_common_type_survive_the_round_trip(convert, lines, tmp_path):
    image, by_language = {"image": "data:,eA=="}, {"en": "d", "de": ["e", "f"]}
    given = [
        {**image, "caption": "a", "text": by_language, "elems": [{"caption": "g", "bb": [1, 2, 3, 4]}], "id": 1},
        {**image, "caption": ["b", {"de": "c"}], "elems": [{"caption": by_language, "bb": [], "hard_negatives": "h"}]},
        {**image, "caption": by_language, "text": "i", "id": "two"},
        {**image, "long_caption": {"en": "j"}},
    ]
    expected = [{**each, "image": b"x"} for each in given]
    assert convert(lines(*given))[0] == expected
    assert convert(str(tmp_path / "out"), out="again")[0] == expected


def test_values_unknown_to_json_need_one_type(convert, tmp_path):
    pq.write_table(pa.table({"n": pa.array([b"x"])}), tmp_path / "a.parquet")
    job = command._jobs(Shards([str(tmp_path / "a.parquet")]), tmp_path, ImageKeys())[0]
    with pytest.raises(UserError) as refused:
        command._column([b"x", {"a": 1}], "n", job)
    assert str(refused.value) == OneLine("a.parquet:row 0", "'n'", "one type")


@pytest.mark.parametrize(
    "wrong",
    [
        {"long_caption": 5},
        {"hard_negatives": [1]},
        {"caption": {"en": 1}},
        {"elems": "none"},
        {"elems": [{"caption": "b", "bb": "1,2,3,4"}]},
        {"elems": [{"caption": "b", "bb": [1, 2, 3, 4]}, {"caption": "c", "bb": [1, 2, 3, 4], "long_caption": 7}]},
    ],
)
def test_records_rejected_by_the_parser_are_skipped_and_listed(convert, lines, tmp_path, wrong):
    good = {
        "image": "data:,eA==",
        "caption": "a",
        "long_caption": "b",
        "elems": [{"caption": "d", "bb": [1, 2, 3, 4]}],
    }
    file = lines(good, {**good, **wrong}, good)
    records, printed = convert(file, status=1)
    assert records == [{**good, "image": b"x"}] * 2
    assert OneLine("1 broken", "1 wrong type") in printed.splitlines()
    [listed] = [json.loads(line) for line in (tmp_path / "out/_parquet/broken.jsonl").read_text().splitlines()]
    assert listed["place"] == f"{file}:2" and listed["reason"] == "wrong type"


def test_boxes_of_a_single_format_stay_unchanged(convert, lines):
    elem = {"caption": "a", "bb": [1, 2, 3, 4]}
    assert convert(lines({"image": "data:,eA==", "elems": [elem]}))[0][0]["elems"] == [elem]


def test_tars_and_parquet_files_are_converted(convert, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (
            ("0.jpg", b"x"),
            ("0.txt", b"a cat"),
            ("1.png", b"y"),
            ("1.json", b'{"caption": "z", "n": 2}'),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    expected = [{"image": b"x", "caption": "a cat"}, {"image": b"y", "caption": "z", "n": 2}]
    assert convert(str(tmp_path / "a.tar"))[0] == expected
    pq.write_table(
        pa.table({"image": [{"bytes": b"x", "path": "0.jpg"}], "caption": ["a cat"], "at": [None]}),
        tmp_path / "b.parquet",
    )
    assert convert(str(tmp_path / "out"), str(tmp_path / "b.parquet"), out="again")[0] == [*expected, expected[0]]


def test_nothing_is_left_in_the_block_cache(tmp_path, monkeypatch):
    """The file stores each image once, in a dictionary, and its rows decode to 40 times its size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = [bytes([number]) * 5000 for number in range(4)]
    table = pa.table({"image": images * 40, "caption": ["a"] * 160})
    pq.write_table(table, tmp_path / "a.parquet", compression="none")
    assert (
        main(["prepare", "parquet", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    )
    assert not (tmp_path / "cache/x2vlm/blocks").exists()
    written = Shards([str(tmp_path / "out")])
    assert [written.read(row).values["image"] for row in range(160)] == images * 40


def test_row_groups_and_files_are_small(convert, lines, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "GROUP_BYTES", 100)
    monkeypatch.setattr(command, "_FILE_RECORDS", 10)
    (tmp_path / "in").mkdir()
    for row in range(25):
        (tmp_path / "in" / f"{row}.jpg").write_bytes(b"%02d" % row * (5 if row != 3 else 100))
    records, _ = convert(lines(*({"image": f"{row}.jpg", "n": row} for row in range(25))))
    assert [record["n"] for record in records] == list(range(25))
    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert [pq.read_metadata(file).num_rows for file in files] == [8, 8, 9]
    for file in files:
        opened = pq.ParquetFile(file)
        for number in range(opened.num_row_groups):
            images = opened.read_row_group(number, ["image"]).column("image").to_pylist()
            assert len(images) == 1 or sum(map(len, images)) <= 100
    monkeypatch.setattr("dataset.tasks.streams.opening.RANDOM_ROW_GROUP", 2000)
    assert Shards([str(tmp_path / "out")]).large_row_group(2000) is None


def test_broken_records_are_skipped_counted_and_listed(convert, lines, tmp_path):
    file = lines({"image": "data:,eA==", "n": 0}, "{", {"image": "none.jpg", "n": 2}, {"image": "data:,eA==", "n": 3})
    records, printed = convert(file, status=1)
    assert [record["n"] for record in records] == [0, 3]
    assert OneLine("2 broken", "1 bad json", "1 missing image") in printed.splitlines()
    listed = [json.loads(line) for line in (tmp_path / "out/_parquet/broken.jsonl").read_text().splitlines()]
    assert [each["place"] for each in listed] == [f"{file}:2", f"{file}:3"]
    only_broken = lines({"image": "none.jpg"}, name="b.jsonl")
    assert convert(only_broken, out="other", status=2)[1] == OneLine(
        "no record could be written", "b.jsonl:1", "none.jpg"
    )


def test_an_interrupted_run_resumes_and_a_finished_one_does_nothing(convert, lines, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_FILE_RECORDS", 4)
    file = lines(*({"image": "data:,eA==", "n": row} for row in range(12)))
    write, calls = command._write_file, []

    def fails(job):
        calls.append(job.target.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(job)

    monkeypatch.setattr(command, "in_order", lambda work, jobs, workers, died: (work(job) for job in jobs))
    monkeypatch.setattr(command, "_write_file", fails)
    convert(file, status=130)
    before = (tmp_path / "out/000000.parquet").stat().st_mtime_ns
    records, _ = convert(file)
    assert [record["n"] for record in records] == list(range(12))
    assert calls == ["000000.parquet", "000001.parquet", "000002.parquet", "000002.parquet"]
    assert (tmp_path / "out/000000.parquet").stat().st_mtime_ns == before
    assert "nothing to do" in convert(file)[1]


def test_a_file_of_a_complete_folder_is_built_again_if_it_or_its_source_changed(convert, lines, tmp_path):
    file = lines({"image": "data:,eA==", "n": 1})
    convert(file)
    (tmp_path / "out/000000.parquet").unlink()
    assert [record["n"] for record in convert(file)[0]] == [1]
    lines({"image": "data:,eA==", "n": 10})
    records, printed = convert(file)
    assert [record["n"] for record in records] == [10] and "nothing to do" not in printed
    assert "nothing to do" in convert(file)[1]


def test_the_folder_of_the_shards_is_rejected_as_output(convert, lines, tmp_path):
    assert convert(lines({"image": "data:,eA=="}), out="in", status=2)[1] == OneLine(
        "--out", "is the folder of the shards"
    )


@pytest.mark.night
@pytest.mark.parametrize("order", ["blocks", "random"])
def test_training_on_the_files_equals_training_on_the_records(convert, tiny_overrides, scenes_folder, tmp_path, order):
    convert(f"{scenes_folder}/train.jsonl")
    losses = {}
    for name, files in (("lines", f"{scenes_folder}/train.jsonl"), ("parquet", f"{tmp_path}/out")):
        changes = [f"data.{stream}.files=[{files}]" for stream in ("images", "regions")]
        changes += [f"data.{stream}.order={order}" for stream in ("images", "regions")]
        words = [*tiny_overrides, *changes, f"data.remote.cache={tmp_path}/blocks", "train.steps=2", "data.workers=2"]
        run = tmp_path / name
        argv = [
            "--task",
            "pretrain",
            "--cpu",
            "1",
            "--config",
            "configs/demo/pretrain.yaml",
            "--output",
            str(run),
            *words,
        ]
        done = subprocess.run(
            [sys.executable, "run.py", *argv], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        steps = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
        losses[name] = [[step[key] for key in ("loss", "images/mlm", "grad_norm")] for step in steps]
    assert losses["lines"] == losses["parquet"] and len(losses["lines"]) == 2
