"""Speed of caption generation with and without a KV cache, for the base model: ``python -m benchmarks.captioning``."""

from __future__ import annotations

import statistics
import sys
import time

import torch
from torch import Tensor

from models.config import DecodingConfig, FusionConfig, ModelConfig, TextArchitecture, TextConfig, VisionConfig
from models.core.generation import Decoder, Generated, generate
from models.core.keys_values import KeysValues
from models.tasks.captioning import CaptionDecoder, CaptioningModel, CaptionTokens
from utils.commands import call
from utils.flags import Positive
from utils.image_size import in_words, sides_of

TOKENS = CaptionTokens(prompt=(101, 1037, 3861, 1997), end=102, mask=103, pad=0)
DECODING = DecodingConfig(beams=3, min_length=19, max_length=20, no_repeat_ngram=3)


class UncachedDecoder:
    """A decoder that stores tokens instead of states, and recomputes the states of all tokens in every step."""

    def __init__(self, model: CaptioningModel, images: KeysValues, mask_id: int):
        self.model, self.images, self.mask_id = model, images, mask_id
        self.tokens: Tensor

    def start(self, prompt: Tensor) -> Tensor:
        self.tokens = prompt
        return CaptionDecoder(self.model, self.images, self.mask_id).start(prompt)

    def step(self, words: Tensor, rows: Tensor) -> Tensor:
        self.tokens = torch.cat([self.tokens.index_select(0, rows), words.unsqueeze(1)], dim=1)
        return CaptionDecoder(self.model, self.images, self.mask_id).start(self.tokens)


def build(width: int, text_layers: int, fusion_layers: int, image_size: int) -> CaptioningModel:
    """Builds a model with random weights."""
    heads = max(1, width // 64)
    arch = TextArchitecture(vocab_size=30522, width=width, layers=text_layers, heads=heads, intermediate=4 * width)
    config = ModelConfig(
        vision=VisionConfig(image_size=image_size, width=width, depth=1, heads=heads),
        text=TextConfig(arch=arch),
        fusion=FusionConfig(layers=fusion_layers),
    )
    return CaptioningModel(config).eval()


def timed(decoder: Decoder, images: int) -> tuple[float, Generated]:
    """Captions ``images`` images. Returns the time in seconds and the captions."""
    prompt = torch.tensor(TOKENS.prompt).expand(images, -1)
    started = time.perf_counter()
    captions = generate(decoder, prompt, TOKENS.end, DECODING)
    return time.perf_counter() - started, captions


@torch.no_grad()
def main(*, rounds: Positive = 5, images: int = 32, small: bool = False) -> int:
    """Speed of caption generation with and without a KV cache, for the base model.

    The two variants alternate in one process: beam search with 3 beams and 20 word pieces per caption. Both project each image
    once and run the same search; without the cache, every step recomputes all previous tokens. Since weights are random, captions
    are forced to 20 pieces. Both must generate the same words. The last line is the median ratio of the times.

    Args:
        rounds: number of pairs of measurements.
        images: number of images per batch.
        small: smoke test with a small model.

    Examples:
        python -m benchmarks.captioning
    """
    torch.manual_seed(0)
    model = build(64, 2, 2, 64) if small else build(768, 12, 6, 480)
    sides = sides_of(model.config.vision.image_size)
    ratios = []
    for number in range(rounds + 1):
        keys_values = model.project_images(torch.randn(images, 3, *sides))
        uncached_s, expected = timed(UncachedDecoder(model, keys_values, TOKENS.mask), images)
        cached_s, captions = timed(CaptionDecoder(model, keys_values, TOKENS.mask), images)
        assert torch.equal(captions.tokens, expected.tokens), "the captions differ"
        if number:  # the first round warms up
            ratios.append(uncached_s / cached_s)
            sys.stdout.write(
                f"{images} captions uncached {uncached_s:.2f} s, cached {cached_s:.2f} s, "
                f"ratio {ratios[-1]:.2f}, same words\n"
            )
    sys.stdout.write(f"3 beams, 20 pieces, {in_words(sides)}, {torch.get_num_threads()} threads\n")
    sys.stdout.write(f"ratio: {statistics.median(ratios):.2f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.captioning"))
