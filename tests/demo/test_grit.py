"""The walkthrough in docs/pretraining_data.md, from a published Parquet data set to an evaluation."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from demo.grit import URL_PREFIX, grit_row

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/pretraining_data.md").read_text(encoding="utf-8")
WALK = PAGE[PAGE.index("\n## A Parquet data set") :]


def test_phrases_are_at_their_offsets_and_boxes_are_fractions():
    elems = [
        {"bb": [16, 8, 32, 16], "caption": ["a red star", "the star left of a dog"]},
        {"bb": [0, 0, 64, 32], "caption": ["a dog"]},
    ]
    row = grit_row({"image": "a.png", "caption": ["a red star and a dog", "unused"], "elems": elems}, (64, 32), 7)
    assert (row["id"], row["url"], row["width"], row["height"]) == (7, f"{URL_PREFIX}a.png", 64, 32)
    phrases = {row["caption"][int(start) : int(end)]: box for start, end, *box, _ in row["noun_chunks"]}
    assert phrases == {"a red star": [0.25, 0.25, 0.75, 0.75], "a dog": [0, 0, 1, 1]}
    [(start, end, *box, _)] = row["ref_exps"]
    assert row["caption"][int(start) : int(end)] == "the star left of a dog" and box == [0.25, 0.25, 0.75, 0.75]


@pytest.mark.night
def test_the_walkthrough_runs_as_printed_with_fewer_steps(scenes_folder, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/scenes").symlink_to(scenes_folder)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    [config] = re.findall(r"```yaml\n(.*?)```", WALK, re.S)
    assert "train: {steps: 50}" in config
    (tmp_path / "data/grit.yaml").write_text(config.replace("{steps: 50}", "{steps: 11}"))
    commands = [line for block in re.findall(r"```bash\n(.*?)```", WALK, re.S) for line in block.splitlines()]
    assert commands[0] == "make scenes"
    for command in commands[1:]:
        program, *words = shlex.split(command)
        if "run.py" in words:
            words[0] = str(ROOT / "run.py")
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert program == "python" and done.returncode == 0, (command, done.stderr[-2000:])
    table = json.loads((tmp_path / "runs/grit/evaluation.json").read_text())
    assert "object box, IoU >= 0.5" in json.dumps(table)
