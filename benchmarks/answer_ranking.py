"""Ranking 3,129 candidate answers, base size: ``python -m benchmarks.answer_ranking``.

Ours (:func:`models.answer_ranking.rank_answers`) against the naive way: the k = 128 candidates of a question with the likeliest
first tokens, padded to the longest of them, 128 a call, for each of which the question's keys and values are projected anew.
Both answer the same questions in one process, in turn, with the same first step and fused attention, and must find the same
candidates in the same order with the same scores. Weights, questions and candidates are random: the time depends on their
sizes alone. The last line is the median ratio of the times.

The candidates' lengths are those of :data:`LENGTHS`, our assumption of what WordPiece makes of VQA v2's list: mostly one or two
pieces. Pieces are drawn with frequencies that fall off as those of words do, so that some candidates begin alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import torch

from models.answer_ranking import AnswerTree, RankedAnswers, Ranking, best_first, rank_answers
from models.blocks import BlockConfig
from models.fusion import FusionConfig
from models.packing import PackedTexts, Packing
from models.text import TextArchitecture, TextConfig
from models.vision import VisionConfig
from models.vqa import AnswerDecoder, VQAModelConfig, left_to_right
from utils.flags import positive

LENGTHS = {1: 2050, 2: 800, 3: 230, 4: 40, 5: 8, 6: 1}
"""Word pieces of an answer -> number of candidates, 3,129 in all."""

K = 128
QUESTION_TOKENS = (5, 14)
"""Fewest and most tokens of a question, [CLS] and [SEP] counted."""

PAD, CLS, SEP, FIRST_WORD = 0, 101, 102, 999


def build(width: int, layers: int, vocab: int) -> AnswerDecoder:
    """A decoder of base size, or smaller for a check."""
    heads = max(1, width // 64)
    arch = TextArchitecture(vocab_size=vocab, width=width, layers=1, heads=heads, intermediate=4 * width)
    config = VQAModelConfig(vision=VisionConfig(), text=TextConfig(arch=arch), fusion=FusionConfig(layers=layers))
    sizes = BlockConfig(width=width, heads=heads, intermediate=4 * width)
    return AnswerDecoder(config, arch, sizes).eval()


def draw_candidates(vocab: int, share: float, generator: torch.Generator) -> list[list[int]]:
    """Different answers; ``share`` of each length's number, but at least one."""
    frequency = 1 / torch.arange(10, 10 + vocab - FIRST_WORD, dtype=torch.float64)
    found: dict[tuple[int, ...], None] = {}
    for length, number in LENGTHS.items():
        goal = len(found) + max(1, round(number * share))
        while len(found) < goal:
            drawn = torch.multinomial(frequency, length, replacement=True, generator=generator)
            found[tuple((FIRST_WORD + drawn).tolist())] = None
    return [[CLS, *pieces, SEP] for pieces in found]


def naive_way(
    decoder: AnswerDecoder, questions: PackedTexts, listed: list[list[int]], k: int, ranking: Ranking
) -> RankedAnswers:
    """The first step for all questions; then, a question a call, k padded candidates with keys of their own."""
    start = torch.full((questions.packing.count, 1), CLS)
    mask = left_to_right(torch.ones_like(start, dtype=torch.bool))
    states = decoder.decode(start, mask, decoder.questions_memory(questions))
    opening = decoder.logits(states[:, 0]).log_softmax(dim=1)[:, [ids[1] for ids in listed]]
    order = best_first(opening, k, ranking)
    scores = opening.gather(1, order) * (ranking == "released")
    for row, places in enumerate(order.tolist()):
        width = max(len(listed[place]) for place in places)
        ids = torch.tensor([listed[place] + [PAD] * (width - len(listed[place])) for place in places])
        mask = ids != PAD
        own = decoder.questions_memory(questions.select(torch.full((len(places),), row)))
        logits = decoder.logits(decoder.decode(ids, left_to_right(mask), own))[:, :-1]
        each = logits.log_softmax(dim=2).gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
        scores[row] += each.masked_fill(~mask[:, 1:], 0).sum(dim=1)
    ranks = best_first(scores, k, ranking)
    return RankedAnswers(order.gather(1, ranks), scores.gather(1, ranks).softmax(dim=1))


def compare(found: RankedAnswers, expected: RankedAnswers) -> float:
    """The largest difference of two rankings' probabilities, which must be of the same candidates in the same order, but for
    neighbours that are equal to rounding."""
    difference = float((found.probabilities - expected.probabilities).abs().max())
    assert difference < 1e-5, f"probabilities differ by {difference}"
    for row in range(len(found.ids)):
        assert set(found.ids[row].tolist()) == set(expected.ids[row].tolist()), "other candidates"
        elsewhere = found.ids[row] != expected.ids[row]
        chance = dict(zip(expected.ids[row].tolist(), expected.probabilities[row].tolist(), strict=True))
        for place in elsewhere.nonzero()[:, 0].tolist():
            ours = chance[int(found.ids[row, place])]
            assert abs(ours - float(expected.probabilities[row, place])) < 1e-5 * ours, "another order"
    return difference


def draw_questions(number: int, width: int, generator: torch.Generator) -> PackedTexts:
    """Random states, of random lengths."""
    fewest, most = QUESTION_TOKENS
    packing = Packing.of(torch.randint(fewest, most + 1, (number,), generator=generator), most)
    return PackedTexts(packing.pack(torch.randn(number, most, width, generator=generator)), packing)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=5, help="pairs of measurements")
    parser.add_argument("--small", action="store_true", help="a small model and few candidates: a check that it runs")
    flags = parser.parse_args(argv)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    width, layers, vocab, share, number = (64, 2, 1200, 0.05, 2) if flags.small else (768, 6, 30522, 1.0, 4)
    k = 16 if flags.small else K
    decoder = build(width, layers, vocab)
    listed = draw_candidates(vocab, share, generator)
    tree = AnswerTree(listed)
    ratios = []
    for place in range(flags.rounds + 1):
        questions = draw_questions(number, width, generator)
        started = time.perf_counter()
        expected = naive_way(decoder, questions, listed, k, "likelihood")
        naive_s = time.perf_counter() - started
        started = time.perf_counter()
        found = rank_answers(decoder, questions, tree, k, "likelihood")
        ours_s = time.perf_counter() - started
        difference = compare(found, expected)
        if place:  # the first round warms up
            ratios.append(naive_s / ours_s)
            sys.stdout.write(
                f"{number} questions the naive way {1e3 * naive_s / number:.0f} ms each, ours {1e3 * ours_s / number:.0f} ms, "
                f"ratio {ratios[-1]:.2f}, probabilities differ by {difference:.1e}\n"
            )
    found = rank_answers(decoder, questions, tree, k, "released")
    compare(found, naive_way(decoder, questions, listed, k, "released"))
    pieces = sum(map(len, listed)) / len(listed) - 2
    sys.stdout.write(
        f"{len(listed)} candidates of {pieces:.2f} word pieces on average, k = {k}, {torch.get_num_threads()} threads\n"
    )
    sys.stdout.write(f"ratio: {statistics.median(ratios):.2f}\n")


if __name__ == "__main__":
    main()
