"""FSDP2 on gloo ranks in float64: compared with DDP, and resumed on other numbers of ranks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from engine.checkpoint import fault_of, list_checkpoints, newest_intact
from engine.optimizer_states import named_parameters, read_states, split_state
from engine.run_folder import RunFolder
from engine.trainer import Trainer
from tasks.config import PretrainConfig
from tasks.pretrain import PretrainTask
from tests.engine.frozen import as_of_step, lines
from tests.engine.test_ema import as_format_1
from tests.messages import OneLine
from tests.ranks import on_ranks
from utils import distributed
from utils.config import load_config
from utils.distributed import local_shard
from utils.errors import UserError

pytestmark = pytest.mark.slow


def trainer(folder: Path, tiny: list[str], *overrides: str, double: bool = True) -> Trainer:
    """A trainer of the demo's pre-training, by default in float64. It resumes from a checkpoint in the folder if there is one."""
    config = load_config("configs/demo/pretrain.yaml", [*tiny, "optim.eps=1e-6", *overrides], PretrainConfig)
    run = RunFolder.open(folder, config, resume=True)
    checkpoint = run.newest
    task = PretrainTask.build(config, checkpoint)
    if double:
        task.model.double()
        if checkpoint is not None:
            task.model.load_state_dict(load_file(checkpoint.model_file))  # without rounding errors
    sections = {"train": config.train, "optim": config.optim, "schedule": config.schedule, "seed": config.seed}
    return Trainer(task, task.plan, **sections, folder=run, device=torch.device("cpu"), checkpoint=checkpoint)


class Run:
    """A picklable job that pre-trains the demo on every rank, and returns the weights and the bytes that this rank held during
    training."""

    def __init__(self, folder: Path, tiny: list[str], *overrides: str, double: bool = True):
        self.folder, self.tiny, self.overrides, self.double = folder, tiny, overrides, double

    def __call__(self) -> dict[str, Tensor]:
        run = trainer(self.folder, self.tiny, *self.overrides, double=self.double)
        held: list[float] = []
        run.after_phase = lambda phase: held.append(bytes_of(run)) if phase == "numbers" else None
        run.fit()
        return {**run.model.state_dict(), "held": torch.tensor(held)}


def bytes_of(run: Trainer) -> float:
    """Bytes of parameters, gradients and optimiser states on this rank."""
    states = [each for state in run.trained.optimizer.state.values() for each in state.values()]
    parameters = list(run.model.parameters())
    tensors = [*parameters, *(each.grad for each in parameters if each.grad is not None), *states]
    assert isinstance(run.model.box_head[0].weight, DTensor) == (run.config.parallel not in ("auto", "ddp"))
    return float(sum(each.numel() * each.element_size() for each in map(local_shard, tensors)))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        if name != "held":
            assert (found[name] - weight).abs().max() <= bound, name


WITHOUT_DROPOUT = ["model.text.dropout=0", "model.vision.drop_path=0"]
"""Sharded blocks process short and long texts in one call, and other blocks in two calls, which draw other random numbers."""


STEPS = ["train.steps=4", "train.checkpoint_every=2", "train.keep_checkpoints=9"]
UNEVEN = "model.text.arch={family: bert, vocab_size: 30522, width: 16, layers: 1, heads: 2, intermediate: 32, max_positions: 64}"
"""BERT's word table, whose rows cannot be divided evenly among four ranks."""

PARTS = ["optim.ema={decay: 0.9}", "optim.lora={rank: 2}", "train.recompute=[vision,text,fusion]"]
"""Averaged weights, adapters, and recomputed activations."""

VARIANTS = {
    "plain": [],
    "parts": [*PARTS, "optim.freeze={vision: 2, text: 1}", "train.accumulate=2"],
    "chunks": ["train.accumulate=2", "model.contrastive.chunks=2"],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_sharded_training_has_the_weights_of_ddp(name, tmp_path, tiny_overrides):
    overrides = [*STEPS, *WITHOUT_DROPOUT, *VARIANTS[name]]
    found = {}
    for parallel in ("ddp", "fsdp"):
        (tmp_path / "out" / parallel).mkdir(parents=True)
        job = Run(tmp_path / parallel, tiny_overrides, *overrides, f"train.parallel={parallel}")
        found[parallel], other = on_ranks(2, job, tmp_path / "out" / parallel)
        assert_same(other, found[parallel], 0.0)
    assert_same(found["fsdp"], found["ddp"])


@pytest.mark.night
def test_copies_of_a_sharded_model_have_the_weights_of_ddp(tmp_path, tiny_overrides):
    """On a mesh of two by two ranks, with averaged weights, adapters, recomputed activations, encoders that are unfrozen, and
    accumulated gradients."""
    (tmp_path / "out").mkdir()
    found = []
    for parallel in ("ddp", "{shard: 2, replicate: 2}"):
        folder = tmp_path / str(len(found))
        job = Run(folder, tiny_overrides, *STEPS, *WITHOUT_DROPOUT, *VARIANTS["parts"], f"train.parallel={parallel}")
        weights, *others = on_ranks(4, job, tmp_path / "out")
        for other in others:
            assert_same(other, weights, 0.0)
        found.append(weights)
    assert_same(*found)


def test_in_float32_the_first_losses_equal_those_with_ddp(tmp_path, tiny_overrides):
    (tmp_path / "out").mkdir()
    found = []
    for parallel in ("ddp", "fsdp"):
        folder = tmp_path / parallel
        overrides = [*STEPS, *WITHOUT_DROPOUT, "train.steps=3", f"train.parallel={parallel}"]
        job = Run(folder, tiny_overrides, *overrides, double=False)
        on_ranks(2, job, tmp_path / "out")
        found.append(lines(folder)[0])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def weights_of(found: dict[str, Tensor]) -> Tensor:
    """All weights, as one vector."""
    return torch.cat([weight.flatten() for name, weight in found.items() if name != "held"])


@pytest.mark.night
@pytest.mark.parametrize("name", VARIANTS)
def test_in_bf16_sharded_training_is_as_close_to_float32_as_ddp(name, tmp_path, tiny_overrides):
    """The losses of the first step are equal to those with DDP in bf16, because the same numbers are cast."""
    overrides = [*STEPS, *WITHOUT_DROPOUT, *VARIANTS[name]]
    (tmp_path / "out").mkdir()
    weights, first = [], []
    for number, (parallel, precision) in enumerate((("ddp", "fp32"), ("ddp", "bf16"), ("fsdp", "bf16"))):
        settings = [f"train.parallel={parallel}", f"train.precision={precision}"]
        folder = tmp_path / str(number)
        job = Run(folder, tiny_overrides, *overrides, *settings, double=False)
        found, other = on_ranks(2, job, tmp_path / "out")
        assert_same(other, found, 0.0)
        assert {weight.dtype for weight in found.values()} == {torch.float32}
        weights.append(weights_of(found))
        first.append({key: value for key, value in lines(folder)[0].items() if "/" in key or key == "loss"})
    assert first[2] == pytest.approx(first[1], rel=1e-6)
    in_float32, with_ddp, sharded = weights
    assert (sharded - in_float32).norm() <= 1.5 * (with_ddp - in_float32).norm()
    saved = load_file(tmp_path / "2" / "checkpoints" / "step-00000004" / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}


class Gathered:
    """A picklable job that returns the precision of the gathered parameters of a block, and of its gradients after a step."""

    def __init__(self, folder: Path, tiny: list[str]):
        self.folder, self.tiny = folder, tiny

    def __call__(self) -> dict[str, list[str]]:
        run = trainer(
            self.folder,
            self.tiny,
            *STEPS,
            "train.parallel=fsdp",
            "train.precision=bf16",
            "train.accumulate=2",
            double=False,
        )
        reduced: list[str] = []
        for name in ("reduce_scatter_tensor", "reduce_scatter_single"):
            if (collective := getattr(dist, name, None)) is not None:
                setattr(dist, name, partial(noted_dtype, reduced, collective))
        run.train_step(list(run.loader.batches(0, 2)))
        block = run.model.text.encoder.blocks[0]
        gradients = [str(parameter.grad.dtype) for parameter in run.model.parameters()]
        with run.parallel.full_model():
            matrix, norm = block.attention.output.dense.weight, block.attention.output.LayerNorm.weight
            return {"gathered": [str(matrix.dtype), str(norm.dtype)], "gradients": gradients, "reduced": reduced}


def noted_dtype(found: list[str], collective: Any, *args: Any, **options: Any) -> Any:
    found.append(str((args[0] if args else options["output"]).dtype))
    return collective(*args, **options)


@pytest.mark.night
def test_in_bf16_matrices_are_gathered_in_bf16_and_gradients_are_summed_in_float32(tmp_path, tiny_overrides):
    (tmp_path / "out").mkdir()
    for found in on_ranks(2, Gathered(tmp_path / "run", tiny_overrides), tmp_path / "out"):
        assert found["gathered"] == ["torch.bfloat16", "torch.float32"]
        assert set(found["gradients"]) == {"torch.float32"}
        assert found["reduced"] and set(found["reduced"]) == {"torch.float32"}


def accumulated(count: int) -> list[str]:
    """Micro-batches of a rank in a step. The contrastive loss covers all of them."""
    return [f"train.accumulate={count}", "model.contrastive.chunks=step"]


@pytest.mark.night
def test_the_same_micro_batches_on_any_number_of_ranks_give_the_same_weights(tmp_path, tiny_overrides):
    """A step has twelve micro-batches, with a contrastive loss over all of them and hard negatives in each."""
    found = {}
    for ranks, parallel in ((1, "ddp"), (2, "ddp"), (3, "fsdp"), (4, "{shard: 2, replicate: 2}")):
        (tmp_path / f"out{ranks}").mkdir()
        overrides = [*accumulated(12 // ranks), f"train.parallel={parallel}"]
        job = Run(tmp_path / f"on{ranks}", tiny_overrides, *STEPS, "train.steps=3", *WITHOUT_DROPOUT, *overrides)
        found[ranks], *_ = on_ranks(ranks, job, tmp_path / f"out{ranks}")
        assert_same(found[ranks], found[1])


RESUMED_ON = {
    "same": (2, [], 0.0),
    "ddp": (2, ["train.parallel=ddp"], 1e-9),
    "one": (1, [*accumulated(4), "train.parallel=auto"], 1e-9),
    "four": (4, accumulated(1), 1e-9),
    "copies": (4, [*accumulated(1), "train.parallel={shard: 2, replicate: 2}"], 1e-9),
}
"""Number of ranks, changes of the config, and the largest difference between weights."""


@pytest.mark.parametrize(
    ("name", "resumed_on"),
    [
        pytest.param("plain", ["same", "one"], id="plain"),
        pytest.param("plain", ["ddp", "four", "copies"], id="on other ranks", marks=pytest.mark.night),
        pytest.param("parts", ["one", "copies"], id="parts", marks=pytest.mark.night),
        pytest.param("uneven", ["four"], id="uneven", marks=pytest.mark.night),
    ],
)
def test_a_sharded_run_resumes_with_the_same_weights_on_any_ranks(name, resumed_on, tmp_path, tiny_overrides):
    """The vision encoder is unfrozen after the checkpoint, which therefore has no optimiser states of it."""
    variants = {"plain": [], "parts": [*PARTS, "optim.freeze={vision: 3, text: 1}"], "uneven": [UNEVEN]}
    overrides = [*STEPS, *WITHOUT_DROPOUT, *accumulated(2), "train.parallel=fsdp", *variants[name]]
    (tmp_path / "out").mkdir()
    whole, _ = on_ranks(2, Run(tmp_path / "whole", tiny_overrides, *overrides), tmp_path / "out")
    for where in resumed_on:
        ranks, changes, bound = RESUMED_ON[where]
        folder = as_of_step(2, tmp_path / "whole", tmp_path / where)
        resumed, *_ = on_ranks(ranks, Run(folder, tiny_overrides, *overrides, *changes), tmp_path / "out")
        assert_same(resumed, whole, bound)


@pytest.mark.night
def test_a_sharded_run_in_bf16_resumes_on_any_ranks(tmp_path, tiny_overrides):
    """Norms are replicated, so the checkpoint contains both sharded and whole states."""
    overrides = [*STEPS, *WITHOUT_DROPOUT, *accumulated(2), "train.parallel=fsdp", "train.precision=bf16"]
    (tmp_path / "out").mkdir()
    whole, _ = on_ranks(2, Run(tmp_path / "whole", tiny_overrides, *overrides, double=False), tmp_path / "out")
    for resumed_on, ranks, changes, bound in (
        ("same", 2, [], 0.0),
        ("ddp", 2, ["train.parallel=ddp"], 1e-3),
        ("copies", 4, [*accumulated(1), "train.parallel={shard: 2, replicate: 2}"], 1e-3),
    ):
        folder = as_of_step(2, tmp_path / "whole", tmp_path / resumed_on)
        job = Run(folder, tiny_overrides, *overrides, *changes, double=False)
        resumed, *others = on_ranks(ranks, job, tmp_path / "out")
        assert all(torch.equal(weights_of(other), weights_of(resumed)) for other in others)
        difference = weights_of(resumed) - weights_of(whole)
        assert difference.norm() <= bound * weights_of(whole).norm(), resumed_on


@pytest.mark.night
@pytest.mark.parametrize("earlier", [False, True])
def test_a_run_with_ddp_resumes_with_fsdp(tmp_path, tiny_overrides, earlier):
    """This includes checkpoints written by an earlier version."""
    overrides = [*STEPS, *WITHOUT_DROPOUT, "optim.ema={decay: 0.9}"]
    (tmp_path / "out").mkdir()
    whole, _ = on_ranks(2, Run(tmp_path / "whole", tiny_overrides, *overrides, "train.parallel=ddp"), tmp_path / "out")
    folder = as_of_step(2, tmp_path / "whole", tmp_path / "sharded")
    if earlier:
        for checkpoint in list_checkpoints(folder / "checkpoints"):
            as_format_1(checkpoint)
    resumed, _ = on_ranks(2, Run(folder, tiny_overrides, *overrides, "train.parallel=fsdp"), tmp_path / "out")
    assert_same(resumed, whole)


@pytest.mark.night
def test_uneven_shards_give_the_weights_of_ddp_with_a_share_of_its_memory(tmp_path, tiny_overrides):
    """BERT's word table of 30,522 rows is divided among four ranks."""
    overrides = [*STEPS, *WITHOUT_DROPOUT, "train.steps=3", UNEVEN]
    (tmp_path / "out").mkdir()
    found = {}
    for parallel in ("ddp", "fsdp"):
        job = Run(tmp_path / parallel, tiny_overrides, *overrides, f"train.parallel={parallel}")
        found[parallel] = on_ranks(4, job, tmp_path / "out")
    assert_same(found["fsdp"][0], found["ddp"][0])
    of_all = found["ddp"][0]["held"].max()
    for rank in found["fsdp"]:
        assert rank["held"].max() <= 1.05 / 4 * of_all


class SavedAndRead:
    """A picklable job that writes a checkpoint while its tensors change, and returns whether the checkpoint has the earlier
    values."""

    def __init__(self, folder: Path, tiny: list[str]):
        self.folder, self.tiny = folder, tiny

    def __call__(self) -> bool:
        run = trainer(self.folder, self.tiny, *STEPS, "train.parallel=fsdp")
        run.train_step(list(run.loader.batches(0, 1)))
        _, states = split_state(run.trained.optimizer)
        before = {name: local_shard(state).clone() for name, state in states.items()}
        saving = run.parallel.start_saving(states, self.folder / "shards")
        for state in states.values():
            state.zero_()
        saving.result()
        read = read_states(self.folder / "shards", named_parameters(run.trained.optimizer))
        assert {path.suffix for path in (self.folder / "shards").iterdir()} == {".safetensors"}, (
            "the checkpoint must not contain pickles"
        )
        return all(
            torch.equal(local_shard(read[name.rpartition("/")[0]][name.rpartition("/")[2]]), before[name])
            for name in before
        )


def test_all_ranks_write_the_optimiser_states_in_the_background(tmp_path, tiny_overrides):
    (tmp_path / "out").mkdir()
    assert on_ranks(2, SavedAndRead(tmp_path / "run", tiny_overrides), tmp_path / "out") == [True, True]


def test_a_checkpoint_with_a_damaged_shard_is_skipped(tmp_path, tiny_overrides):
    (tmp_path / "out").mkdir()
    on_ranks(2, Run(tmp_path / "run", tiny_overrides, *STEPS, "train.parallel=fsdp"), tmp_path / "out")
    (older, newest) = list_checkpoints(tmp_path / "run" / "checkpoints")
    shards = sorted((newest.folder / "optimizer").iterdir())
    assert len(shards) == 2
    assert fault_of(newest.folder) is None
    content = bytearray(shards[1].read_bytes())
    content[-1] ^= 1
    shards[1].write_bytes(bytes(content))
    checkpoint, faults = newest_intact(tmp_path / "run" / "checkpoints")
    assert checkpoint == older
    assert faults == [OneLine(shards[1].name, "damaged")]


class ElsewhereOnRank1:
    """A picklable job that saves the states of a step to a folder that only rank 0 can see, and returns the error."""

    def __init__(self, folder: Path, tiny: list[str]):
        self.folder, self.tiny = folder, tiny

    def __call__(self) -> str:
        run = trainer(self.folder, self.tiny, *STEPS, "train.parallel=fsdp")
        run.train_step(list(run.loader.batches(0, 1)))
        folder = self.folder / ("shards" if distributed.rank() == 0 else "elsewhere")
        try:
            run.parallel.start_saving(split_state(run.trained.optimizer)[1], folder).result()
        except UserError as error:
            return str(error)
        return ""


def test_a_shard_that_rank_0_does_not_find_fails_the_checkpoint(tmp_path, tiny_overrides):
    (tmp_path / "out").mkdir()
    faults = on_ranks(2, ElsewhereOnRank1(tmp_path / "run", tiny_overrides), tmp_path / "out")
    assert all(
        fault == OneLine("shard-00002-model-00001-of-00001.safetensors", "rank 1", "share") for fault in faults
    ), faults


class ReadBytes:
    """A picklable job that resumes a run, and returns the number of elements of optimiser states that this rank reads, the number
    of elements of all states, and the number of files with unaveraged weights that this rank reads."""

    def __init__(self, folder: Path, tiny: list[str], *overrides: str):
        self.folder, self.tiny, self.overrides = folder, tiny, overrides

    def __call__(self) -> list[int]:
        read: list[int] = []
        original = dcp.HuggingFaceStorageReader.read_data

        def counted(reader: Any, plan: Any, planner: Any) -> Any:
            read.extend(item.lengths.numel() for item in plan.items)
            return original(reader, plan, planner)

        dcp.HuggingFaceStorageReader.read_data = counted
        files: list[Any] = []
        load = safetensors.torch.load_file
        safetensors.torch.load_file = lambda file: files.append(file) or load(file)
        run = trainer(self.folder, self.tiny, *self.overrides)
        states = [state for states in run.trained.optimizer.state.values() for state in states.values()]
        return [sum(read), sum(state.numel() for state in states), len(files)]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_each_optimiser_state_is_read_by_one_rank(parallel, tmp_path, tiny_overrides):
    """With DDP, rank 0 reads the states and sends them to the other ranks, as it does with the unaveraged weights."""
    overrides = [*STEPS, f"train.parallel={parallel}", "optim.ema={decay: 0.9}"]
    (tmp_path / "out").mkdir()
    on_ranks(2, Run(tmp_path / "whole", tiny_overrides, *overrides), tmp_path / "out")
    folder = as_of_step(2, tmp_path / "whole", tmp_path / "resumed")
    (first, whole, files), (second, same, other_files) = on_ranks(
        2, ReadBytes(folder, tiny_overrides, *overrides), tmp_path / "out"
    )
    assert first + second == whole == same
    assert parallel == "fsdp" or second == 0
    assert (files, other_files) == (1, 0)


class Timeouts:
    """A picklable job that returns the timeouts, in minutes, of the process groups in which a sharded model trains."""

    def __init__(self, folder: Path, tiny: list[str]):
        self.folder, self.tiny = folder, tiny

    def __call__(self) -> list[float]:
        distributed.set_timeout(7.0)
        trainer(self.folder, self.tiny, *STEPS, "train.parallel=fsdp")
        groups = [group for group in dist.distributed_c10d._world.pg_map if group.group_desc != distributed.SAVING]
        return [each._get_backend(torch.device("cpu")).options._timeout.total_seconds() / 60 for each in groups]


def test_the_first_step_has_the_same_time_in_all_process_groups(tmp_path, tiny_overrides):
    (tmp_path / "out").mkdir()
    for found in on_ranks(2, Timeouts(tmp_path / "run", tiny_overrides), tmp_path / "out"):
        assert len(found) > 1
        assert set(found) == {7.0}


class Collectives:
    """A picklable job that returns the reductions of a step with two micro-batches, as (is a sum, is a reduce-scatter)."""

    def __init__(self, folder: Path, tiny: list[str]):
        self.folder, self.tiny = folder, tiny

    def __call__(self) -> list[list[bool]]:
        run = trainer(self.folder, self.tiny, *STEPS, "train.accumulate=2", "train.parallel=fsdp")
        micro_batches = list(run.loader.batches(0, 2))
        run.train_step(micro_batches)
        found: list[list[bool]] = []
        for name in ("reduce_scatter_tensor", "reduce_scatter_single", "all_reduce"):
            if (collective := getattr(dist, name, None)) is not None:
                setattr(dist, name, partial(noted, found, name != "all_reduce", collective))
        run.after_phase = lambda phase: found.append([False, False]) if phase == "backward" else None
        run.train_step(micro_batches)
        return found


def noted(found: list[list[bool]], scatters: bool, collective: Any, *args: Any, **options: Any) -> Any:
    found.append([options.get("op", dist.ReduceOp.SUM) == dist.ReduceOp.SUM, scatters])
    return collective(*args, **options)


def test_gradients_are_summed(tmp_path, tiny_overrides):
    """FSDP2 averages gradients by default."""
    (tmp_path / "out").mkdir()
    found, _ = on_ranks(2, Collectives(tmp_path / "run", tiny_overrides), tmp_path / "out")
    first, last = (index for index, each in enumerate(found) if each == [False, False])
    scattered = [index for index, (_, scatters) in enumerate(found) if scatters]
    groups = 3  # the image block, the text block, and the rest
    assert len([index for index in scattered if first < index < last]) == groups
    assert all(is_sum for index, (is_sum, _) in enumerate(found) if index not in (first, last))
