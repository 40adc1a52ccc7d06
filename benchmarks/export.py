"""Compares the speed of a model in torch and of its export to ONNX: ``python -m benchmarks.export``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from batches.texts import Text
from benchmarks.harness import Comparison, Rounds, print_line, seconds_of, write_results
from models.config import FusionConfig, PretrainModelConfig, TextArchitecture, TextConfig, VisionConfig
from models.core.vision import Concepts
from models.inference.reranking import TextBank
from models.pretraining.model import PretrainModel
from utils.commands import call
from utils.flags import Positive
from utils.image_size import sides_of
from x2vlm.export.comparing import TOLERANCE, difference
from x2vlm.export.graphs import write_graphs
from x2vlm.export.runtime import OnnxRuntime
from x2vlm.export.writing import describe
from x2vlm.runtime import Runtime, TorchRuntime

TOKENS = 13
"""Tokens per text, about the length of a caption."""


class TimedCall(NamedTuple):
    """A call to be timed: its name, and a function that makes the call on a runtime and returns the result."""

    name: str
    run: Callable[[Runtime], Tensor]


def build(size: str) -> PretrainModel:
    """Builds a model with random weights, of the size "demo" (64 px), "base" (X²-VLM base, 224 px) or a small test model."""
    if size == "base":
        vision, arch, layers = VisionConfig(), TextArchitecture(vocab_size=30522), 6
    else:
        width, depth = (128, 4) if size == "demo" else (32, 1)
        vision = VisionConfig(image_size=64, patch_size=8, width=width, depth=depth, heads=4)
        arch, layers = TextArchitecture(vocab_size=200, width=width, layers=2, heads=4, intermediate=4 * width), 2
    config = PretrainModelConfig(vision=vision, text=TextConfig(arch=arch), fusion=FusionConfig(layers=layers))
    return PretrainModel(config).eval()


def timed_calls(model: PretrainModel) -> Iterator[TimedCall]:
    """Yields the calls to be timed, each with a single input and with a batch."""
    sides, runtime = sides_of(model.config.vision.image_size), TorchRuntime(model, "fp32")
    for count in (1, 8):
        pixels = torch.randint(0, 256, (count, 3, *sides), dtype=torch.uint8)
        yield TimedCall(f"image encoder, {count}", methodcaller("image_embeddings", pixels))
    for count in (1, 32):
        yield TimedCall(f"text encoder, {count}", methodcaller("text_embeddings", texts(count)))
    with runtime.running():
        one, many = (TextBank.of([runtime.text_states(texts(count))]) for count in (1, 32))
    images = Concepts.of_states(torch.randn(16, *runtime.state_shape))
    yield TimedCall("re-ranker, a text with 16 images", lambda runtime: matched(runtime, images, one))
    yield TimedCall("re-ranker, an image with 32 texts", lambda runtime: matched(runtime, images.each()[0], many))


def texts(count: int) -> Text:
    """Returns random texts without padding."""
    mask = torch.ones(count, TOKENS, dtype=torch.bool)
    return Text(torch.randint(1, 200, (count, TOKENS)), mask, count * TOKENS)


def matched(runtime: Runtime, images: Concepts, bank: TextBank) -> Tensor:
    """Returns the matching margins of each image with each text."""
    every = torch.arange(bank.texts.packing.count)
    return torch.stack(runtime.margins(images, [every] * len(images.mean), bank))


def running_seconds(run: Callable[[Runtime], Tensor], runtime: Runtime) -> float:
    """Returns the wall time of a call."""
    with runtime.running():
        return seconds_of(partial(run, runtime))


def measure(timed: TimedCall, ours: Runtime, exported: Runtime, flags: Rounds) -> Comparison:
    """Measures a call in both runtimes and prints its row of the table."""
    with ours.running():
        apart = difference(timed.run(ours), timed.run(exported))
    assert apart <= TOLERANCE, f"{timed.name}: results differ by {apart}"
    runtimes = {"torch": ours, "onnx": exported}
    measures = {name: partial(running_seconds, timed.run, runtime) for name, runtime in runtimes.items()}
    compared = Comparison(list(flags.measured(measures)))
    torch_ms, onnx_ms = (1e3 * compared.median(name) for name in runtimes)
    ratios = compared.ratios
    print_line(
        f"{timed.name:34} {torch_ms:9.1f} {onnx_ms:9.1f} {compared.ratio:7.2f}   {min(ratios):.2f} to {max(ratios):.2f}"
    )
    return compared


def main(*, flags: Rounds = Rounds(), threads: Positive = 2, small: bool = False) -> int:
    """Compares the speed of a model in torch and of its export to ONNX.

    The two runtimes alternate on the same images, texts and pairs, in one process with the same number of threads. Their results
    must agree within 1e-4. A ratio is the time of torch over the time of onnxruntime in a round; the table shows medians over the
    rounds. Weights, pixels and tokens are random, because the time depends only on sizes. Reading and resizing images is the same
    for both and is not timed.

    Args:
        threads: number of threads for both.
        small: smoke test with a small model.

    Examples:
        python -m benchmarks.export
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rounds: dict[str, list[dict[str, float]]] = {}
    for size in ("small",) if small else ("demo", "base"):
        model = build(size)
        ours = TorchRuntime(model, "fp32")
        with tempfile.TemporaryDirectory() as folder:
            write_graphs(model, Path(folder), size)
            exported = OnnxRuntime(Path(folder), describe(ours), model.config.vision.image_size)
            print_line(f"{size}, {threads} threads{'':18}torch, ms  onnx, ms   ratio   of {flags.rounds} rounds")
            for timed in timed_calls(model):
                rounds[f"{size}: {timed.name}"] = measure(timed, ours, exported, flags).rounds
    write_results(flags.json, rounds)
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.export"))
