"""Which folders are free for a run, and what may differ when a run is resumed."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from typing import Annotated

import pytest
import torch

from engine.metrics_log import keep_until
from engine.run_folder import RunFolder
from engine.saving import write_checkpoint
from tests.engine.toy import trainer
from tests.messages import OneLine, naming
from utils.config import MAY_CHANGE, MUST_NOT_CHANGE, Config, WhenResumed
from utils.errors import NotRegularError, UserError


class Evaluation(Config):
    when_resumed = WhenResumed.AFFECTS_METRICS

    batch_size: Annotated[int, MAY_CHANGE] = 1
    limit: int = 1
    validation: Annotated[str, MUST_NOT_CHANGE] = "a"


class Run(Config):
    evaluation: Evaluation = Evaluation()


def test_a_folder_without_any_training_is_free(tmp_path):
    RunFolder.open(tmp_path, Run(), resume=False)
    RunFolder.open(tmp_path, Run(evaluation=Evaluation(validation="b")), resume=False)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="already contains a run"):
        RunFolder.open(tmp_path, Run(), resume=False)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "validation.jsonl"])
def test_a_fifo_in_place_of_a_run_file_is_rejected(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(NotRegularError, match=naming("FIFO", name)):
        RunFolder.open(tmp_path, Run(), resume=True)


def test_settings_that_select_the_best_weights_may_not_change(tmp_path):
    RunFolder.open(tmp_path, Run(), resume=False)
    (tmp_path / "metrics.jsonl").touch()
    RunFolder.open(tmp_path, Run(evaluation=Evaluation(batch_size=2, limit=2)), resume=True)
    with pytest.raises(UserError, match=naming("evaluation.validation was 'a'", "now 'b'")):
        RunFolder.open(tmp_path, Run(evaluation=Evaluation(validation="b")), resume=True)


def test_evaluating_a_finished_run_requires_the_settings_of_its_metrics(tmp_path):
    """Otherwise the metrics of the run would be overwritten by different ones."""
    RunFolder.open(tmp_path, Run(), resume=False)
    (tmp_path / "metrics.jsonl").touch()
    RunFolder.open(tmp_path, Run(evaluation=Evaluation(batch_size=2)), resume=True, evaluate=True)
    with pytest.raises(UserError, match=naming("evaluation.limit was 1", "now 2")):
        RunFolder.open(tmp_path, Run(evaluation=Evaluation(limit=2)), resume=True, evaluate=True)


def test_a_run_older_than_a_key_has_the_keys_default(tmp_path):
    RunFolder.open(tmp_path, Run(), resume=False)
    (tmp_path / "metrics.jsonl").touch()
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("  validation: a\n", ""))
    RunFolder.open(tmp_path, Run(), resume=True)
    config.write_text(config.read_text().replace("  validation: a\n", ""))
    with pytest.raises(UserError, match=naming("evaluation.validation was 'a'", "now 'b'")):
        RunFolder.open(tmp_path, Run(evaluation=Evaluation(validation="b")), resume=True)


DAMAGE = {
    "is cut off": lambda text: text[:-5],
    "is cut off ": lambda text: text[: text.index("folder")],  # at the end of a line
    "U+0000": lambda text: "\0" * 40,
    "is empty": lambda text: "",
    "is empty ": lambda text: "# only a comment\n",
    "line 9: but found another document": lambda text: f"{text}---\na: 1\n",
    "not a list": lambda text: "- a\n",
    "lacks folder": lambda text: text.replace("folder: a\n", ""),
}


class Needing(Run):
    folder: str
    limit: int = 3


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_config_is_reported_with_the_intact_checkpoint_and_what_to_do(damage, tmp_path, caplog):
    config = Needing(folder="a")
    RunFolder.open(tmp_path, config, resume=False)
    for step in (2, 4):
        write_checkpoint(tmp_path / "checkpoints", step, {"a": torch.ones(1)}, {})
    (tmp_path / "checkpoints/step-00000004/model.safetensors").write_bytes(b"")
    saved = tmp_path / "config.yaml"
    text = saved.read_text()
    saved.write_text(DAMAGE[damage](text))
    facts = (str(saved), damage.strip(), "the checkpoint of step 2 is intact", "backup", "--resume")
    with pytest.raises(UserError, match=naming(*facts)):
        RunFolder.open(tmp_path, config, resume=True)
    saved.unlink()
    with pytest.raises(UserError, match=naming("config.yaml is missing", "--resume")):
        RunFolder.open(tmp_path, config, resume=False)
    checkpoint = RunFolder.open(tmp_path, config, resume=True).newest
    assert checkpoint is not None and checkpoint.step == 2
    assert saved.read_text() == text
    assert OneLine("config.yaml is missing", "cannot be checked") in caplog.messages


def test_a_config_without_a_final_newline_or_from_an_earlier_version_is_not_damaged(tmp_path):
    RunFolder.open(tmp_path, Run(), resume=False)
    (tmp_path / "metrics.jsonl").touch()
    saved = tmp_path / "config.yaml"
    text = saved.read_text()
    for same in (text.rstrip("\n"), text.removeprefix("---\n").removesuffix("...\n")):
        saved.write_text(same)
        RunFolder.open(tmp_path, Run(), resume=True)
        assert saved.read_text() == text


def test_resuming_with_a_long_hole_in_the_metrics_takes_bounded_memory(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.write(b'{"step": 1, "loss": 2.0}\n')
        file.seek(300_000_000)
        file.write(b'\n{"step": 2, "loss": 1.0}\n')
    tracemalloc.start()
    kept = keep_until(path, 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [line["step"] for line in kept] == [1, 2]
    assert peak < 100_000_000
    assert "line 2" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's memory
def test_a_run_whose_folder_is_deleted_still_ends_with_a_resumable_folder(tmp_path, caplog):
    output = tmp_path / "run"
    folder = RunFolder.open(output, Run(), resume=False)
    run = trainer(output, steps=6, checkpoint_every=2, log_every=1)
    run.folder = folder

    def delete(phase: str) -> None:
        if run.step == 3 and phase == "rates" and output.exists() and not deleted:
            run.writer.wait()
            shutil.rmtree(output)
            deleted.append(run.step)

    deleted: list[int] = []
    run.after_phase = delete
    run.fit()
    assert deleted == [3]
    assert "config.yaml was missing" in caplog.text
    checkpoint = RunFolder.open(output, Run(), resume=True).newest
    assert checkpoint is not None and checkpoint.step == 6
    assert [line["step"] for line in keep_until(output / "metrics.jsonl", 6)][-1] == 6
