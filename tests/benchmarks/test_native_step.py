"""The comparison of steps with native and fixed images."""

from __future__ import annotations

from benchmarks.harness import Rounds
from benchmarks.native_step import main


def test_both_kinds_of_steps_run_on_the_same_records(scenes_folder, capsys):
    assert main(flags=Rounds(rounds=1), records=scenes_folder / "train.jsonl", steps=1) == 0
    printed = capsys.readouterr().out
    assert "fixed" in printed and "native" in printed and "ratio: " in printed.splitlines()[-1]
