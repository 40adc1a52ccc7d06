"""The command line of `run.py`, how it starts a job, and the exit status of a job."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

import run
from benchmarks.harness import Rounds
from benchmarks.start_time import compared_times
from launch import torchrun
from launch.clusters import LaunchContext
from launch.placement import Nodes, Placement
from launch.torchrun import ALLOCATOR
from tasks import TASKS
from tests.messages import OneLine, naming
from tests.ranks import free_port
from utils.errors import UserError
from utils.processes import PEER_LOST

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--task", "pretrain", "--gpus", "1", "--cpu", "1"], ("--gpus 1", "--cpu 1", "one of them")),
        (["--task", "pretrain", "--cpu", "0"], ("'0'",)),
        (["--task", "pretrain", "--nodes", "3:2", "--master", "h:1"], ("3:2", "MIN:MAX")),
        (["--task", "pretrain", "--nodes", "1:2", "--master", "h:1", "--node-rank", "1"], ("assigned automatically",)),
        (["--task", "pretrain", "--master", "h:1"], ("--master", "--nodes N")),
        (["--task", "pretrain", "--max-restarts", "2", "--nodes", "2"], ("--max-restarts", "--nodes", "MIN:MAX")),
        (["--task", "pretrain", "--max-restarts", "2"], ("--max-restarts", "--nodes", "MIN:MAX")),
        (["--task", "pretrain", "--nodes", "2", "--master", "a b:1"], ("--master", "'a b'", "host name")),
        (["--task", "pretrain", "--nodes", "2", "--master", "caf\udce9:1"], ("--master", r"'caf\udce9'", "host name")),
        (["--task", "pretrain", "--nodes", "2", "--master", "host"], ("not of the form HOST:PORT",)),
        (["--task", "pretrain", "--node-rank", "1"], ("--node-rank 1", "0 .. 0")),
        (["--task", "pretrain", "lr"], ("lr", "key=value")),
        (["--tsk", "pretrain"], ("--tsk", "--task")),
    ],
)
def test_a_wrong_command_line_is_named(argv, message, capsys):
    assert run.main(argv) == 2
    assert capsys.readouterr().err == OneLine("error:", *message)


LAUNCH = """
import os
from launch.clusters import launch_context
from launch.placement import Placement
from launch.torchrun import ranks_of_node, run_ranks
from utils.commands import call
def launch_job(flags, command):
    def start(*, placement: Placement = Placement()) -> int:
        context = launch_context(placement, os.environ)
        return run_ranks(context, ranks_of_node(placement, context), command, on_cpu=placement.cpu is not None)
    return call(start, flags, "launch")
"""


def run_job(folder: Path, body: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Launches a script that only contains ``body``."""
    (folder / "Job.py").write_text(body)
    call = f"import sys\n{LAUNCH}sys.exit(launch_job(sys.argv[2:], [sys.argv[1]]))"
    command = [sys.executable, "-c", call, str(folder / "Job.py"), *flags]
    kept = {name: value for name, value in os.environ.items() if name not in (*ALLOCATOR, "OMP_NUM_THREADS")}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=kept | environment)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["exit", "signal"])
def test_the_status_of_the_job_is_returned_without_a_traceback(tmp_path, script):
    body = {"exit": "import sys; sys.exit(7)", "signal": "import os; os.kill(os.getpid(), 9)"}[script]
    done = run_job(tmp_path, body, "--cpu", "2")
    assert done.returncode == {"exit": 7, "signal": 137}[script]
    assert "Traceback" not in done.stderr


def torch_raises(monkeypatch, error: Exception) -> None:
    """Makes torch's launcher raise an error instead of starting ranks."""

    def launch(*_: object) -> object:
        raise error

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *_: launch)


FIRST_OF_TWO = LaunchContext("flags", Nodes(2, 2), 0, "node0:29500")


@pytest.mark.parametrize("context", [LaunchContext("flags"), FIRST_OF_TWO], ids=["one node", "two nodes"])
def test_an_error_of_the_launcher_does_not_become_a_mistake_of_the_user(context, monkeypatch):
    torch_raises(monkeypatch, RuntimeError("can't start new thread"))
    with pytest.raises(RuntimeError, match="can't start new thread"):
        torchrun.run_ranks(context, 1, ["job.py"])


@pytest.mark.parametrize("kind", [dist.DistNetworkError, dist.DistStoreError, RendezvousConnectionError])
def test_only_a_job_on_several_nodes_can_say_that_they_did_not_find_each_other(kind, monkeypatch):
    torch_raises(monkeypatch, kind("timed out after 900000ms"))
    with pytest.raises(UserError, match=naming("did not find each other", "--master node0:29500", "900000ms")):
        torchrun.run_ranks(FIRST_OF_TWO, 1, ["job.py"])
    with pytest.raises(kind):
        torchrun.run_ranks(LaunchContext("flags"), 1, ["job.py"])


def test_variables_for_torchruns_flags_do_not_change_a_job_with_a_fixed_number_of_nodes(monkeypatch, tmp_path):
    context = LaunchContext("flags", Nodes(2, 2), 1, "node0:29500")
    expected = torchrun._launch_config(context, 3, 41, str(tmp_path))
    for flag in (
        "NNODES",
        "NPROC_PER_NODE",
        "RDZV_ID",
        "RDZV_CONF",
        "RDZV_BACKEND",
        "MAX_RESTARTS",
        "NODE_RANK",
        "LOG_DIR",
    ):
        monkeypatch.setenv(f"PET_{flag}", "7")
    found = torchrun._launch_config(context, 3, 41, str(tmp_path))
    found.logs_specs = expected.logs_specs = None
    assert found == expected
    assert (found.min_nodes, found.max_nodes, found.nproc_per_node, found.max_restarts) == (2, 2, 3, 0)
    assert found.shutdown_timeout == 41
    assert found.rdzv_configs["rank"] == 1


@pytest.mark.slow
def test_a_job_leaves_no_folder_behind(tmp_path):
    (tmp_path / "temporary").mkdir()
    assert run_job(tmp_path, "", "--cpu", "1", TMPDIR=str(tmp_path / "temporary")).returncode == 0
    assert not list((tmp_path / "temporary").iterdir())


ABORTED = """
import os
from pathlib import Path
from utils import distributed
distributed.record_collectives(Path(__file__).parent)
if {recorded}:
    Path(os.environ["TORCH_FR_DUMP_TEMP_FILE"] + "0").touch()
os.abort()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("recorded", "status"), [(True, PEER_LOST), (False, 134)])
def test_a_rank_that_nccl_ends_after_a_timeout_has_lost_a_peer(tmp_path, recorded, status):
    """NCCL's watchdog writes the collectives of the rank to a file, and then aborts the process."""
    (tmp_path / "collectives_rank_0").touch()  # of an earlier run in the same folder
    done = run_job(tmp_path, ABORTED.format(recorded=recorded), "--cpu", "1", PYTHONPATH=str(ROOT))
    assert done.returncode == status, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert errors == [OneLine("error: rank 0", "SIGABRT", "--resume")]
    assert ("another rank" in errors[0]) == recorded


RESTORED = f"""
import signal, sys
from utils.rank_reports import FOLDER
{LAUNCH}
CHANGED = "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "PYTHONPATH", "PYTHONSAFEPATH", FOLDER
def handling():
    return signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1), [os.environ.get(name) for name in CHANGED]
before = handling()
assert launch_job(sys.argv[2:], [sys.argv[1]]) == 0
assert handling() == before, handling()
"""


@pytest.mark.slow
def test_the_launcher_restores_signal_handlers_and_environment(tmp_path):
    """A signal to a process that is forked after the job must not end the launcher, and the thread count of its ranks must not
    apply to the next job."""
    (tmp_path / "Job.py").write_text("")
    command = [sys.executable, "-c", RESTORED, str(tmp_path / "Job.py"), "--cpu", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


FREED = """
import sys, threading
from datetime import timedelta
from torch.distributed.elastic.rendezvous.utils import _PeriodicTimer
from launch.torchrun import _silence_torch
if sys.argv[1] == "silent":
    _silence_torch()
freed, timers = threading.Event(), []
def free():
    timers.clear()
    freed.set()
timers.append(_PeriodicTimer(timedelta(milliseconds=10), free))
timers[0].start()
assert freed.wait(60)
"""


def test_a_torch_timer_that_is_freed_in_its_own_thread_prints_nothing():
    errors = {
        mode: subprocess.run(
            [sys.executable, "-c", FREED, mode], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
        ).stderr
        for mode in ("silent", "plain")
    }
    assert errors["silent"] == ""
    assert "cannot join current thread" in errors["plain"], "torch no longer does this: remove ignore_timer_errors"


@pytest.mark.slow
def test_segments_grow_on_gpus_unless_the_user_has_set_up_the_allocator(tmp_path):
    """One process that has imported torch launches a job for each case."""
    own = "max_split_size_mb:64"
    cases = [
        ("--gpus", {}, {ALLOCATOR[0]: "expandable_segments:True"}),
        *[("--gpus", {name: own}, {name: own}) for name in ALLOCATOR],
        ("--cpu", {}, {}),
    ]
    (tmp_path / "Job.py").write_text("import json, os; print(json.dumps(dict(os.environ)), flush=True)")
    call = (
        f"import json, os, sys, torch\n{LAUNCH}torch.cuda.device_count = lambda: 1\nbefore = dict(os.environ)\n"
        "for flag, given in json.loads(sys.argv[2]):\n"
        "    os.environ.clear()\n    os.environ.update(before | given)\n    launch_job([flag, '1'], [sys.argv[1]])"
    )
    asked = json.dumps([[flag, given] for flag, given, _ in cases])
    command = [sys.executable, "-c", call, str(tmp_path / "Job.py"), asked]
    env = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, env=env)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [{name: each[name] for name in ALLOCATOR if name in each} for each in found] == [case[2] for case in cases]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "node"),
    [
        ({"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1"}, {"PET_NODE_RANK": "NODE"}),
        ({"PET_NNODES": "2:2", "PET_NPROC_PER_NODE": "1", "PET_RDZV_BACKEND": "c10d", "PET_RDZV_ID": "a job"}, {}),
    ],
    ids=["TrainJob", "elastic PyTorchJob"],
)
def test_pods_of_kubernetes_find_each_other_without_flags(tmp_path, variables, node):
    """The pods are processes on this machine."""
    port = str(free_port())
    variables |= {"MASTER_PORT": port, "PET_MASTER_PORT": port} if node else {"PET_RDZV_ENDPOINT": f"127.0.0.1:{port}"}
    body = "import os; print(*(os.environ[name] for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE')))"

    def pod(number: int) -> subprocess.CompletedProcess[str]:
        own = {name: value.replace("NODE", str(number)) for name, value in node.items()}
        return run_job(tmp_path, body, **variables, **own, CUDA_VISIBLE_DEVICES="")

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(pod, range(2)))
    assert [each.returncode for each in done] == [0, 0], done
    assert sorted(each.stdout for each in done) == ["0 0 2\n", "1 0 2\n"]


def test_a_missing_config_is_reported_in_one_line():
    command = [sys.executable, "run.py", "--task", "pretrain", "--config", "configs/none.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr == OneLine("error: --config configs/none.yaml")


@pytest.mark.slow
def test_ranks_divide_the_cores_of_this_process_instead_of_the_machine(tmp_path):
    body = "import os; print(os.environ['OMP_NUM_THREADS'])"
    core = min(os.sched_getaffinity(0))
    call = f"import os; os.sched_setaffinity(0, {{{core}}})\n"
    done = run_job(tmp_path, body, "--cpu", "1", OMP_NUM_THREADS="3")
    assert done.stdout == "3\n"
    (tmp_path / "Launch.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{call}{LAUNCH}sys.exit(launch_job(['--cpu', '1'], [sys.argv[1]]))"
    )
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, str(tmp_path / "Launch.py"), str(tmp_path / "Job.py")]
    assert subprocess.run(command, capture_output=True, text=True, check=True, env=kept).stdout == "1\n"


def test_gpus_are_counted_without_nvidia_smi(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert torchrun.ranks_of_node(Placement(gpus=8), LaunchContext("flags")) == 8
    assert torchrun.ranks_of_node(Placement(), LaunchContext("flags")) == 8
    with pytest.raises(UserError, match=naming("--gpus 9", "8", "--cpu N")):
        torchrun.ranks_of_node(Placement(gpus=9), LaunchContext("flags"))


def test_gpus_that_are_hidden_are_not_counted(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(UserError, match=naming("--gpus 1", "0", "--cpu N")):
        torchrun.ranks_of_node(Placement(gpus=1), LaunchContext("flags"))
    assert torchrun.ranks_of_node(Placement(), LaunchContext("flags")) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--task", "pretrain", "--nodes", "2"],
        ["--task", "pretrain", "optim.lrr=1"],
        ["--task", "pretrain", "--config", "none.yaml"],
        ["--task", "pretrain", "--gpus", "1", "--cpu", "1"],
    ],
)
def test_a_wrong_command_line_is_reported_without_torch(arguments):
    code = f"import run, sys; assert run.main({arguments!r}) == 2; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_the_help_lists_commands_and_tasks_without_torch():
    code = (
        "import runpy, sys; sys.argv = ['run.py', '--help']\n"
        "try: runpy.run_path('run.py', run_name='__main__')\n"
        "except SystemExit as end: status = end.code\n"
        "assert status == 0; assert 'torch' not in sys.modules; assert 'transformers' not in sys.modules"
    )
    wide = os.environ | {"COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False, env=wide)
    assert done.returncode == 0, done.stderr
    for name, row in (run.COMMANDS | TASKS).items():
        assert re.search(rf"\b{name} +{re.escape(row.help)}", done.stdout), name


def test_the_help_takes_at_most_ten_times_as_long_as_python():
    """Compares the minimum CPU times, which other processes on the machine can only increase. The two commands are measured
    alternately nine times, and up to eighteen times more on a busy machine."""
    rounds: list[dict[str, float]] = []
    for _ in range(3):
        rounds += compared_times(Rounds(rounds=9)).rounds
        of_help, of_python = (min(times) for times in zip(*(values.values() for values in rounds), strict=True))
        if of_help <= 10 * of_python:
            return
    assert of_help <= 10 * of_python


def test_each_command_has_a_main_that_takes_its_arguments(capsys):
    for name in run.COMMANDS:
        assert run.main([name, "--help"]) == 0
        assert f"Usage: run.py {name}" in capsys.readouterr().out


def test_run_without_arguments_explains_its_usage(capsys):
    assert run.main([]) == 2
    fragments = capsys.readouterr().err
    assert all(part in fragments for part in ("make demo", "--config FILE", "--task TASK", "--help"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["plann"], ("'plann'", "plan")),
        (["nlvr", "seed=1"], ("nlvr", "--task nlvr")),
        (["retreival"], ("'retreival'", "--task retrieval")),
        (["lr"], ("'lr'", ", ".join(run.COMMANDS), "--task", "--config")),
        (["--task", "pretrian"], ("task pretrian", "'pretrain'")),
        (["--gpus", "1"], ("--task", "TASK", "--config", "FILE")),
        (["--task", "nlvr", "--nodes", "2"], ("--nodes", "2", "--master", "HOST:PORT")),
        (
            ["--config", "configs/demo/vqa.yaml", "--task", "nlvr"],
            ("configs/demo/vqa.yaml", "task vqa", "nlvr", "--task vqa"),
        ),
    ],
)
def test_a_mistake_is_reported_in_one_line_with_the_nearest_name(argv, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert run.main(argv) == 2
    assert capsys.readouterr().err == OneLine("error:", *message)


def test_the_help_of_a_tasks_script_does_not_wait_for_torch():
    code = "import runpy, sys; sys.argv = ['Retrieval.py', '--help']\n"
    code += "try:\n    runpy.run_path('Retrieval.py', run_name='__main__')\nexcept SystemExit as end:\n    assert end.code == 0\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--evaluate" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    "nodes", [["--nodes", "2", "--node-rank", "0"], ["--nodes", "2", "--node-rank", "1"], ["--nodes", "2:3"]]
)
def test_a_node_that_waits_for_others_ends_on_a_signal(nodes, signum, status, tmp_path):
    """The node waits in a function of torch, during which Python handles no signals."""
    script = tmp_path / "rank.py"
    script.write_text("")
    code = f"from launch import torchrun as t; t.UNHANDLED_S = 0.5\n{LAUNCH}\n"
    code += "import sys, torch.distributed.launcher.api, launch.elastic\n"  # the import is slow on some machines
    code += "print(flush=True); sys.exit(launch_job(sys.argv[2:], [sys.argv[1]]))"
    flags = ["--cpu", "1", *nodes, "--master", f"127.0.0.1:{free_port()}"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(script), *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(2)  # the node is waiting
    process.send_signal(signum)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in errors) == (status, False), errors


STOPPABLE = """
import signal, sys, time
from utils.errors import UserError, report
stopped = lambda *_: sys.exit(report(UserError("no space")) if {status} == 2 else {status})
signal.signal(signal.{name}, stopped)
open(__file__ + ".ready", "w").close()
time.sleep(60)
"""


def stopped_job(folder: Path, name: str, status: int, ignored: bool = False) -> tuple[int, str]:
    """Starts a rank that answers a signal with a status, sends the signal to the launcher once the rank runs, and returns the
    launcher's status and errors. If ``ignored``, the launcher starts with SIGHUP ignored, as under nohup, and is ended by
    SIGTERM."""
    script = folder / "rank.py"
    script.write_text(STOPPABLE.format(name="SIGTERM" if ignored else name, status=status))
    start = f"import signal; signal.signal(signal.SIGHUP, signal.{'SIG_IGN' if ignored else 'SIG_DFL'})\n"
    code = f"{start}{LAUNCH}\nimport sys; sys.exit(launch_job(sys.argv[2:], [sys.argv[1]]))"
    command = [sys.executable, "-c", code, str(script), "--cpu", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    ends = time.monotonic() + 60
    while not Path(f"{script}.ready").exists():
        assert time.monotonic() < ends
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    if ignored:
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.slow
def test_a_rank_that_could_not_save_when_stopped_is_not_requeued(tmp_path):
    returned, errors = stopped_job(tmp_path, "SIGTERM", 2)
    assert returned == 2
    assert "SIGTERM: the run stops" in errors


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(__file__ + ".ready", "w").close()
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("nodes", ["ONE_NODE, 0, None", "Nodes(1, 1, True), None, '127.0.0.1:PORT'"])
def test_a_rank_has_the_whole_time_to_save_and_is_killed_at_its_end(tmp_path, nodes):
    """The time is shorter than torch's default, so that the test is fast."""
    (tmp_path / "rank.py").write_text(STUBBORN)
    code = "import sys\nfrom launch.clusters import LaunchContext\nfrom launch.placement import ONE_NODE, Nodes\n"
    code += "from launch.torchrun import run_ranks\n"
    code += f"context = LaunchContext('flags', {nodes.replace('PORT', str(free_port()))})\n"
    code += "sys.exit(run_ranks(context, 1, [sys.argv[1]], grace_s=3))"
    environment = os.environ | {"PET_RDZV_CONF": "last_call_timeout=1"}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "rank.py")], cwd=ROOT, env=environment)
    ends = time.monotonic() + 60
    while not (tmp_path / "rank.py.ready").exists():
        assert time.monotonic() < ends
        time.sleep(0.05)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert 3 <= time.monotonic() - started < 15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGHUP", "SIGXCPU"])
def test_a_lost_terminal_and_the_limit_of_cpu_time_stop_a_run_like_sigterm(tmp_path, name):
    returned, errors = stopped_job(tmp_path, name, 75)
    assert returned == 75
    assert f"{name}: the run stops" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_under_nohup_a_lost_terminal_does_not_stop_the_run(tmp_path):
    returned, errors = stopped_job(tmp_path, "SIGHUP", 75, ignored=True)
    assert returned == 75
    assert "SIGTERM: the run stops" in errors
    assert "SIGHUP" not in errors
