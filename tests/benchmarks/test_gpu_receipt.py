"""The GPU receipt keeps results, reports failures, resumes when the same command is run again, and can be merged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_receipt, gpu_steps, profile_step, two_processes
from benchmarks.gpu_receipt import Receipt, run_steps
from benchmarks.gpu_steps import (
    DIVISORS,
    MICRO_BATCHES,
    PYTHON,
    Step,
    environment,
    read_tests,
    run_step,
    speed_arguments,
    steps_of,
)
from tasks import ROOT
from tests.benchmarks.test_benchmarks import SMALLER as SMALLER_MODEL
from tests.messages import OneLine
from utils.commands import call

FACTS = {"device": "NVIDIA Card 80 GB", "cores": 4, "cuda": "13.0", "packages": {"torch": "2.13"}}
CODE = {"version": "1", "commit": "abc", "changed": False, "sha256": "a", "others_sha256": "b", "configs_sha256": "c"}


def writing(numbers: object, status: int = 0, message: str = "") -> list[str]:
    code = "import sys; open(sys.argv[1], 'w').write(sys.argv[2]); print(sys.argv[3]); sys.exit(int(sys.argv[4]))"
    return [PYTHON, "-c", code, "NUMBERS", json.dumps(numbers), message, str(status)]


def empty(*names: str, facts: dict[str, Any] = FACTS, code: dict[str, Any] = CODE) -> Receipt:
    return Receipt(True, facts, code, list(names), {})


def make(steps: list[Step], out: Path, receipt: Receipt | None = None, minutes: float = 1) -> Receipt:
    """Runs the steps that are due, after an earlier receipt or the receipt in ``out``."""
    receipt = receipt or (Receipt.read(out) if (out / "receipt.json").exists() else empty())
    receipt.names = [step.name for step in steps]
    run_steps(receipt.due(steps), receipt, out, minutes=minutes)
    return receipt


def entry(step: str, numbers: object, failure: str | None = None) -> dict[str, Any]:
    return {"step": step, "command": "python", "seconds": 1.0, "numbers": numbers, "failure": failure}


def test_steps_are_kept_and_only_failed_ones_are_run_again(tmp_path, capsys):
    bad = Step("bad", [writing([1], 3, "out of luck")], 1)
    receipt = make([Step("good", [writing({"a": 1})], 1), bad], tmp_path)
    good, failed = receipt.steps.values()
    assert (good["numbers"], good["failure"]) == ({"a": 1}, None)
    assert failed["failure"] == "status 3: out of luck" and failed["numbers"] == [1]
    assert json.loads((tmp_path / "receipt.json").read_text())["steps"] == [good, failed]
    again = [Step("good", [writing({"a": 2})], 1), Step("bad", [writing([2])], 1)]
    good, mended = make(again, tmp_path).steps.values()
    assert good["numbers"] == {"a": 1}, "the step had finished"
    assert (mended["numbers"], mended["failure"]) == ([2], None)
    assert capsys.readouterr().out.count("1/2 good") == 1


def test_smaller_batches_are_tried_only_after_running_out_of_memory(tmp_path):
    commands = [writing([], 2, "no way fits"), writing(["half"]), writing(["quarter"])]
    step = Step("fits", commands, 1, retry_on="no way fits")
    kept = make([step], tmp_path / "fits").steps["fits"]
    assert kept["numbers"] == ["half"] and kept["failure"] is None
    assert kept["command"].startswith("python -c")
    crash = Step("crash", [writing([], 1, "a crash"), writing(["half"])], 1, retry_on="no way fits")
    kept = make([crash], tmp_path / "crash").steps["crash"]
    assert kept["failure"] == "status 1: a crash"


def test_steps_that_never_ran_come_before_steps_that_failed(tmp_path, capsys):
    bad = Step("bad", [writing([], 1)], 1)
    make([bad], tmp_path)
    capsys.readouterr()
    make([bad, Step("new", [writing(1)], 1)], tmp_path)
    message = capsys.readouterr().out
    assert message.index("new") < message.index("bad")


def test_a_step_waits_for_the_steps_whose_files_it_reads(tmp_path, capsys):
    first, second = Step("first", [writing(1, 1)], 1), Step("second", [writing(2)], 1, needs=("first",))
    assert make([first, second], tmp_path).not_run == ["second"]
    assert "2/2 second; skipped because it needs first\n" in capsys.readouterr().out
    receipt = make([first._replace(commands=[writing(1)]), second], tmp_path)
    assert not receipt.not_run and not receipt.failed
    printed = capsys.readouterr().out
    assert printed.index("1/2 first") < printed.index("2/2 second"), "although second never ran and first failed"


def test_paths_on_the_machine_are_not_published(tmp_path):
    step = Step("bad", [writing([], 1, f"{tmp_path}/a.txt: broken")], 1)
    kept = make([step], tmp_path).steps["bad"]
    assert kept["failure"] == "status 1: OUT/a.txt: broken"
    assert str(tmp_path) not in (tmp_path / "receipt.json").read_text()


def test_a_hanging_step_is_stopped_and_steps_without_time_are_skipped(tmp_path):
    child = f"import pathlib, time; time.sleep(2); pathlib.Path({str(tmp_path / 'outlived')!r}).touch()"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    steps = [Step("hangs", [[sys.executable, "-c", code]], 0.02), Step("later", [writing(1)], 1)]
    receipt = make(steps, tmp_path, minutes=0.01)
    assert receipt.steps["hangs"]["failure"] == "stopped after 0.0 minutes, when the time for all steps was over"
    time.sleep(2)
    assert not (tmp_path / "outlived").exists(), "the child process ends with its parent"
    assert receipt.not_run == ["later"]
    assert "| later | | not run |" in (tmp_path / "receipt.md").read_text()


def test_a_step_that_reaches_its_limit_is_recorded_and_the_others_run(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_steps, "GRACE_S", 0.5)
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    hangs, other = Step("hangs", [[PYTHON, "-c", code]], 0.02), Step("other", [writing(1)], 1)
    started = time.monotonic()
    receipt = make([hangs, other], tmp_path)
    assert time.monotonic() - started < 30, "although the step ignores the interrupt"
    assert receipt.steps["hangs"]["failure"] == "stopped at its limit of 0.02 minutes"
    assert receipt.steps["other"]["numbers"] == 1
    assert make([hangs._replace(commands=[writing(2)]), other], tmp_path).steps["hangs"]["failure"] is None


@pytest.mark.night
def test_tests_that_are_stopped_at_the_limit_keep_the_results_so_far(tmp_path):
    (tmp_path / "test_slow.py").write_text(
        "import time\n\ndef test_quick(): pass\n\ndef test_slow(): time.sleep(60)\n", encoding="utf-8"
    )
    words = [PYTHON, "-m", "pytest", str(tmp_path), "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    step = Step("tests", [[*words, "--junitxml", "NUMBERS"]], 0.4, read_tests)
    found = run_step(step, tmp_path, 1, environment(cpu=True))
    assert found["failure"] == "stopped at its limit of 0.4 minutes"
    assert found["numbers"]["others"]["passed"] == 1


def test_results_from_other_sources_or_releases_do_not_count(tmp_path):
    newer = {**FACTS, "packages": {"torch": "2.15"}}
    others = [empty(code={**CODE, part: "other"}) for part in ("sha256", "others_sha256", "configs_sha256")]
    others += [empty(facts=newer), empty(facts={**FACTS, "device": "B200"}), Receipt(False, FACTS, CODE, [], {})]
    names = {receipt.folder_name for receipt in (empty(), *others)}
    assert len(names) == 7, "each has its own folder, so none is overwritten"
    assert empty().folder_name.startswith("nvidia-card-80-gb-")
    assert empty(facts={**FACTS, "cores": 64}).folder_name == empty().folder_name, "the card is the same"


def test_the_receipts_of_a_card_are_merged(tmp_path, capsys):
    first, second = empty("a", "b", "c"), empty("a", "b", "c", facts={**FACTS, "cores": 64})
    first.steps = {"c": entry("c", 3), "b": entry("b", 2)}
    second.steps = {"b": entry("b", None, "status 1: late"), "a": entry("a", 1)}
    first.write(tmp_path / "first")
    second.write(tmp_path / "second")
    words = ["--merge", str(tmp_path / "first"), str(tmp_path / "second/receipt.json"), "--out", str(tmp_path / "out")]
    assert call(gpu_receipt.main, words, "gpu_receipt") == 0
    folder = tmp_path / "out" / first.folder_name
    assert capsys.readouterr().out == f"{folder / 'receipt.md'} and receipt.json; all steps are done\n"
    found = json.loads((folder / "receipt.json").read_text())
    assert [(each["step"], each["numbers"]) for each in found["steps"]] == [("a", 1), ("b", 2), ("c", 3)]
    assert "cores" not in found["machine"] and found["machine"]["cuda"] == "13.0"

    third = empty("a", "b", "c")
    third.steps = {"a": entry("a", 5)}
    third.write(tmp_path / "third")
    words = ["--merge", str(tmp_path / "third"), "--out", str(tmp_path / "out")]
    assert call(gpu_receipt.main, words, "gpu_receipt") == 0
    assert {name: each["numbers"] for name, each in Receipt.read(folder).steps.items()} == {"a": 5, "b": 2, "c": 3}


@pytest.mark.parametrize(
    ("other", "fact"),
    [
        (empty(facts={**FACTS, "device": "NVIDIA H200"}), ("device is NVIDIA H200", "NVIDIA Card 80 GB")),
        (empty(facts={**FACTS, "packages": {"torch": "2.15"}}), ("torch is 2.15", "2.13")),
        (empty(facts={**FACTS, "nccl": "2.29"}), ("nccl is 2.29", "None")),
        (empty(code={**CODE, "sha256": "later"}), ("sha256 is later", "a in")),
        (empty(code={**CODE, "configs_sha256": "later"}), ("configs_sha256 is later", "c in")),
    ],
)
def test_receipts_of_other_cards_or_code_are_rejected_in_one_line(other, fact, tmp_path, capsys):
    empty("a").write(tmp_path / "first")
    other.write(tmp_path / "other")
    words = ["--merge", str(tmp_path / "first"), str(tmp_path / "other"), "--out", str(tmp_path / "out")]
    assert call(gpu_receipt.main, words, "gpu_receipt") == 2
    assert capsys.readouterr().err == OneLine(str(tmp_path / "other"), *fact, str(tmp_path / "first"), "one card")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, "not JSON", "[]", '{"steps": []}'])
def test_a_file_that_is_not_a_receipt_is_named(content, tmp_path, capsys):
    path = tmp_path / "receipt.json"
    if content is not None:
        path.write_text(content)
    assert call(gpu_receipt.main, ["--merge", str(path)], "gpu_receipt") == 2
    assert capsys.readouterr().err == OneLine(str(path))


def test_tests_are_counted_by_group_and_failures_are_named(tmp_path):
    cases = [
        ("tests.models.test_golden_plus", "a[cuda]", ""),
        ("tests.models.test_golden_plus", "b_bf16[cuda]", "<failure/>"),
    ]
    cases += [("tests.engine.test_trainer", "c[cuda]", ""), ("tests.engine.test_trainer", "d[cuda]", "<skipped/>")]
    text = "".join(f'<testcase classname="{of}" name="{name}">{inner}</testcase>' for of, name, inner in cases)
    (tmp_path / "tests.xml").write_text(f"<testsuites><testsuite>{text}</testsuite></testsuites>")
    assert read_tests(tmp_path / "tests.xml") == {
        "golden cases, float32": {"passed": 1, "skipped": 0, "failed": []},
        "golden cases, bf16": {"passed": 0, "skipped": 0, "failed": ["tests.models.test_golden_plus::b_bf16[cuda]"]},
        "others": {"passed": 1, "skipped": 1, "failed": []},
    }


def test_a_gpu_gets_all_steps_and_the_demo_uses_the_documented_batches(tmp_path):
    steps = list(steps_of(tmp_path, cpu=False))
    assert [step.name for step in steps if step.name.startswith("speed")] == [
        f"speed-{size}-{side}" for size in ("base", "large") for side in MICRO_BATCHES
    ]
    demo = {step.name: step.commands[0] for step in steps if step.needs}
    assert len(demo) == 6 and all("--gpus" in words for words in demo.values())
    assert "train.accumulate=2" in demo["demo-pretraining"] and "train.accumulate=2" not in demo["demo-vqa"]
    sizes = list(speed_arguments("large", 768, cpu=False))
    assert len(sizes) == len(DIVISORS)
    assert "data.images.batch_size=1" in sizes[-1] and "model.vision.image_size=768" in sizes[-1]
    assert {step.name for step in steps_of(tmp_path, cpu=True)} <= {step.name for step in steps}


@pytest.mark.parametrize("cpu", [False, True])
def test_every_step_ends_within_eight_minutes_and_needs_only_earlier_steps(cpu, tmp_path):
    earlier: set[str] = set()
    for step in steps_of(tmp_path, cpu=cpu):
        assert 60 * step.minutes + gpu_steps.GRACE_S < 8 * 60
        assert set(step.needs) <= earlier
        assert step.name not in earlier and " " not in step.name
        earlier.add(step.name)


def test_the_documents_name_every_step():
    text = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    for step in steps_of(Path(), cpu=False):
        assert f"`{step.name}`" in text


def test_the_machine_is_described_by_a_process():
    facts = gpu_receipt.machine_in_a_process(cpu=True)
    assert facts["device"] == "CPU" and facts["packages"]["torch"]
    assert Receipt(True, facts, CODE, [], {}).folder_name.startswith("cpu-")


def test_without_a_gpu_the_command_names_the_flag_for_the_cpu(capsys):
    assert call(gpu_receipt.main, [], "gpu_receipt") == 2
    assert capsys.readouterr().err == OneLine("--cpu", "CPU=1")


@pytest.fixture
def two_steps(monkeypatch) -> list[Step]:
    """Two quick steps in place of the steps of ``make gpu``, on a made-up machine."""
    monkeypatch.setattr(gpu_receipt, "machine_in_a_process", lambda cpu: FACTS)
    steps = [Step("one", [writing(1)], 1), Step("two", [writing(2)], 2, needs=("one",))]
    monkeypatch.setattr(gpu_receipt, "steps_of", lambda out, cpu: steps)
    return steps


def test_one_step_is_run_by_its_name_and_the_rest_later(two_steps, tmp_path, capsys):
    def run(*words: str) -> tuple[int, str, str]:
        status = call(gpu_receipt.main, ["--cpu", "--out", str(tmp_path), *words], "gpu_receipt")
        return status, *capsys.readouterr()

    assert run("--list")[1].splitlines() == [
        "one                  at most 1 minutes   not run",
        "two                  at most 2 minutes   not run",
    ]
    assert run("--step", "tow") == (2, "", OneLine("--step 'tow' is unknown; did you mean two?"))
    assert run("--step", "two") == (2, "", OneLine("two reads the files of one", "make gpu STEP=one CPU=1"))
    status, printed, _ = run("--step", "one")
    assert status == 0 and "1/1 one" in printed and printed.endswith("; not run: two\n")
    status, printed, _ = run()
    assert status == 0 and "1/1 two" in printed and "one;" not in printed
    assert printed.endswith("; all steps are done\n")
    assert "1/1 one" in run("--step", "one")[1], "a step that is asked for is repeated"
    assert [line.split()[-1] for line in run("--list")[1].splitlines()] == ["done", "done"]


def test_a_step_that_fails_is_the_exit_status_of_its_command(two_steps, tmp_path, capsys):
    two_steps[0] = Step("one", [writing(1, 3, "no luck")], 1)
    assert call(gpu_receipt.main, ["--cpu", "--out", str(tmp_path), "--step", "one"], "gpu_receipt") == 1
    assert "failed: one; not run: two" in capsys.readouterr().out


def test_steps_run_on_the_pretend_device(pretend, two_steps, tmp_path, capsys):
    """The command finds an accelerator, so the steps do not have to be small."""
    assert call(gpu_receipt.main, ["--out", str(tmp_path)], "gpu_receipt") == 0
    (receipt,) = tmp_path.glob("*/receipt.json")
    assert json.loads(receipt.read_text())["cpu"] is False
    assert "meaningless" not in receipt.with_suffix(".md").read_text()


WITHOUT_NETWORK = """
import socket

def refuse(address):
    open({log!r}, "a").write(f"{{address}}\\n")
    raise OSError(f"no network: {{address}}")

def is_local(host):
    return host is None or host in ("localhost", "::1", socket.gethostname()) or str(host).startswith("127.")

def connecting(method):
    def connect(self, address):
        return method(self, address) if not isinstance(address, tuple) or is_local(address[0]) else refuse(address)
    return connect

resolve = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **more: resolve(host, *rest, **more) if is_local(host) else refuse(host)
socket.socket.connect = connecting(socket.socket.connect)
socket.socket.connect_ex = connecting(socket.socket.connect_ex)
"""
"""Replaces ``sitecustomize``, which Python imports when it starts: connections that leave the machine fail."""


@pytest.fixture
def without_network(tmp_path, monkeypatch) -> Path:
    """Lets connections of child processes fail if they leave this machine. Returns the file that lists them."""
    log = tmp_path / "connections"
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WITHOUT_NETWORK.format(log=str(log)), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return log


def test_child_processes_have_no_network_in_these_tests(without_network):
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
    done = subprocess.run([PYTHON, "-c", code], env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "no network" in done.stderr
    assert "192.0.2.1" in without_network.read_text()


@pytest.mark.night
@pytest.mark.parametrize("name", ["tests-others", "speed-base-224", "profile", "two-processes"])
def test_a_step_at_small_size_needs_no_network(name, without_network, tmp_path):
    (step,) = (each for each in steps_of(tmp_path, cpu=True) if each.name == name)
    found = run_step(step, tmp_path, step.minutes, environment(cpu=True))
    assert found["failure"] is None and found["numbers"]
    assert not without_network.exists()
    receipt = empty(name)
    receipt.steps[name] = found
    receipt.write(tmp_path)
    assert f"| {name} | {found['seconds']:.0f} | done |" in (tmp_path / "receipt.md").read_text()


@pytest.mark.night
def test_a_profile_has_shares_and_attention(tmp_path, capsys):
    words = ["--small", *SMALLER_MODEL, "--steps", "1", "--kernels", "3", "--json", str(tmp_path / "found.json")]
    assert call(profile_step.main, words, "profile_step") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert sum(each["share"] for each in found["kernels"]) == pytest.approx(1)
    assert found["kernels"][0]["share"] >= found["kernels"][1]["share"] > 0
    assert sum(found["attention"].values()) > 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(found["attention"]) + 3 + 1


def test_a_step_on_the_pretend_device_is_profiled(pretend, tmp_path, capsys):
    words = ["--small", *SMALLER_MODEL, "--steps", "1", "--json", str(tmp_path / "found.json")]
    assert call(profile_step.main, words, "profile_step") == 0
    assert sum(each["share"] for each in json.loads((tmp_path / "found.json").read_text())["kernels"]) == pytest.approx(
        1
    )
    assert "ms/step" in capsys.readouterr().out


@pytest.mark.night
def test_two_processes_reproduce_the_losses_of_one(tmp_path, capsys):
    words = ["--small", *SMALLER_MODEL, "--steps", "2", "--json", str(tmp_path / "found.json")]
    assert call(two_processes.main, words, "two_processes") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["losses"] == 8 and found["largest_difference"] < 1e-5
    assert "8 losses over 2 steps" in capsys.readouterr().out
