"""Speed of ranking 3,129 candidate answers with the base model: ``python -m benchmarks.answer_ranking``."""

from __future__ import annotations

import statistics
import sys
import time

import torch

from models.config import BlockConfig, FusionConfig, Ranking, TextArchitecture, TextConfig, VisionConfig, VQAModelConfig
from models.core.packing import PackedTexts, Packing
from models.inference.answer_ranking import AnswerTree, RankedAnswers, best_first, rank_answers
from models.tasks.vqa import AnswerDecoder, left_to_right
from utils.commands import call
from utils.flags import Positive

LENGTHS = {1: 2050, 2: 800, 3: 230, 4: 40, 5: 8, 6: 1}
"""Maps each length of an answer, in word pieces, to the number of candidates of this length (3,129 in total)."""

K = 128
QUESTION_TOKENS = (5, 14)
"""Min and max number of tokens in a question, including [CLS] and [SEP]."""

PAD, CLS, SEP, FIRST_WORD = 0, 101, 102, 999


def build(width: int, layers: int, vocab: int) -> AnswerDecoder:
    """Builds a decoder with random weights."""
    heads = max(1, width // 64)
    arch = TextArchitecture(vocab_size=vocab, width=width, layers=1, heads=heads, intermediate=4 * width)
    config = VQAModelConfig(vision=VisionConfig(), text=TextConfig(arch=arch), fusion=FusionConfig(layers=layers))
    sizes = BlockConfig(width=width, heads=heads, intermediate=4 * width)
    return AnswerDecoder(config, arch, sizes).eval()


def draw_candidates(vocab: int, fraction: float, generator: torch.Generator) -> list[list[int]]:
    """Draws distinct answers as token ids: a ``fraction`` of :data:`LENGTHS`, at least one per length."""
    frequency = 1 / torch.arange(10, 10 + vocab - FIRST_WORD, dtype=torch.float64)
    answers: dict[tuple[int, ...], None] = {}
    for length, number in LENGTHS.items():
        goal = len(answers) + max(1, round(number * fraction))
        while len(answers) < goal:
            pieces = torch.multinomial(frequency, length, replacement=True, generator=generator)
            answers[tuple((FIRST_WORD + pieces).tolist())] = None
    return [[CLS, *answer, SEP] for answer in answers]


def rank_naively(
    decoder: AnswerDecoder, questions: PackedTexts, candidates: list[list[int]], k: int, ranking: Ranking
) -> RankedAnswers:
    """Ranks candidates with a straightforward implementation: the first step for all questions at once, then one call per
    question on k padded candidates, each with its own keys and values of the question."""
    start = torch.full((questions.packing.count, 1), CLS)
    mask = left_to_right(torch.ones_like(start, dtype=torch.bool))
    states = decoder.decode(start, mask, decoder.project_texts(questions))
    opening = decoder.logits(states[:, 0]).log_softmax(dim=1)[:, [ids[1] for ids in candidates]]
    order = best_first(opening, k, ranking)
    scores = opening.gather(1, order) * (ranking == "released")
    for question, places in enumerate(order.tolist()):
        width = max(len(candidates[place]) for place in places)
        ids = torch.tensor([candidates[place] + [PAD] * (width - len(candidates[place])) for place in places])
        mask = ids != PAD
        keys_values = decoder.project_texts(questions.select(torch.full((len(places),), question)))
        logits = decoder.logits(decoder.decode(ids, left_to_right(mask), keys_values))[:, :-1]
        token_scores = logits.log_softmax(dim=2).gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
        scores[question] += token_scores.masked_fill(~mask[:, 1:], 0).sum(dim=1)
    ranks = best_first(scores, k, ranking)
    return RankedAnswers(order.gather(1, ranks), scores.gather(1, ranks).softmax(dim=1))


def compare(ranked: RankedAnswers, expected: RankedAnswers) -> float:
    """Returns the largest difference between the probabilities of two rankings.

    Both rankings must contain the same candidates in the same order, except for neighbours whose scores are equal up to rounding.
    """
    difference = float((ranked.probabilities - expected.probabilities).abs().max())
    assert difference < 1e-5, f"probabilities differ by {difference}"
    for ids, expected_ids, probabilities in zip(ranked.ids, expected.ids, expected.probabilities, strict=True):
        assert set(ids.tolist()) == set(expected_ids.tolist()), "the candidates differ"
        by_id = dict(zip(expected_ids.tolist(), probabilities.tolist(), strict=True))
        for place in (ids != expected_ids).nonzero()[:, 0].tolist():
            ours = by_id[int(ids[place])]
            assert abs(ours - float(probabilities[place])) < 1e-5 * ours, "the order differs"
    return difference


def draw_questions(number: int, width: int, generator: torch.Generator) -> PackedTexts:
    """Draws random states for questions of random lengths."""
    fewest, most = QUESTION_TOKENS
    packing = Packing.of(torch.randint(fewest, most + 1, (number,), generator=generator), most)
    return PackedTexts(packing.pack(torch.randn(number, most, width, generator=generator)), packing)


@torch.no_grad()
def main(*, rounds: Positive = 5, small: bool = False) -> int:
    """Speed of ranking 3,129 candidate answers with the base model.

    The benchmark compares models.inference.answer_ranking.rank_answers with a naive baseline. The baseline takes the k = 128
    candidates of a question with the most probable first tokens, pads them to the longest, decodes them in one call, and projects
    the question's keys and values for each candidate. The two alternate on the same questions in one process, with the same first
    step and fused attention, and must return the same candidates in the same order with the same scores. Weights, questions and
    candidates are random, because the time depends only on sizes. The last line is the median ratio of the times.

    Candidates have the lengths in LENGTHS, our assumption about VQA v2's list in WordPiece: mostly one or two pieces. Pieces are
    sampled with realistic word frequencies, so that some candidates share their first pieces.

    Args:
        rounds: number of pairs of measurements.
        small: smoke test with a small model and few candidates.

    Examples:
        python -m benchmarks.answer_ranking
    """
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    width, layers, vocab, fraction, number = (64, 2, 1200, 0.05, 2) if small else (768, 6, 30522, 1.0, 4)
    k = 16 if small else K
    decoder = build(width, layers, vocab)
    candidates = draw_candidates(vocab, fraction, generator)
    tree = AnswerTree(candidates)
    ratios = []
    for round_ in range(rounds + 1):
        questions = draw_questions(number, width, generator)
        started = time.perf_counter()
        expected = rank_naively(decoder, questions, candidates, k, "likelihood")
        naive_s = time.perf_counter() - started
        started = time.perf_counter()
        ranked = rank_answers(decoder, questions, tree, k, "likelihood")
        ours_s = time.perf_counter() - started
        difference = compare(ranked, expected)
        if round_:  # the first round warms up
            ratios.append(naive_s / ours_s)
            sys.stdout.write(
                f"{number} questions: baseline {1e3 * naive_s / number:.0f} ms each, ours {1e3 * ours_s / number:.0f} "
                f"ms, ratio {ratios[-1]:.2f}, probabilities differ by {difference:.1e}\n"
            )
    ranked = rank_answers(decoder, questions, tree, k, "released")
    compare(ranked, rank_naively(decoder, questions, candidates, k, "released"))
    pieces = sum(map(len, candidates)) / len(candidates) - 2
    sys.stdout.write(
        f"{len(candidates)} candidates of {pieces:.2f} word pieces on average, k = {k}, {torch.get_num_threads()} threads\n"
    )
    sys.stdout.write(f"ratio: {statistics.median(ratios):.2f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.answer_ranking"))
