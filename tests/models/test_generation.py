"""Beam search and sampling compared with exhaustive search and direct formulas, and cached keys and values compared with full
computation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from batches.base import IGNORE
from batches.captioning import LeftToRightText
from models.config import (
    DecodingConfig,
    FusionConfig,
    ModelConfig,
    SamplingConfig,
    TextArchitecture,
    TextConfig,
    VisionConfig,
)
from models.core.generation import beam_search, forbid, generate, sample, sample_token
from models.tasks.captioning import CaptionDecoder, CaptioningModel, CaptionTokens
from utils.errors import UserError

END, WORDS = 0, 4


class Markov:
    """A decoder whose next word depends on the last two words, which is enough to mislead greedy search."""

    def __init__(self, seed: int, words: int = WORDS):
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(words, words, words, generator=generator)
        self.last: Tensor
        self.calls = 0

    def start(self, prompt: Tensor) -> Tensor:
        self.last = prompt[:, -2:]
        return self._logits()

    def step(self, words: Tensor, sources: Tensor) -> Tensor:
        self.last = torch.stack([self.last[sources, 1], words], dim=1)
        return self._logits()

    def _logits(self) -> Tensor:
        self.calls += 1
        return self.table[self.last[:, 0], self.last[:, 1]]

    def log_likelihood(self, prompt: list[int], text: tuple[int, ...]) -> float:
        total, before = 0.0, prompt[-2:]
        for word in text:
            total += float(self.table[before[0], before[1]].log_softmax(0)[word])
            before = [before[1], word]
        return total


def words_of(row: Tensor) -> list[int]:
    return [word for word in row.tolist() if word != IGNORE]


def plain(**options) -> DecodingConfig:
    return DecodingConfig(**{"beams": 1, "min_length": 0, "no_repeat_ngram": 0, "max_length": 4, **options})


def best_of_all(decoder: Markov, prompt: list[int], longest: int, penalty: float) -> tuple[tuple[int, ...], float]:
    """The best of all texts that end or have the maximum length."""
    scored = {}
    for length in range(1, longest + 1):
        for text in itertools.product(range(1, WORDS), repeat=length - 1):
            endings = range(WORDS) if length == longest else [END]
            for last in endings:
                whole = (*text, last)
                scored[whole] = decoder.log_likelihood(prompt, whole) / ((5 + length) / 6) ** penalty
    best = max(scored, key=scored.__getitem__)
    return tuple(word for word in best if word != END), scored[best]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_finds_the_result_of_exhaustive_search(seed, penalty):
    decoder = Markov(seed)
    prompts = [[1, 2], [3, 1], [2, 2]]
    config = plain(beams=3**4, max_length=4, length_penalty=penalty)
    decoder.table = torch.cat([decoder.table, torch.full((WORDS, WORDS, 80), -torch.inf)], dim=2)
    decoder.table = torch.nn.functional.pad(decoder.table, (0, 0, 0, 80, 0, 80))
    found = beam_search(decoder, torch.tensor(prompts), END, config)
    decoder = Markov(seed)
    for row, prompt in enumerate(prompts):
        words, score = best_of_all(decoder, prompt, 4, penalty)
        assert words_of(found.tokens[row]) == list(words)
        assert math.isclose(float(found.score[row]), score, rel_tol=1e-5)


def test_a_single_beam_chooses_the_likeliest_word_each_time():
    decoder = Markov(0)
    found = beam_search(decoder, torch.tensor([[1, 2]]), END, plain())
    before, expected = [1, 2], []
    while len(expected) < 4:
        word = int(decoder.table[before[0], before[1]].argmax())
        if word == END:
            break
        expected.append(word)
        before = [before[1], word]
    assert words_of(found.tokens[0]) == expected


def test_the_search_stops_when_no_hypothesis_can_improve():
    decoder = Markov(0)
    decoder.table[:] = torch.tensor([9.0, 0.0, 0.0, 0.0])
    found = beam_search(decoder, torch.tensor([[1, 2], [2, 1]]), END, plain(beams=3, max_length=50))
    assert decoder.calls == 1
    assert found.ended.all()
    assert (found.tokens == IGNORE).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_text_does_not_depend_on_its_batch(seed):
    prompts = torch.tensor([[1, 2], [3, 1], [2, 3]])
    chances = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed))
    for config in (plain(beams=2, max_length=6), plain(max_length=6, sampling=SamplingConfig())):
        together = generate(Markov(seed), prompts, END, config, chances)
        for row in range(3):
            one = slice(row, row + 1)
            alone = generate(Markov(seed), prompts[one], END, config, chances[one])
            assert torch.equal(alone.tokens[0], together.tokens[row])
            torch.testing.assert_close(alone.score[0], together.score[row])


def test_no_n_gram_is_repeated_and_no_text_ends_early():
    decoder = Markov(0)
    decoder.table[:] = torch.tensor([5.0, 9.0, 8.0, 1.0])
    text = words_of(beam_search(decoder, torch.tensor([[1, 1]]), END, plain(max_length=9, no_repeat_ngram=2)).tokens[0])
    runs = list(itertools.pairwise(text))
    assert text[:2] == [1, 1]
    assert len(runs) == len(set(runs))
    decoder.table[:] = torch.tensor([9.0, 8.0, 1.0, 0.0])
    for min_length in (0, 3):
        found = beam_search(decoder, torch.tensor([[1, 1]]), END, plain(max_length=9, min_length=min_length))
        assert len(words_of(found.tokens[0])) == min_length


@pytest.mark.parametrize(("size", "banned"), [(1, {1, 2, 3}), (2, {2, 3}), (3, {3}), (4, set())])
def test_words_that_would_repeat_an_n_gram_are_forbidden(size, banned):
    likelihood = torch.zeros(1, 1, 5)
    message = torch.tensor([[[1, 2, 1, 3, 2, 1]]])
    if size == 3:
        message = torch.tensor([[[2, 1, 3, 2, 1]]])
    forbid(likelihood, message, END, plain(no_repeat_ngram=size))
    assert set(likelihood[0, 0].isinf().nonzero().flatten().tolist()) == banned


def test_words_are_drawn_as_often_as_they_are_likely():
    likelihood = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(1000, -1)
    chance = (torch.arange(1000) + 0.5) / 1000
    drawn = sample_token(likelihood, SamplingConfig(), chance)
    assert drawn.bincount(minlength=4).tolist() == [500, 300, 150, 50]
    # Two words are left as the likeliest words that together reach 0.7, with probabilities 5/8 and 3/8.
    assert sample_token(likelihood, SamplingConfig(top_p=0.7), chance).bincount(minlength=4).tolist() == [
        625,
        375,
        0,
        0,
    ]
    colder = sample_token(likelihood, SamplingConfig(temperature=0.5), chance).bincount(minlength=4)
    assert colder[0] == round(1000 * 0.25 / (0.25 + 0.09 + 0.0225 + 0.0025))
    assert sample_token(likelihood[:1], SamplingConfig(), torch.tensor([1.0])).item() == 3


class NoFloatSums(TorchDispatchMode):
    """Raises an error for operations that are only non-deterministic on a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not ("cumsum" in str(func) and args[0].is_floating_point()), (
            "this operation is not deterministic on a GPU"
        )
        return func(*args, **(kwargs or {}))


def test_words_are_drawn_by_deterministic_algorithms():
    torch.manual_seed(0)
    likelihood, chance = torch.randn(200, 3000).log_softmax(dim=1), torch.rand(200)
    with NoFloatSums():
        drawn = sample_token(likelihood, SamplingConfig(), chance)
        with pytest.raises(AssertionError, match="not deterministic"):
            likelihood.cumsum(dim=1)
    probability, word = likelihood.double().exp().sort(dim=1, descending=True)
    reached = probability.cumsum(dim=1)
    position = (reached <= chance.double().unsqueeze(1) * reached[:, -1:]).sum(dim=1)
    assert (drawn == word.gather(1, position.unsqueeze(1)).squeeze(1)).float().mean() > 0.99


def test_a_drawn_text_is_scored_by_its_likelihood():
    decoder = Markov(3)
    config = plain(max_length=5, sampling=SamplingConfig(temperature=2.0))
    chances = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
    found = sample(decoder, torch.tensor([[1, 2]]).expand(20, -1), END, config, chances)
    assert found.ended.any()
    assert not found.ended.all()
    for row in range(20):
        text = (*words_of(found.tokens[row]), *([END] if found.ended[row] else []))
        assert math.isclose(float(found.score[row]), decoder.log_likelihood([1, 2], text), rel_tol=1e-4)


def test_sampling_has_a_single_hypothesis():
    with pytest.raises(ValueError, match="set beams to 1"):
        DecodingConfig(sampling=SamplingConfig())


TOKENS = CaptionTokens((2, 9, 10), end=3, mask=4, pad=0)


def tiny(family: str = "bert") -> CaptioningModel:
    torch.manual_seed(0)
    text = TextArchitecture(
        family=family,
        vocab_size=30,
        width=16,
        layers=2,
        heads=2,
        intermediate=32,
        max_positions=40,
        pad_id=1 if family == "roberta" else 0,
        init_std=0.3,
    )
    vision = VisionConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2)
    return CaptioningModel(ModelConfig(vision=vision, text=TextConfig(arch=text), fusion=FusionConfig(layers=2))).eval()


@pytest.mark.parametrize("family", ["bert", "roberta"])
@torch.no_grad()
def test_cached_keys_and_values_give_the_logits_of_full_computation(family):
    """The logits of each step equal the logits for the whole text so far, as in training, even if hypotheses are reordered."""
    model = tiny(family)
    memory = model.project_images(torch.randn(2, 3, 16, 16))
    decoder = CaptionDecoder(model, memory, TOKENS.mask)
    texts = [list(TOKENS.prompt) for _ in range(2)]
    logits = decoder.start(torch.tensor(texts))
    steps = [([5, 6, 7, 8], [0, 0, 1, 1]), ([11, 12, 13, 14], [1, 0, 3, 3]), ([15, 16, 17, 18], [0, 1, 2, 3])]
    for words, rows in steps:
        logits = decoder.step(torch.tensor(words), torch.tensor(rows))
        texts = [[*texts[row], word] for word, row in zip(words, rows, strict=True)]
        with_next = [[*text, 20] for text in texts]
        last = [[len(text)] for text in texts]
        anew = LeftToRightText.of(with_next, last, TOKENS.mask, TOKENS.pad)
        expected = model.logits(anew, memory)[:, 0]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_caption_has_the_same_likelihood_as_in_training():
    """In training, each [MASK] predicts its word from the same tokens as in generation."""
    model = tiny()
    memory = model.project_images(torch.randn(3, 3, 16, 16))
    config = plain(max_length=6, sampling=SamplingConfig())
    found = model.generate(memory, TOKENS, config, torch.rand(3, 6))
    texts = [
        [*TOKENS.prompt, *words_of(row), *([TOKENS.end] if ended else [])]
        for row, ended in zip(found.tokens, found.ended, strict=True)
    ]
    message = [list(range(len(TOKENS.prompt), len(text))) for text in texts]
    text = LeftToRightText.of(texts, message, TOKENS.mask, TOKENS.pad)
    likelihood = model.logits(text, memory).log_softmax(dim=2)
    counts = text.labels != IGNORE
    each = likelihood.gather(2, text.labels.clamp(min=0).unsqueeze(2)).squeeze(2)
    torch.testing.assert_close((each * counts).sum(dim=1), found.score, rtol=1e-4, atol=1e-4)


def test_a_mask_is_hidden_from_later_tokens():
    text = LeftToRightText.of([[2, 9, 5, 6, 3]], [[2, 4]], mask_id=4, pad_id=0)
    assert text.ids.tolist() == [[2, 9, 4, 5, 6, 4, 3]]
    assert text.positions.tolist() == [[0, 1, 2, 2, 3, 4, 4]]
    assert text.mask_indices.tolist() == [[2, 5]]
    assert text.labels.tolist() == [[5, 3]]
    assert text.mask[0, :, 2].tolist() == [False, False, True, False, False, False, False]
    assert text.mask[0, 5].tolist() == [True, True, False, True, True, True, False]


def test_an_encoder_without_a_mask_per_token_is_rejected(tmp_path):
    from transformers import DistilBertConfig

    DistilBertConfig(vocab_size=20, dim=16, n_layers=1, n_heads=2, hidden_dim=32).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="does not support a mask per token"):
        CaptioningModel(
            ModelConfig(
                vision=VisionConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2),
                text=TextConfig(encoder=str(tmp_path)),
            )
        )
