"""A checkpoint whose files were changed after they were written is detected, reported and skipped."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import Future
from pathlib import Path
from traceback import StackSummary

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint import CheckpointException

from engine.checkpoint import (
    FORMAT,
    MANIFEST,
    MODEL_FILE,
    TRAINING_FILE,
    fault_of,
    list_checkpoints,
    newest_intact,
)
from engine.parallel.ddp import DataParallel
from engine.parallel.fsdp import cause_of
from engine.parallel.strategy import copied_to_host
from engine.run_folder import RunFolder
from engine.saving import (
    TEMPORARY_FOLDER,
    CheckpointWriter,
    remove_old,
    save_best,
    save_failure,
    write_checkpoint,
)
from models.checkpoints.files import read_weights
from tests.engine.toy import Empty, Line
from tests.messages import OneLine, naming
from utils.errors import UserError
from utils.weight_file import read_metadata, save_weights


def write_small_checkpoint(folder, step: int = 3):
    return write_checkpoint(folder, step, {"a": torch.arange(100.0)}, {"records": 12, "state": {"m": torch.ones(50)}})


def writer_in(folder, parallel=DataParallel) -> CheckpointWriter:
    return CheckpointWriter(folder, keep=1, parallel=parallel(Line(), torch.device("cpu")))


def flip_a_bit(file, index: int = -40) -> None:
    content = bytearray(file.read_bytes())
    content[index] ^= 1
    file.write_bytes(content)


def truncate(file) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file) -> None:
    file.write_bytes(b"")


def remove(file) -> None:
    file.unlink()


def put_a_fifo(file) -> None:
    file.unlink()
    os.mkfifo(file)


FAULTS = {
    flip_a_bit: "is damaged",
    truncate: "bytes",
    empty: "has 0 of",
    remove: "No such file",
    put_a_fifo: "is a FIFO, not a regular file",
}


def test_a_written_checkpoint_is_intact_and_is_read_back(tmp_path):
    checkpoint = write_small_checkpoint(tmp_path)
    assert fault_of(checkpoint.folder) is None
    assert newest_intact(tmp_path) == (checkpoint, [])
    assert checkpoint.training_state()["records"] == 12
    assert torch.equal(read_weights(checkpoint.model_file)["a"], torch.arange(100.0))


@pytest.mark.parametrize("name", [MODEL_FILE, TRAINING_FILE])
@pytest.mark.parametrize("harm", FAULTS, ids=lambda harm: harm.__name__)
def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path, name, harm):
    older, newer = write_small_checkpoint(tmp_path, 2), write_small_checkpoint(tmp_path, 4)
    harm(newer.folder / name)
    found, (fault,) = newest_intact(tmp_path)
    assert found == older
    assert fault.startswith(f"{newer.folder / name}") and FAULTS[harm] in fault and "\n" not in fault


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"format": 1, "files": {"model.safetensors": 3}}', "\x00", "[" * 100_000]
)
def test_a_meaningless_manifest_counts_as_damage(tmp_path, content):
    checkpoint = write_small_checkpoint(tmp_path)
    (checkpoint.folder / MANIFEST).write_text(content)
    assert fault_of(checkpoint.folder) == f"{checkpoint.folder / MANIFEST} cannot be read"


@pytest.mark.parametrize("name", [MODEL_FILE, TRAINING_FILE])
def test_every_flipped_bit_is_detected(tmp_path, name):
    checkpoint = write_small_checkpoint(tmp_path)
    size = (checkpoint.folder / name).stat().st_size
    for index in (0, 8, size // 2, size - 1):
        flip_a_bit(checkpoint.folder / name, index)
        assert "is damaged" in (fault_of(checkpoint.folder) or "")
        flip_a_bit(checkpoint.folder / name, index)
    assert fault_of(checkpoint.folder) is None


def test_without_an_intact_checkpoint_the_error_names_a_remedy(tmp_path):
    empty(write_small_checkpoint(tmp_path, 2).folder / MODEL_FILE)
    remove(write_small_checkpoint(tmp_path, 4).folder / MANIFEST)
    with pytest.raises(UserError, match=naming("manifest.json", "0", "init.checkpoint=")):
        newest_intact(tmp_path)
    assert newest_intact(tmp_path / "none") == (None, [])


def test_a_later_format_is_rejected_with_the_remedy(tmp_path):
    manifest = write_small_checkpoint(tmp_path).folder / MANIFEST
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(values | {"format": FORMAT + 1}))
    with pytest.raises(UserError, match=naming(f"format {FORMAT + 1}", f"formats up to {FORMAT}")):
        newest_intact(tmp_path)


def test_writing_a_step_again_replaces_the_first_checkpoint(tmp_path):
    empty(write_small_checkpoint(tmp_path).folder / MODEL_FILE)
    assert fault_of(write_small_checkpoint(tmp_path).folder) is None
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_a_process_that_is_killed_while_it_replaces_a_checkpoint_leaves_one(tmp_path, monkeypatch):
    """With keep_checkpoints = 1, the run would otherwise start again from its first step."""
    folder = tmp_path / "checkpoints"
    write_small_checkpoint(folder)
    replace = os.replace

    def killed(source, target):
        if Path(source).name == TEMPORARY_FOLDER.format(step=3):
            raise KeyboardInterrupt  # between the two renames
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_small_checkpoint(folder)
    assert not list_checkpoints(folder)
    opened = RunFolder.open(tmp_path, Empty(), resume=True)
    assert opened.newest is not None and opened.newest.step == 3 and not opened.checkpoint_faults


def test_an_old_checkpoint_that_cannot_be_removed_does_not_fail_the_new_one(tmp_path, monkeypatch, caplog):
    writer = writer_in(tmp_path)
    for step in (1, 2):
        writer.save(step, {"a": torch.zeros(3)}, None, {}, {})
        writer.finish()
        monkeypatch.setattr("engine.saving.remove_old", raises(OSError(39, "Directory not empty")))
    assert [each.step for each in list_checkpoints(tmp_path)] == [1, 2]
    assert "an older checkpoint cannot be removed" in caplog.text and "Directory not empty" in caplog.text
    assert "cannot be written" not in caplog.text


def raises(error: Exception):
    def fail(*_: object) -> None:
        raise error

    return fail


def test_the_newest_checkpoints_are_kept(tmp_path):
    for step in (1, 2, 3):
        write_small_checkpoint(tmp_path, step)
    remove_old(tmp_path, keep=2, step=3)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [2, 3]


def test_a_skipped_damaged_checkpoint_does_not_count_as_kept(tmp_path):
    """Otherwise a resumed run that keeps one checkpoint would delete the checkpoint that it has just written and keep the damaged
    one."""
    for step in (6, 8):
        write_small_checkpoint(tmp_path, step)
    empty(write_small_checkpoint(tmp_path, 12).folder / MODEL_FILE)
    remove_old(tmp_path, keep=1, step=8)
    assert newest_intact(tmp_path)[0].step == 8


def test_a_renamed_checkpoint_is_not_mistaken_for_another_step(tmp_path):
    folder = write_small_checkpoint(tmp_path, 6).folder
    renamed = folder.rename(tmp_path / "step-00000009")
    assert fault_of(renamed) == OneLine(renamed, "step 6", "renamed")


def test_a_flipped_bit_in_weights_is_detected_by_every_reader(tmp_path):
    assert save_best(tmp_path / "best.safetensors", 3, Line().state_dict(), {"score": 0.5})
    assert read_metadata(tmp_path / "best.safetensors")["validation"] == {"step": 3, "score": 0.5}
    flip_a_bit(tmp_path / "best.safetensors", -1)
    with pytest.raises(UserError, match=naming("best.safetensors", "damaged")):
        read_weights(tmp_path / "best.safetensors")


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_weights_of_every_type_are_read_back(tmp_path, kind):
    tensors = {
        "a": torch.ones(3, 2, dtype=kind).t(),
        "none": torch.ones(0, dtype=kind),
        "one": torch.ones((), dtype=kind),
    }
    save_weights(tmp_path / "w.safetensors", tensors)
    read = read_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_saving_copies_the_weights_and_does_not_block_training(tmp_path, monkeypatch):
    model, go = torch.nn.Linear(2, 2), threading.Event()

    def slowly(*args, **options):
        assert go.wait(10)
        return write_checkpoint(*args, **options)

    monkeypatch.setattr("engine.saving.write_checkpoint", slowly)
    writer = writer_in(tmp_path)
    before = model.weight.detach().clone()
    writer.save(1, dict(model.state_dict()), None, {"state": [model.weight]}, {})
    with torch.no_grad():
        model.weight.zero_()
    assert not list_checkpoints(tmp_path)
    go.set()
    writer.finish()
    (checkpoint,) = list_checkpoints(tmp_path)
    assert torch.equal(read_weights(checkpoint.model_file)["weight"], before)
    assert torch.equal(checkpoint.training_state()["state"][0], before)


def test_a_failed_write_is_reported_and_loses_nothing(tmp_path, monkeypatch, caplog):
    writer, weights = writer_in(tmp_path), Line().state_dict()
    writer.save(1, weights, None, {}, {})
    writer.finish()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.saving.torch.save", full)
    writer.save(2, weights, None, {}, {})
    with pytest.raises(UserError, match=naming("step 2", "No space left", "MB", "free some space")):
        writer.finish()
    assert "No space left" in caplog.text
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    writer.save(3, weights, None, {}, {})
    writer.finish()
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [3]


class Tearing(DataParallel):
    """Tears the optimiser states of a step without noticing it."""

    def start_saving(self, tensors, folder) -> Future[None]:
        folder.mkdir()
        save_file(tensors, folder / "shard.safetensors")
        if "00000002" in folder.parent.name:
            os.truncate(folder / "shard.safetensors", 200)
        written: Future[None] = Future()
        written.set_result(None)
        return written


def test_a_torn_shard_fails_the_checkpoint_and_the_previous_one_stays(tmp_path):
    """Whichever library writes a shard and does not notice that it is torn."""
    writer = writer_in(tmp_path, Tearing)
    for step in (1, 2):
        writer.save(step, {"w": torch.ones(1)}, None, {}, {"a": torch.ones(100)})
    with pytest.raises(UserError, match=naming("step 2", "shard.safetensors is incomplete")):
        writer.finish()
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [1]
    assert fault_of(tmp_path / "step-00000001") is None


def test_copies_share_no_memory():
    state = {"a": [torch.ones(2)], "b": (torch.zeros(1), 3, "x")}
    copied = copied_to_host(state)
    state["a"][0].zero_()
    assert torch.equal(copied["a"][0], torch.ones(2)) and copied["b"][1:] == (3, "x")


def test_a_folder_for_shards_that_cannot_be_created_is_reported(tmp_path, caplog):
    (tmp_path / "checkpoints").write_text("a file")
    writer = writer_in(tmp_path / "checkpoints")
    writer.save(3, {"w": torch.ones(1)}, None, {}, {})
    with pytest.raises(UserError, match=naming("step 3", "free some space")):
        writer.finish()
    assert "step 3" in caplog.text


def test_the_rank_that_cannot_write_its_shard_is_reported(tmp_path):
    error = CheckpointException("write", {1: (OSError(28, "No space left on device"), StackSummary())})
    message = save_failure(tmp_path, "the checkpoint of step 3", cause_of(error))
    assert message == OneLine("rank 1", "No space left on device")
