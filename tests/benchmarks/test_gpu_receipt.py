"""The GPU receipt keeps results, reports failures, and resumes when the same command is run again."""

from __future__ import annotations

import json
import sys
import time

import pytest

from benchmarks import gpu_receipt, profile_step, two_processes
from benchmarks.gpu_receipt import (
    DIVISORS,
    MICRO_BATCHES,
    PYTHON,
    Step,
    as_markdown,
    make,
    read_tests,
    speed_arguments,
    steps_of,
)
from tests.benchmarks.test_benchmarks import SMALLER as SMALLER_MODEL
from tests.messages import OneLine
from utils.commands import call

FACTS = {"device": "none", "packages": {"torch": "2.13"}}


def writing(numbers: object, status: int = 0, message: str = "") -> list[str]:
    code = "import sys; open(sys.argv[1], 'w').write(sys.argv[2]); print(sys.argv[3]); sys.exit(int(sys.argv[4]))"
    return [PYTHON, "-c", code, "NUMBERS", json.dumps(numbers), message, str(status)]


def test_steps_are_kept_and_only_failed_ones_are_run_again(tmp_path, capsys):
    bad = Step("bad", [writing([1], 3, "out of luck")], 1)
    receipt = make([Step("good", [writing({"a": 1})], 1), bad], tmp_path, FACTS, cpu=True, minutes=1)
    good, failed = receipt["steps"]
    assert (good["numbers"], good["failure"]) == ({"a": 1}, None)
    assert failed["failure"] == "status 3: out of luck" and failed["numbers"] == [1]
    assert json.loads((tmp_path / "receipt.json").read_text())["steps"] == receipt["steps"]
    again = [Step("good", [writing({"a": 2})], 1), Step("bad", [writing([2])], 1)]
    good, mended = make(again, tmp_path, FACTS, cpu=True, minutes=1)["steps"]
    assert good["numbers"] == {"a": 1}, "the step had finished"
    assert (mended["numbers"], mended["failure"]) == ([2], None)
    assert capsys.readouterr().out.count("1/2 good") == 1


def test_smaller_batches_are_tried_only_after_running_out_of_memory(tmp_path):
    commands = [writing([], 2, "no way fits"), writing(["half"]), writing(["quarter"])]
    step = Step("fits", commands, 1, retry_on="no way fits")
    (kept,) = make([step], tmp_path, FACTS, cpu=True, minutes=1)["steps"]
    assert kept["numbers"] == ["half"] and kept["failure"] is None
    assert kept["command"].startswith("python -c")
    crash = Step("crash", [writing([], 1, "a crash"), writing(["half"])], 1, retry_on="no way fits")
    (kept,) = make([crash], tmp_path, FACTS, cpu=True, minutes=1)["steps"]
    assert kept["failure"] == "status 1: a crash"


def test_steps_that_never_ran_come_before_steps_that_failed(tmp_path, capsys):
    bad = Step("bad", [writing([], 1)], 1)
    make([bad], tmp_path, FACTS, cpu=True, minutes=1)
    capsys.readouterr()
    make([bad, Step("new", [writing(1)], 1)], tmp_path, FACTS, cpu=True, minutes=1)
    message = capsys.readouterr().out
    assert message.index("new") < message.index("bad")


def test_paths_on_the_machine_are_not_published(tmp_path):
    step = Step("bad", [writing([], 1, f"{tmp_path}/a.txt: broken")], 1)
    (kept,) = make([step], tmp_path, FACTS, cpu=True, minutes=1)["steps"]
    assert kept["failure"] == "status 1: OUT/a.txt: broken"
    assert str(tmp_path) not in (tmp_path / "receipt.json").read_text()


def test_a_hanging_step_is_stopped_and_steps_without_time_are_skipped(tmp_path):
    child = f"import pathlib, time; time.sleep(2); pathlib.Path({str(tmp_path / 'outlived')!r}).touch()"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    receipt = make(
        [Step("hangs", [[sys.executable, "-c", code]], 0.02), Step("later", [writing(1)], 1)],
        tmp_path,
        FACTS,
        cpu=True,
        minutes=0.01,
    )
    assert receipt["steps"][0]["failure"] == "stopped after 0.0 minutes"
    time.sleep(2)
    assert not (tmp_path / "outlived").exists(), "the child process ends with its parent"
    assert receipt["not_run"] == ["later"]
    assert "| later | | not run |" in as_markdown(receipt)


def test_results_from_other_sources_or_releases_do_not_count(tmp_path, monkeypatch):
    make([Step("one", [writing(1)], 1)], tmp_path, FACTS, cpu=True, minutes=1)
    code = gpu_receipt.code_identity()
    monkeypatch.setattr(gpu_receipt, "code_identity", lambda: {**code, "sha256": "other"})
    (kept,) = make([Step("one", [writing(2)], 1)], tmp_path, FACTS, cpu=True, minutes=1)["steps"]
    assert kept["numbers"] == 2
    newer = {**FACTS, "packages": {"torch": "2.15"}}
    (kept,) = make([Step("one", [writing(3)], 1)], tmp_path, newer, cpu=True, minutes=1)["steps"]
    assert kept["numbers"] == 3


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
        f"speed of {size} at {side} px" for size in ("base", "large") for side in MICRO_BATCHES
    ]
    demo = {
        step.name: step.commands[0] for step in steps if step.name.startswith("demo: ") and "scenes" not in step.name
    }
    assert len(demo) == 6 and all("--gpus" in words for words in demo.values())
    assert "train.accumulate=2" in demo["demo: pretraining"] and "train.accumulate=2" not in demo["demo: vqa"]
    sizes = list(speed_arguments("large", 768, cpu=False))
    assert len(sizes) == len(DIVISORS)
    assert "data.images.batch_size=1" in sizes[-1] and "model.vision.image_size=768" in sizes[-1]
    assert {step.name for step in steps_of(tmp_path, cpu=True)} <= {step.name for step in steps}


def test_without_a_gpu_the_command_names_the_flag_for_the_cpu(capsys):
    assert call(gpu_receipt.main, [], "gpu_receipt") == 2
    assert capsys.readouterr().err == OneLine("--cpu", "CPU=1")


@pytest.mark.slow
def test_a_profile_has_shares_and_attention(tmp_path, capsys):
    words = ["--small", *SMALLER_MODEL, "--steps", "1", "--kernels", "3", "--json", str(tmp_path / "found.json")]
    assert call(profile_step.main, words, "profile_step") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert sum(each["share"] for each in found["kernels"]) == pytest.approx(1)
    assert found["kernels"][0]["share"] >= found["kernels"][1]["share"] > 0
    assert sum(found["attention"].values()) > 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(found["attention"]) + 3 + 1


@pytest.mark.slow
def test_two_processes_reproduce_the_losses_of_one(tmp_path, capsys):
    words = ["--small", *SMALLER_MODEL, "--steps", "2", "--json", str(tmp_path / "found.json")]
    assert call(two_processes.main, words, "two_processes") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["losses"] == 8 and found["largest_difference"] < 1e-5
    assert "8 losses over 2 steps" in capsys.readouterr().out
