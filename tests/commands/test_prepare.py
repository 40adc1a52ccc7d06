"""``run.py prepare``: the list of sets, mistakes reported in one line, several sets in one command, and the check."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dataset.prepare import line_shards
from dataset.prepare.catalogue import GROUPS, SETS
from dataset.prepare.declarations import Splits
from run import main
from tasks.binding import bind_run
from tests.dataset.prepare import official
from tests.messages import OneLine


@pytest.fixture(autouse=True)
def serial(monkeypatch):
    monkeypatch.setattr(line_shards, "in_order", official.in_this_process)


@pytest.fixture
def raw(tmp_path) -> Path:
    return official.everything(tmp_path / "raw")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def test_flags_that_no_set_reads_are_rejected(raw, out, capsys):
    for flags, reported in (
        (
            ["--max-unsafe", "0.1"],
            "--max-unsafe 0.1: only used by laion, grit, blip3_grounding, gbc, pixelprose, datacomp; remove the flag",
        ),
        (["--clips", "2"], "--clips 2: only used by webvid, howto100m, yt_temporal; remove the flag"),
        (
            ["--ray", "local"],
            "--ray local: only used by sbu, cc3m, cc12m, laion, grit, blip3_grounding, gbc, pixelprose, datacomp; "
            "remove the flag",
        ),
    ):
        assert main(["prepare", "coco", "--raw", str(raw), "--out", str(out), *flags]) == 2
        assert reported in capsys.readouterr().err
    assert main(["prepare", "laion", "--raw", str(raw), "--max-unsafe", "50"]) == 2
    assert OneLine("--max-unsafe", "'50'", "0 to 1") in capsys.readouterr().err.splitlines()


@pytest.fixture
def run(capsys):
    """Runs the command and returns its exit status, its output, and its errors without progress bars."""

    def command(*argv: object) -> tuple[int, str, str]:
        status = main(["prepare", *map(str, argv)])
        printed = capsys.readouterr()
        return status, printed.out, "\n".join(re.findall(r"^error: .*(?:\n  .*)*", printed.err, re.MULTILINE))

    return command


def test_the_list_has_every_set_with_files_size_licence_products_and_config(run):
    status, printed, _ = run("--list")
    assert status == 0
    for name, data_set in SETS.items():
        [part] = re.findall(rf"^{name}: .*?(?:\n\n)", printed, re.MULTILINE | re.DOTALL)
        assert data_set.licence in part and data_set.home in part
        is_read = any(name in names for names in GROUPS.values()) or isinstance(data_set.makes, Splits)
        assert f"read by   {'configs/' if is_read else 'no config here'}" in part
        for file in data_set.files:
            assert file in part
        for number in data_set.sizes.values():
            assert f"{number:,}" in part
        for folder, content in data_set.folders:
            assert f"{folder}/: {content}" in part
    assert "4m: coco, visual_genome, sbu, cc3m, refcoco, gqa, flickr30k_entities" in printed
    for name in ("own", "multilingual", "frames"):
        assert f"\n  {name} " in printed


def test_every_folder_in_the_4m_configs_is_built_by_a_set():
    config = bind_run("configs/pretrain/base_4m.yaml", []).config
    read = {*config.data.images.files, *config.data.regions.files, *config.evaluation.files}
    assert read == {f"data/pretrain/{folder}" for folder in made_by("4m")}


def test_every_folder_in_the_1b_configs_is_built_by_a_set():
    config = bind_run("configs/pretrain/base_1b.yaml", []).config
    data = config.data
    read = {*data.images.files, *data.images.clean.files, *data.regions.files}
    assert {f"data/pretrain/{folder}" for folder in made_by("1b")} <= read
    assert read <= {f"data/pretrain/{folder}" for folder in made_by("4m", "1b")}


def test_every_folder_in_the_second_stage_configs_is_built_by_a_set():
    config = bind_run("configs/pretrain/base_1b_stage2.yaml", []).config
    data = config.data
    read = {*data.images.files, *data.videos.files, *data.videos.clean.files, *data.regions.files}
    assert {f"data/pretrain/{folder}" for folder in made_by("videos")} <= read
    assert read <= {f"data/pretrain/{folder}" for folder in made_by("4m", "1b", "videos")}


def made_by(*groups: str) -> set[str]:
    """The record folders that the sets of these groups build."""
    names = [name for group in groups for name in GROUPS[group]]
    return {folder for name in names for folder, _ in SETS[name].folders}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], ("--list",)),
        (["cocoo", "--raw", "."], ("'cocoo'", "did you mean coco?")),
        (["onw"], ("'onw'", "did you mean own?")),
        (["zzz"], ("'zzz'", "coco, visual_genome, sbu")),
        (["laion", "--safety", "nsfw"], ("--safety", "'nsfw'", "NSFW")),
        (["--list", "--check", "x"], ("--list", "--check")),
        (["coco"], ("--raw DIR",)),
        (["coco", "--raw", "nowhere"], ("nowhere",)),
        (["coco", "--raw", ".", "--without", "karpathy"], ("--without", "karpathy", "karpathy_coco")),
        (["coco", "--raw", ".", "--workers", "0"], ("--workers", "'0'", "1 to 1,024")),
        (["coco", "--raw", ".", "--workers", "two"], ("'two'", "1 to 1,024")),
        (["coco", "--row", "."], ("--row",)),
        (["--check", "nowhere"], ("--check", "nowhere")),
    ],
)
def test_mistakes_are_reported_in_one_line(argv, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, printed, error = run(*argv)
    assert (status, printed) == (2, "")
    assert error == OneLine(*message) and "\n" not in error
    assert list(tmp_path.iterdir()) == []


def test_4m_builds_every_folder_and_nothing_the_second_time(run, raw, out):
    status, printed, error = run("4m", "--raw", raw, "--out", out, "--workers", 1)
    assert (status, error) == (0, "")
    folders = {"coco", "coco_regions", "coco_val", "vg", "vg_regions", "refcoco", "gqa", "flickr_entities", "_download"}
    assert {path.name for path in out.iterdir()} == folders
    assert printed.count("  img2dataset --url_list ") == 2
    assert run("--check", out)[:2] == (
        0,
        "".join(
            f"{out / name}: intact, 1 file\n"
            for name in sorted({*folders, "_download/cc3m_urls", "_download/sbu_urls"} - {"_download"})
        ),
    )
    status, printed, _ = run("4m", "--raw", raw, "--out", out, "--workers", 1)
    assert status == 0 and printed.count("nothing to do") == 10 and "skipped" not in printed


def test_a_set_that_fails_does_not_stop_the_others(run, raw, out):
    (raw / "vg/objects.json").write_text("[")
    (raw / "cc3m/Train_GCC-training.tsv").unlink()
    status, _, error = run("4m", "--raw", raw, "--out", out, "--workers", 1)
    assert status == 2
    first, *others = error.splitlines()
    assert first == OneLine("error: 2 of 7")
    assert [line.split(":")[0].strip() for line in others] == ["visual_genome", "cc3m"]
    assert f"{raw}/vg/objects.json" in others[0] and "Train_GCC-training.tsv does not exist" in others[1]
    assert {"coco", "refcoco", "gqa", "flickr_entities"} <= {path.name for path in out.iterdir()}
    assert not (out / "vg_regions").exists()


def test_the_result_is_reported_with_counts_by_reason(run, raw, out):
    _, printed, _ = run("gqa", "--raw", raw, "--out", out, "--workers", 1)
    lines = printed.splitlines()
    assert lines[0] == f"{out}/gqa: 1 images, 1 objects, 1 records; read: 3 images, 2 objects"
    assert OneLine("3", "74,942", "images") in lines
    assert OneLine("1 unknown image", f"{raw}/gqa/train_sceneGraphs.json", "99", f"{raw}/vg/image_data.json") in lines
    assert OneLine("1 held out by COCO (Karpathy) test") in lines
    assert any(line.startswith("  fixed: 1 box clamped, first ") for line in lines)


def test_the_check_names_a_changed_shard_and_continues(run, raw, out):
    run("coco", "--raw", raw, "--out", out, "--workers", 1)
    path = out / "coco_regions/part-00000.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    status, printed, _ = run("--check", out)
    assert status == 1
    assert OneLine(path, "SHA-256") in printed.splitlines()
    assert f"{out}/coco: intact, 1 file" in printed and f"{out}/coco_val: intact, 1 file" in printed
    manifest = json.loads((out / "coco/_prepare/manifest.json").read_text())
    assert manifest["version"]
