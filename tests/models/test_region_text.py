"""From the text of a region to its five losses, step by step. ``python -m tests.models.test_region_text`` prints all steps with
file and line.

The list contains the steps that a reader of ``models/`` should be able to follow. The test runs a pre-training step and checks
that it calls these functions in this order.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from batches.losses import Losses, weighted_sum
from benchmarks.synthetic import pretrain_batch
from models.core import losses
from models.core.blocks import Attention, Block, BlockStack, QueryPositions, attention_bias
from models.core.contrastive import ContrastiveHead
from models.core.fusion import FusionEncoder, FusionPass
from models.core.heads import BoxHead, WordHead, masked_positions
from models.core.keys_values import KeysValues, SharedRows
from models.core.matching import MatchingHead, allowed_negatives
from models.core.packing import PackedTexts, packings_of
from models.core.text import Embeddings, TextEncoder
from models.core.vision import VisionEncoder
from models.pretraining.model import PretrainModel
from models.pretraining.streams import PairStream, RegionTextStream
from tasks.config import PretrainConfig
from tasks.pretrain import PretrainTask
from tests.models.test_flops import MODEL, STREAMS
from utils.config import load_config

ROOT = Path(__file__).parent.parent.parent

STEPS: list[tuple[Callable[..., Any], str]] = [
    (PretrainModel.forward, "clamps the temperature"),
    (PretrainModel.losses_to_compute, "lists the losses of this step, by stream"),
    (PretrainModel.encode_streams, "runs each encoder once for all streams"),
    (PairStream.texts_to_encode, "names the texts that the losses need: the plain text, and its masked copy for mlm"),
    (TextEncoder.forward, "encodes plain and masked texts together"),
    (packings_of, "says where each token is without padding; a text and its masked copy share this packing"),
    (Embeddings.forward, "looks up words, positions and types: (T, D)"),
    (BlockStack.forward, "runs the blocks of the text encoder on packed tokens"),
    (Attention.self_attend, "pads the tokens for attention only, and packs them again"),
    (PackedTexts.split, "gives each stream its texts"),
    (VisionEncoder.encode, "encodes all images together: patches (I, P, D) and their mean"),
    (VisionEncoder.regions, "takes the mean of each region's patches (R, D), without copying patches"),
    (PairStream.losses, "computes the five losses"),
    (ContrastiveHead.embed_pairs, "projects and normalises the regions' means and the texts' [CLS] states: (R, E)"),
    (ContrastiveHead.start_loss, "starts gathering the embeddings of all ranks (eq. 1)"),
    (
        FusionEncoder.project_regions,
        "projects keys and values once per image; biases hide patches outside a region, or show the whole image",
    ),
    (FusionPass.cls, "pairs the texts with their whole images, for the boxes"),
    (masked_positions, "finds the masked positions, the only states that the last block computes for mlm"),
    (MatchingHead.pair_with_negatives, "pairs the texts and regions with negatives"),
    (allowed_negatives, "rules out the pair itself and equal texts"),
    (MatchingHead.sample_negatives, "samples, for each text, another region, and for each region, another text"),
    (ContrastiveHead.similarity, "compares all embeddings of the local batch: (R, R)"),
    (MatchingHead.draw_negatives, "draws similar negatives more often"),
    (FusionEncoder.fuse, "fuses the texts of all losses in one call"),
    (PackedTexts.concat, "concatenates the texts of the five passes"),
    (attention_bias, "makes the bias that hides the padding"),
    (QueryPositions.concat, "concatenates the positions whose states are needed: [CLS], or masked words"),
    (BlockStack.forward, "runs the fusion blocks; the last one computes only the needed states"),
    (SharedRows.of, "lets neighbouring passes share one call of attention, and joins their biases"),
    (Block.forward, "runs self-attention, cross-attention and feed-forward"),
    (Attention.cross_attend, "lets each text attend to the keys and values of its row"),
    (KeysValues.layer, "copies the rows of sampled negatives"),
    (losses.contrastive, "eq. 1, over all ranks"),
    (BoxHead.forward, "predicts the box from [CLS], fused with the whole image (eq. 4)"),
    (RegionTextStream.box_losses, "excludes captions of whole images and phrases with several boxes"),
    (losses.box_l1, "eq. 5, L1"),
    (losses.box_giou, "eq. 5, GIoU"),
    (WordHead.forward, "predicts the masked words"),
    (losses.masked_words, "eq. 3"),
    (MatchingHead.loss, "skips pairs without negatives"),
    (losses.matching, "eq. 2, from the matching head's logits"),
    (PretrainModel.counts, "counts what each loss is divided by, with Loss.count of RegionTextStream.declare"),
    (weighted_sum, "eq. 6: the sum of weight * total / divisor, with divisors summed over ranks and micro-batches"),
]


def location(function: Callable[..., Any]) -> str:
    code = inspect.unwrap(function).__code__
    return f"{Path(code.co_filename).relative_to(ROOT)}:{code.co_firstlineno}"


def calls_of(run: Callable[[], object]) -> list[CodeType]:
    """The Python functions that are called, in order."""
    found: list[CodeType] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            found.append(frame.f_code)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


def test_a_step_calls_these_functions_in_this_order():
    config = load_config("configs/pretrain/base_4m.yaml", [*MODEL, *STREAMS["regions"]], PretrainConfig)
    model = PretrainTask.build_model(config, None)
    batch = pretrain_batch(config.data, model.vision, 300)

    def step() -> None:
        found: Losses = model(batch)
        weighted_sum(found, model.counts(batch))

    calls = iter(calls_of(step))
    for function, what in STEPS:
        code = inspect.unwrap(function).__code__
        assert any(call is code for call in calls), (
            f"{function.__qualname__} ({what}) is not called after the step before"
        )


def main() -> None:
    for index, (function, what) in enumerate(STEPS, start=1):
        sys.stdout.write(f"{index:2}. {location(function)} {function.__qualname__}: {what}\n")


if __name__ == "__main__":
    main()
