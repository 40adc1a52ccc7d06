"""The script of a SLURM job, and mistakes in its flags."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import slurm
from run import main
from tests.messages import OneLine

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def options_of(script: str) -> dict[str, str | None]:
    """The options in the sbatch lines, parsed like a shell and SLURM parse them."""
    words = [shlex.split(line.removeprefix("#SBATCH ")) for line in script.splitlines() if line.startswith("#SBATCH ")]
    assert all(len(parts) == 1 for parts in words)
    pairs = [parts[0].removeprefix("--").partition("=") for parts in words]
    return {key: value if equals else None for key, equals, value in pairs}


def script_of(capsys: Any, *arguments: str) -> str:
    assert main(["--slurm", "--dry-run", *arguments]) == 0
    return str(capsys.readouterr().out)


def test_the_dry_run_prints_a_script_that_survives_any_path(tmp_path, capsys, monkeypatch):
    output = tmp_path / "a b'c\"d $(touch oops) %j"
    arguments = ["--task", "pretrain", "--gpus", "8", "--nodes", "2:4", "--output", str(output), "--mem", "400G"]
    more = ["--time", "1-12", "--partition", "gpu", "--account", "me", "--qos", "high", "--cpus-per-task", "64"]
    overrides = [
        "train.global_batch=1536",
        "train.accumulate=null",
        "data.images.batch_size=16",
        "data.cache_index=/x y/'z'",
    ]
    text = script_of(capsys, *arguments, *more, "--sbatch", "constraint=a100&ib", "--sbatch", "exclusive", *overrides)
    assert not output.exists()
    assert options_of(text) == {
        "job-name": output.name,
        "nodes": "2-4",
        "ntasks-per-node": "1",
        "gpus-per-node": "8",
        "cpus-per-task": "64",
        "mem": "400G",
        "time": "1-12",
        "partition": "gpu",
        "account": "me",
        "qos": "high",
        "signal": "USR1@240",
        "open-mode": "append",
        "output": f"{tmp_path}/a b'c\"d $(touch oops) %%j/slurm-%j.txt",
        "requeue": None,
        "constraint": "a100&ib",
        "exclusive": None,
    }
    file = tmp_path / "script.sh"
    file.write_text(text)
    assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0
    srun = tmp_path / "srun"
    srun.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    srun.chmod(stat.S_IRWXU)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    printed = subprocess.run(["bash", str(file)], env=environment, capture_output=True, text=True, check=True).stdout
    words = json.loads(printed)
    assert words[:2] == ["--kill-on-bad-exit=0", "--wait=0"]
    assert words[words.index("--output") + 1] == str(output)
    assert [word for word in words if "=" in word and not word.startswith("-")] == overrides
    assert "--resume" in words and "--nodes" not in words
    assert not list(ROOT.glob("oops"))


@pytest.mark.parametrize(("arguments", "resumes"), [(["init.checkpoint=x"], False), (["--resume"], True)])
def test_an_evaluation_of_other_weights_does_not_resume_the_run(tmp_path, arguments, resumes, capsys):
    """With --resume, the run of the folder itself would be evaluated."""
    assert (
        main(["--slurm", "--dry-run", "--task", "pretrain", "--output", str(tmp_path), "--evaluate", *arguments]) == 0
    )
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("srun")]
    assert ("--resume" in shlex.split(line)) == resumes and "--evaluate" in shlex.split(line)


@pytest.mark.parametrize("arguments", [[], ["--resume"]])
def test_a_folder_with_a_run_is_submitted_only_with_resume(tmp_path, arguments, capsys, monkeypatch):
    (tmp_path / "metrics.jsonl").touch()
    status = main(["--slurm", "--dry-run", "--task", "pretrain", "--output", str(tmp_path), *arguments])
    captured = capsys.readouterr()
    assert status == (0 if arguments else 2)
    if not arguments:
        assert captured.err == OneLine(f"error: {tmp_path}", "--resume", "--output")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slurm"], ("--slurm", "sbatch", "--dry-run")),
        (["--slurm", "--time", "4"], ("--time 4", "240 s", "train.grace_s = 120")),
        (["--slurm", "--nodes", "1:2"], ("--nodes 1:2", "--gpus N")),
        (["--slurm", "--nodes", "1:2", "--cpu", "1"], ("--nodes 1:2", "train.global_batch")),
        (
            ["--slurm", "--nodes", "1:3", "--cpu", "1", "train.global_batch=64", "train.accumulate=null"],
            ("--nodes 1:3", "3 ranks", "train.global_batch = 64"),
        ),
        (["--slurm", "--gpus", "3", "train.global_batch=64", "train.accumulate=null"], ("train.global_batch = 64",)),
        (
            ["--slurm", "--nodes", "1:3", "--cpu", "1", "train.global_batch=96", "model.contrastive.chunks=2"],
            ("--nodes 1:3", "2 ranks", "model.contrastive.chunks = 2", "3"),
        ),
        (["--slurm", "optim.lrr=1"], ("optim.lrr",)),
        (["--nodes", "1:2", "--master", "127.0.0.1:1"], ("--nodes 1:2", "newest")),
        (
            ["--nodes", "1:2", "--master", "127.0.0.1:1", "--resume", "--cpu", "1"],
            ("--nodes 1:2", "train.global_batch"),
        ),
    ],
)
def test_mistakes_are_reported_in_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert main(["--task", "pretrain", "--output", str(tmp_path / "run"), *arguments]) == 2
    fragments = capsys.readouterr().err
    assert fragments == OneLine("error:", *message) and fragments.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--time", "60"], ("--time", "--slurm")),
        (["--dry-run"], ("--dry-run", "--slurm")),
        (["--sbatch", "exclusive"], ("--sbatch", "--slurm")),
        (["--slurm", "--nodes", "2", "--master", "h:1"], ("--master", "SLURM", "--slurm")),
        (["--slurm", "--time", "1:2:3:4"], ("1:2:3:4", "minutes:seconds")),
        (["--slurm", "--sbatch", "nodes=3"], ("nodes=3", "run.py")),
        (["--slurm", "--sbatch", "time=3"], ("'time=3'", "--time")),
        (["--slurm", "--sbatch", "x y"], ("'x y'", "constraint=a100")),
    ],
)
def test_a_wrong_flag_is_named(arguments, message, capsys):
    assert main(["--task", "pretrain", *arguments]) == 2
    assert capsys.readouterr().err == OneLine("error:", *message)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("2:00:05", 7205),
        ("1-0", 86400),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("1-12:30:15", 131415),
        ("UNLIMITED", float("inf")),
    ],
)
def test_times_have_the_formats_of_slurm(text, seconds):
    """The formats are from the manual of sbatch, under --time."""
    assert slurm._seconds(slurm._time(text)) == seconds


def test_a_path_that_is_not_utf_8_is_rejected_before_the_script(capsys):
    config = ROOT / "configs/demo/pretrain.yaml"
    assert main(["--slurm", "--dry-run", "--config", str(config), "--output", "runs/caf\udce9"]) == 2
    assert capsys.readouterr().err == OneLine("--slurm", "not valid UTF-8", "rename")


def test_a_working_folder_with_a_line_break_is_rejected_before_the_script(tmp_path, capsys, monkeypatch):
    """The text after the line break would be a command of the script."""
    folder = tmp_path / "a\ntouch oops"
    folder.mkdir()
    monkeypatch.chdir(folder)
    config = ROOT / "configs/demo/pretrain.yaml"
    assert main(["--slurm", "--dry-run", "--config", str(config), "--output", "runs/x"]) == 2
    fragments = capsys.readouterr()
    assert "control character" in fragments.err and fragments.err.count("\n") == 1
    assert not fragments.out
    monkeypatch.chdir(ROOT)
    assert main(["--slurm", "--dry-run", "--config", str(config), "--partition", "a\nb"]) == 2
    assert "partition=a\\nb" in capsys.readouterr().err
