"""Caption generation with and without kept keys and values, base size: ``python -m benchmarks.captioning``.

Beam search with 3 beams and 20 pieces a caption, in one process, in turn. Both ways project each image once and run the same
search; without the cache every step computes all that was said anew. Random weights: no caption may end before its 20 pieces.
Both must find the same words. The last line is the median ratio of the times.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from models.captioning import CaptionDecoder, CaptioningModel, CaptionTokens
from models.fusion import FusionConfig
from models.generation import Decoder, DecodingConfig, Generated, generate
from models.memory import CrossMemory
from models.text import TextArchitecture, TextConfig
from models.vision import VisionConfig
from models.xvlm import ModelConfig
from utils.flags import positive

TOKENS = CaptionTokens(prompt=(101, 1037, 3861, 1997), end=102, mask=103, pad=0)
DECODING = DecodingConfig(beams=3, min_length=19, max_length=20, no_repeat_ngram=3)


class AnewDecoder:
    """A decoder that keeps words and no states."""

    def __init__(self, model: CaptioningModel, memory: CrossMemory, mask_id: int):
        self.model, self.memory, self.mask_id = model, memory, mask_id
        self.said: Tensor

    def start(self, prompt: Tensor) -> Tensor:
        self.said = prompt
        return CaptionDecoder(self.model, self.memory, self.mask_id).start(prompt)

    def step(self, words: Tensor, rows: Tensor) -> Tensor:
        self.said = torch.cat([self.said.index_select(0, rows), words.unsqueeze(1)], dim=1)
        return CaptionDecoder(self.model, self.memory, self.mask_id).start(self.said)


def build(width: int, text_layers: int, fusion_layers: int, image_size: int) -> CaptioningModel:
    """A model of base size, or smaller for a check."""
    heads = max(1, width // 64)
    arch = TextArchitecture(vocab_size=30522, width=width, layers=text_layers, heads=heads, intermediate=4 * width)
    config = ModelConfig(
        vision=VisionConfig(image_size=image_size, width=width, depth=1, heads=heads),
        text=TextConfig(arch=arch),
        fusion=FusionConfig(layers=fusion_layers),
    )
    return CaptioningModel(config).eval()


def timed(decoder: Decoder, images: int) -> tuple[float, Generated]:
    """Seconds for captions of all images, and the captions."""
    prompt = torch.tensor(TOKENS.prompt).expand(images, -1)
    started = time.perf_counter()
    found = generate(decoder, prompt, TOKENS.end, DECODING)
    return time.perf_counter() - started, found


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=5, help="pairs of measurements")
    parser.add_argument("--images", type=int, default=32, help="images that are captioned together")
    parser.add_argument("--small", action="store_true", help="a small model: a check that it runs")
    flags = parser.parse_args(argv)
    torch.manual_seed(0)
    model = build(64, 2, 2, 64) if flags.small else build(768, 12, 6, 480)
    side = model.config.vision.image_size
    ratios = []
    for number in range(flags.rounds + 1):
        memory = model.images_memory(torch.randn(flags.images, 3, side, side))
        anew_s, expected = timed(AnewDecoder(model, memory, TOKENS.mask), flags.images)
        ours_s, found = timed(CaptionDecoder(model, memory, TOKENS.mask), flags.images)
        assert torch.equal(found.tokens, expected.tokens), "the captions differ"
        if number:  # the first round warms up
            ratios.append(anew_s / ours_s)
            sys.stdout.write(
                f"{flags.images} captions anew {anew_s:.2f} s, ours {ours_s:.2f} s, ratio {ratios[-1]:.2f}, same words\n"
            )
    sys.stdout.write(f"3 beams, 20 pieces, {side} px, {torch.get_num_threads()} threads\n")
    sys.stdout.write(f"ratio: {statistics.median(ratios):.2f}\n")


if __name__ == "__main__":
    main()
