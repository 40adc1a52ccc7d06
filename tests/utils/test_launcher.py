"""`run.py`'s command line and the exit status of a job."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import TaskEntry
from utils.launcher import ALLOCATOR, parse

ROOT = Path(__file__).parent.parent.parent
TASKS = {
    "pretrain": TaskEntry("Pretrain.py", "configs/demo/pretrain.yaml"),
    "vqa": TaskEntry("VQA.py", "configs/demo/vqa.yaml", ("video_qa",)),
}


def test_overrides_may_stand_anywhere_after_the_flags():
    arguments = parse(["--task", "pretrain", "--cpu", "2", "optim.lr=1", "seed=3"], TASKS)
    assert arguments.cpu == 2
    assert arguments.overrides == ["optim.lr=1", "seed=3"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--task", "pretrian"], "invalid choice: 'pretrian'"),
        (["--task", "video_qa"], "'video_qa' is picked by `task: video_qa` in the config; give --task vqa"),
        (["--task", "pretrain", "--gpus", "1", "--cpu", "1"], "not allowed with"),
        (["--task", "pretrain", "--cpu", "0"], "'0' is not a positive number"),
        (["--task", "pretrain", "--nodes", "2"], "--nodes needs --master HOST:PORT"),
        (["--task", "pretrain", "--nodes", "2", "--master", "host"], "not of the form HOST:PORT"),
        (["--task", "pretrain", "--node-rank", "1"], "--node-rank 1 is not within 0 .. 0"),
        (["--task", "pretrain", "lr"], "'lr' is neither a flag nor of the form key=value"),
        ([], "--task"),
    ],
)
def test_a_wrong_command_line_is_named(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(argv, TASKS)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def run_job(folder: Path, body: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Launch a script that has nothing but ``body``."""
    (folder / "Job.py").write_text(body)
    (folder / "c.yaml").write_text("")
    call = (
        "import sys; from pathlib import Path; from tasks import TaskEntry; from utils.launcher import main;"
        "sys.exit(main(['--task', 'job', *sys.argv[2:]], {'job': TaskEntry('Job.py', 'c.yaml')}, Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", call, str(folder), *flags]
    kept = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=kept | environment)


@pytest.mark.parametrize("script", ["exit", "signal"])
def test_the_status_of_the_job_is_returned_without_a_traceback(tmp_path, script):
    body = {"exit": "import sys; sys.exit(7)", "signal": "import os; os.kill(os.getpid(), 9)"}[script]
    done = run_job(tmp_path, body, "--cpu", "2")
    assert done.returncode == {"exit": 7, "signal": 137}[script]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flag", "given", "expected"),
    [
        ("--gpus", {}, dict.fromkeys(ALLOCATOR, "expandable_segments:True")),
        *[("--gpus", {name: "max_split_size_mb:64"}, {name: "max_split_size_mb:64"}) for name in ALLOCATOR],
        ("--cpu", {}, {}),
    ],
)
def test_segments_grow_on_gpus_unless_the_user_has_set_up_the_allocator(tmp_path, flag, given, expected):
    body = "import json, os; print(json.dumps(dict(os.environ)))"
    done = run_job(tmp_path, body, flag, "1", CUDA_VISIBLE_DEVICES="0", **given)
    found = json.loads(done.stdout)
    assert {name: found[name] for name in ALLOCATOR if name in found} == expected


def test_a_missing_config_is_one_line():
    command = [sys.executable, "run.py", "--task", "pretrain", "--config", "configs/none.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: --config configs/none.yaml: no such file\n"
