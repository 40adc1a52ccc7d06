"""Speed of re-ranking with the base model at 384 px, in the proportions of COCO: ``python -m benchmarks.rerank``."""

from __future__ import annotations

import sys
from functools import partial
from typing import cast

import torch
from torch import Tensor

from benchmarks.harness import Rounds, print_line, seconds_of
from models.config import AligningConfig, FusionConfig, TextArchitecture, TextConfig, VisionConfig
from models.core.packing import PackedTexts, Packing
from models.core.vision import Concepts
from models.inference.reranking import TextBank, score_pairs
from models.tasks.retrieval import RetrievalModel
from utils.commands import call

IMAGES, CAPTIONS, K = 5000, 25010, 80
PADDED = 40
MEAN_LENGTH, SPREAD = 13.0, 2.8
"""Mean and standard deviation of the number of tokens in a caption, including [CLS] and [SEP]; our assumption about COCO."""


def build(width: int, layers: int, image_size: int) -> RetrievalModel:
    """Builds a model with random weights. Only its fusion encoder and its matching head are used."""
    heads = max(1, width // 64)
    arch = TextArchitecture(vocab_size=100, width=width, layers=1, heads=heads, intermediate=4 * width)
    config = AligningConfig(
        vision=VisionConfig(image_size=image_size, width=width, depth=1, heads=heads),
        text=TextConfig(arch=arch),
        fusion=FusionConfig(layers=layers),
    )
    return RetrievalModel(config).eval()


def baseline(model: RetrievalModel, image: Concepts, texts: PackedTexts) -> Tensor:
    """Computes the matching logits (k,) of one image with k texts. The image is copied and projected k times."""
    k = texts.packing.count
    copies = Concepts(image.patches.expand(k, -1, -1).contiguous(), image.mean.expand(k, -1).contiguous())
    states = model.fusion.tokens(texts, model.fusion.project_concepts(copies)).states
    cls = states.index_select(0, texts.packing.starts)
    return cast(Tensor, model.matching_head(cls))[:, 1]


def shared_pairs(generator: torch.Generator) -> float:
    """Estimates the fraction of pairs that occur in both directions, from synthetic embeddings in which captions are near their
    image."""
    image = torch.nn.functional.normalize(torch.randn(IMAGES, 64, generator=generator), dim=1)
    near = image.repeat_interleave(5, dim=0)[:CAPTIONS]
    extra = image[: CAPTIONS - len(near)]
    text = torch.cat([near, extra])
    text = torch.nn.functional.normalize(text + 0.1 * torch.randn(text.shape, generator=generator), dim=1)
    similarity = image @ text.t()
    by_image = torch.zeros(similarity.shape, dtype=torch.bool).scatter_(1, similarity.topk(K, dim=1).indices, True)
    by_text = torch.zeros(similarity.shape, dtype=torch.bool).scatter_(0, similarity.topk(K, dim=0).indices, True)
    return float((by_image & by_text).sum() / (K * (IMAGES + CAPTIONS)))


@torch.no_grad()
def main(*, flags: Rounds = Rounds(), small: bool = False) -> int:
    """Speed of re-ranking with the base model at 384 px, in the proportions of COCO.

    The benchmark compares models.inference.reranking.score_pairs with a common implementation as the baseline: k pairs per call,
    texts padded to 40 tokens for attention, the image's keys and values projected for every pair, all states of the last block
    computed, fused attention. The two alternate in one process and score the same pairs of an image. Our function also scores the
    pairs of the other direction, as in an evaluation; its time is divided by the number of all pairs. Weights, patches and texts
    are random, because the time depends only on sizes. The last line is the median ratio of the times per pair.

    Args:
        small: smoke test with a small model and few pairs.

    Examples:
        python -m benchmarks.rerank
    """
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = build(64, 2, 64) if small else build(768, 6, 384)
    k = 8 if small else K
    pairs = k + round(k * CAPTIONS / IMAGES)
    width, patches = model.vision.width, model.vision.grid[0] * model.vision.grid[1]
    lengths = (MEAN_LENGTH + SPREAD * torch.randn(pairs, generator=generator)).round().clamp(6, PADDED).long()
    states = torch.randn(pairs, PADDED, width, generator=generator)
    packing = Packing.of(lengths, PADDED)
    bank = TextBank.of([PackedTexts(packing.pack(states), packing)])
    first = bank.texts.select(torch.arange(k))
    image = Concepts(torch.randn(1, patches, width, generator=generator), torch.randn(1, width, generator=generator))
    usual = partial(baseline, model, image, first)
    ours = partial(score_pairs, model.fusion, model.matching_head, image, [torch.arange(pairs)], bank)
    difference = float((ours()[0][:k, 1] - usual()).abs().max())
    assert difference < 1e-4, f"scores differ by {difference}"
    print_line(f"seconds per pair: baseline for {k} pairs, ours for {pairs} pairs; scores differ by {difference:.1e}")
    compared = flags.compare({"baseline": lambda: seconds_of(usual) / k, "ours": lambda: seconds_of(ours) / pairs})
    if not small:
        share = shared_pairs(generator)
        print_line(
            f"not included in the ratio: {100 * share:.1f}% of the {K * (IMAGES + CAPTIONS)} pairs occur in both "
            "directions and are scored once (synthetic embeddings)"
        )
    print_line(f"mean length {lengths.float().mean():.1f} tokens, {torch.get_num_threads()} threads")
    return flags.conclude(compared.ratio, compared.rounds)


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.rerank"))
