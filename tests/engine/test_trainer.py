"""The training loop on a toy task."""

import json
import re
import signal
import time

import pytest
import torch

from engine.checkpoint import list_checkpoints
from engine.config import TrainConfig
from engine.identity import RunIdentity
from engine.trainer import PHASES
from tests.devices import moved
from tests.engine.toy import Line, ToyTask, points, trainer
from tests.messages import naming
from utils import distributed
from utils.errors import UserError


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_accumulated_micro_batches_give_the_gradient_of_all_their_rows(tmp_path, device):
    """Micro-batches have 1, 2 and 3 valid rows. Dividing each by its own count would weight them wrongly."""
    run = trainer(tmp_path, device=device, steps=1, accumulate=3, clip_grad_norm=None)
    expected = Line().to(device)
    batches = [moved(points(number), device) for number in range(3)]
    error = torch.cat([(expected.fit(b.x).squeeze(1) - b.y)[b.valid] for b in batches])
    (error.square().mean() + 0.5 * error.abs().mean()).backward()
    run.fit()
    for ours, theirs in zip(run.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert lines(tmp_path)[0]["points/square"] == pytest.approx(error.square().mean().item())


def test_gradients_are_clipped_to_the_norm(tmp_path, device):
    run = trainer(tmp_path, device=device, steps=1, clip_grad_norm=0.01)
    run.fit()
    norm = torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)
    assert lines(tmp_path)[0]["grad_norm"] > 0.01


def test_without_a_limit_gradients_are_measured_and_not_clipped(tmp_path, monkeypatch, device):
    expected, clipped = {}, []
    for folder, limit in (("high", 1e6), ("none", None)):
        run = trainer(tmp_path / folder, device=device, steps=1, clip_grad_norm=limit)
        run.fit()
        expected[folder] = [lines(tmp_path / folder)[0]["grad_norm"], *(p.grad for p in run.model.parameters())]
        monkeypatch.setattr(torch, "_foreach_mul_", lambda *arguments: clipped.append(arguments))
    assert not clipped
    assert expected["none"][0] == expected["high"][0] > 0
    for ours, theirs in zip(expected["none"][1:], expected["high"][1:], strict=True):
        assert torch.equal(ours, theirs)


def test_a_metrics_line_has_step_losses_rates_speed_and_time(tmp_path):
    trainer(tmp_path).fit()
    written = lines(tmp_path)
    assert [line["step"] for line in written] == [1, 2, 3, 4, 5, 6]
    assert {"points/square", "points/abs", "loss", "grad_norm", "elapsed_s"} <= written[0].keys()
    assert {"samples_per_s", "images_per_s", "tokens_per_s", "tflops_per_s"} <= written[1].keys()
    assert any(name.startswith("lr/") for name in written[0])
    assert list((tmp_path / "tensorboard").iterdir())


def test_rates_cover_the_valid_rows_of_the_steps_since_the_last_line(tmp_path):
    """Steps 1 to 6 have 1, 2, 3, 4, 1, 2 valid rows with 3 tokens and 2 GFLOP each. The first step does not count."""
    run = trainer(tmp_path, log_every=3, peak_tflops=0.5)
    run.fit()
    third, last = lines(tmp_path)
    for line, rows in ((third, 2 + 3), (last, 4 + 1 + 2)):
        seconds = rows / line["samples_per_s"]
        assert 0 < seconds < run.tally.elapsed_s
        assert line["tokens_per_s"] * seconds == pytest.approx(3 * rows)
        assert line["tflops_per_s"] * seconds == pytest.approx(2e-3 * rows)
        assert line["utilisation"] == pytest.approx(line["tflops_per_s"] / 0.5)
        assert line["images_per_s"] == 0


def test_the_share_of_time_spent_waiting_for_data_is_logged(tmp_path, monkeypatch, capsys):
    task, given = ToyTask(), ToyTask().loader.batches

    def slowly(*arguments):
        for batch in given(*arguments):
            time.sleep(0.1)
            yield batch

    monkeypatch.setattr(task.loader, "batches", slowly)
    trainer(tmp_path, task, steps=3).fit()
    assert 0.5 < lines(tmp_path)[-1]["data_wait"] <= 1
    assert re.search(r"\d+% waiting for data", capsys.readouterr().err)


def test_the_first_step_has_no_rates_and_a_cpu_no_utilisation(tmp_path):
    trainer(tmp_path, steps=2).fit()
    first, second = lines(tmp_path)
    assert not any(name.endswith("_per_s") for name in first)
    assert "tflops_per_s" in second
    assert "utilisation" not in second


def test_the_phases_of_a_step_are_logged(tmp_path):
    run = trainer(tmp_path, accumulate=2)
    reported = []
    run.after_phase = reported.append
    run.train_step([points(0), points(1)])
    each = ["forward", "losses", "backward"]
    assert reported == ["rates", "counts", "work", *each, *each, "clip", "optimiser", "numbers"]
    assert tuple(dict.fromkeys(["data", *reported, "report"])) == PHASES


def test_a_step_that_is_not_finite_never_reaches_the_weights(tmp_path, device):
    run = trainer(tmp_path, ToyTask(poison={2}), device=device, steps=3, max_skipped_steps=1)
    before = []
    original = run.train_step

    def watched(batches, on_device, data_wait_s):
        before.append(weights(run.model))
        return original(batches, on_device, data_wait_s)

    run.train_step = watched
    run.fit()
    after = weights(run.model)
    assert torch.equal(after, before[2]), "step 3 has a NaN target and must not change the weights of step 2"
    assert not torch.equal(before[1], before[2])
    assert run.tally.skipped == 1
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_one_skipped_step_too_many_stops_the_run_with_step_losses_records_and_batch(tmp_path, device):
    run = trainer(tmp_path, ToyTask(poison={1, 3}), device=device, max_skipped_steps=1)
    with pytest.raises(UserError) as error:
        run.fit()
    message = str(error.value)
    for part in ("step 4", "points/square nan", "points:3:0", "bad-batch-step-00000004", "train.max_skipped_steps"):
        assert part in message
    saved = torch.load(next(tmp_path.glob("bad-batch-*")), weights_only=True)
    assert saved[0]["y"].isnan().all()


def test_after_a_non_finite_step_no_checkpoint_is_written(tmp_path):
    with pytest.raises(UserError):
        trainer(tmp_path, ToyTask(poison={1}), checkpoint_every=2).fit()
    assert not (tmp_path / "checkpoints").exists()


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    trainer(tmp_path, checkpoint_every=1, keep_checkpoints=2).fit()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000005", "step-00000006"]


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    from engine.checkpoint import list_checkpoints

    trainer(tmp_path, checkpoint_every=3).fit()
    (tmp_path / "checkpoints" / ".step-00000009.tmp").mkdir()
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "checkpoints")] == [3, 6]


@pytest.mark.parametrize(("level", "name"), [("O0", "fp32"), ("O1", "fp16"), ("O2", "fp16")])
def test_apex_levels_are_accepted_with_a_note(level, name, caplog):
    from engine.precision import Precision

    with caplog.at_level("INFO"):
        assert Precision(level, torch.device("cpu")).name == name
    assert level in caplog.text


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_the_line(tmp_path, precision, device):
    trainer(tmp_path, steps=40, precision=precision, device=device).fit()
    written = lines(tmp_path)
    assert written[-1]["points/square"] < written[0]["points/square"] / 4


def scaled(folder, device, **options):
    run = trainer(folder, precision="fp16", device=device)
    run.precision.scaler = torch.amp.GradScaler(device.type, **options)
    return run


def test_a_metrics_line_has_the_loss_scale_of_its_step(tmp_path, device):
    scaled(tmp_path, device, init_scale=4.0, growth_interval=1).fit()
    assert [line["loss_scale"] for line in lines(tmp_path)] == [4, 8, 16, 32, 64, 128]
    trainer(tmp_path / "unscaled", device=device).fit()
    assert not any("loss_scale" in line for line in lines(tmp_path / "unscaled"))


def test_a_loss_scale_below_one_stops_the_run_with_the_remedy(tmp_path, device):
    with pytest.raises(UserError, match=naming("step 1", "fp16")):
        scaled(tmp_path, device, init_scale=0.5).fit()


def test_recorded_graphs_are_rejected_with_gradient_accumulation():
    with pytest.raises(ValueError, match=r"compile: reduce-overhead.*accumulate = 2.*set compile to true"):
        TrainConfig(steps=1, accumulate=2, compile="reduce-overhead")
    assert TrainConfig(steps=1, accumulate=2, compile=True).compile is True


@pytest.mark.parametrize("name", ["loss", "grad_norm", "step", "samples_per_s"])
def test_a_loss_may_not_have_the_name_of_another_metric(tmp_path, monkeypatch, name):
    task = ToyTask()
    counts = task.model.counts
    monkeypatch.setattr(task.model, "counts", lambda batch: {**counts(batch), name: batch.valid.sum()})
    with pytest.raises(ValueError, match=naming(f"'{name}'")):
        trainer(tmp_path, task).fit()


def test_a_resumed_run_reads_its_training_state_once(tmp_path, monkeypatch):
    trainer(tmp_path, steps=4, checkpoint_every=2).fit()
    reads, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: reads.append(args) or load(*args, **options))
    checkpoint = list_checkpoints(tmp_path / "checkpoints")[0]
    trainer(tmp_path, checkpoint=checkpoint, steps=4).fit()
    assert len(reads) == 1


@pytest.mark.parametrize(("rank", "reported"), [(0, 1), (1, 0)])
def test_only_rank_0_reports_the_checkpoint_that_a_run_resumes_from(tmp_path, monkeypatch, caplog, rank, reported):
    trainer(tmp_path, steps=4, checkpoint_every=2).fit()
    checkpoint = list_checkpoints(tmp_path / "checkpoints")[0]
    monkeypatch.setattr(RunIdentity, "check_resumes", lambda *_: ["the run resumes on 4 ranks"])
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    trainer(tmp_path, checkpoint=checkpoint, steps=4)
    assert caplog.messages.count(f"{tmp_path}: the run resumes on 4 ranks") == reported


def test_a_loader_that_returns_too_many_batches_is_an_error(tmp_path, monkeypatch):
    task = ToyTask()
    batches = task.loader.batches
    monkeypatch.setattr(task.loader, "batches", lambda consumed, count: batches(consumed, count + 1))
    with pytest.raises(RuntimeError, match="more batches than requested"):
        trainer(tmp_path, task).fit()


def test_losses_and_counts_must_have_the_same_names(tmp_path, monkeypatch):
    task = ToyTask()
    counts = task.model.counts
    monkeypatch.setattr(task.model, "counts", lambda batch: {"points/other": counts(batch)["points/abs"]})
    with pytest.raises(ValueError, match=naming("'points/abs'", "'points/other'")):
        trainer(tmp_path, task).fit()


@pytest.mark.parametrize(("compiled", "step"), [(False, 1), (True, 8)])
def test_after_the_first_steps_ranks_wait_for_each_other_no_longer_than_a_step(tmp_path, monkeypatch, compiled, step):
    """Regression test: the others waited two hours, as at the start, for a rank that stopped in the second step."""
    run = trainer(tmp_path, steps=12, step_timeout_min=3.0)
    run.config = run.timeout.train = run.config.model_copy(update={"compile": compiled})
    at: list[tuple[int, float]] = []
    monkeypatch.setattr(distributed, "set_timeout", lambda minutes: at.append((run.step, minutes)))
    run.fit()
    assert (step, 3.0) in at
    assert all(number >= step for number, minutes in at if minutes == 3.0)


def test_a_run_that_cannot_save_when_asked_to_stop_fails(tmp_path, monkeypatch):
    run = trainer(tmp_path, steps=12)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.saving.write_checkpoint", full)
    run.after_phase = lambda phase: setattr(run.stop, "signum", signal.SIGTERM)
    with pytest.raises(UserError, match=naming("SIGTERM", "No space left", "free some space")):
        run.fit()
