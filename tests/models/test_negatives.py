"""Sampling of hard negatives."""

import pytest
import torch

from models.config import AligningConfig
from models.core.contrastive import ContrastiveHead
from models.core.losses import EmbeddedPairs
from models.core.matching import MatchingHead, allowed_negatives, matching_count, negative_weights, sample


def every_pair(count: int) -> torch.Tensor:
    """A mask that allows every pair to be negatives of each other."""
    return allowed_negatives(torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.int64), "negative")


def test_an_example_is_never_its_own_negative():
    torch.manual_seed(0)
    similarity = torch.full((6, 6), -30.0).fill_diagonal_(30.0)
    allowed = every_pair(6)
    for _ in range(200):
        assert (sample(negative_weights(similarity, allowed)) != torch.arange(6)).all()


def test_samples_follow_the_weights():
    torch.manual_seed(0)
    weights = torch.tensor([[0.0, 1.0, 3.0, 0.0]]).expand(20000, 4)
    sampled = sample(weights)
    share = sampled.bincount(minlength=4) / len(sampled)
    torch.testing.assert_close(share, torch.tensor([0.0, 0.25, 0.75, 0.0]), atol=0.02, rtol=0)


def test_an_image_samples_texts_and_a_text_samples_images_by_their_similarity():
    """Image n is similar to text n + 1, so text n is similar to image n - 1. The most similar ones are sampled three times as
    often as others."""
    similarity = torch.eye(3).roll(1, dims=1) * torch.tensor(3.0).log()
    torch.manual_seed(0)
    head, contrastive = MatchingHead(4), ContrastiveHead(AligningConfig(embed_dim=3, temperature=0.5), 4, 4)
    every = torch.ones(3, dtype=torch.bool)
    pairs = EmbeddedPairs(
        torch.eye(3), contrastive.temperature.item() * similarity.t(), every, torch.arange(3), "negative"
    )
    sampled = [head.sample_negatives(contrastive, pairs, every_pair(3)) for _ in range(1000)]
    others = torch.arange(3).expand(1000, 3)
    for found, step in zip(zip(*sampled, strict=True), (-1, 1), strict=True):  # images, then texts
        index = torch.stack(found)
        assert (index != others).all()
        assert (index == (others + step) % 3).float().mean(dim=0).tolist() == pytest.approx([0.75] * 3, abs=0.05)


def test_a_negative_text_is_drawn_from_the_batch_and_the_pairs_hard_negatives():
    """The hard negatives are as similar as the text of the pair. The second hard negative of the last pair is invalid."""
    torch.manual_seed(0)
    head, contrastive = MatchingHead(4), ContrastiveHead(AligningConfig(embed_dim=3, temperature=0.5), 4, 4)
    every = torch.ones(3, dtype=torch.bool)
    hard_valid = torch.tensor([[True, True], [True, True], [True, False]])
    pairs = EmbeddedPairs(
        *(torch.eye(3), torch.eye(3), every, torch.arange(3), "negative"),
        hard_negatives=torch.eye(3).unsqueeze(1).expand(3, 2, 3),
        hard_valid=hard_valid,
    )
    sampled = [head.sample_negatives(contrastive, pairs, every_pair(3)) for _ in range(1000)]
    images, texts = (torch.stack(found) for found in zip(*sampled, strict=True))
    assert (
        images < 3
    ).all()  # 0, 1, 2 are the texts of the batch; 3 and 4, 5 and 6, 7 and 8 are the hard negatives of the three pairs
    shares = torch.stack([texts[:, pair].bincount(minlength=9) / 1000 for pair in range(3)])
    one = torch.tensor(
        2.0
    ).exp()  # for a hard negative: similarity 1 divided by the temperature, compared with 0 for other texts
    expected = torch.zeros(3, 9)
    for pair, hard in enumerate(hard_valid):
        expected[pair, :3] = 1 - torch.eye(3)[pair]
        expected[pair, 3 + 2 * pair : 5 + 2 * pair] = one * hard
    torch.testing.assert_close(shares, expected / expected.sum(dim=1, keepdim=True), atol=0.05, rtol=0)


def test_a_batch_of_one_has_no_negative_and_does_not_fail():
    allowed = every_pair(1)
    assert not allowed.any()
    assert sample(negative_weights(torch.zeros(1, 1), allowed)).shape == (1,)


@pytest.mark.parametrize("same_group", ["negative", "ignore", "positive"])
@pytest.mark.parametrize("valid", [[1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]])
def test_the_matching_loss_counts_three_pairs_for_each_pair_with_a_negative(valid, same_group):
    arguments = torch.tensor(valid, dtype=torch.bool), torch.tensor([7, 8, 9, 7]), same_group
    assert matching_count(*arguments) == 3 * allowed_negatives(*arguments).any(dim=1).sum()


def test_invalid_examples_and_equal_texts_are_not_sampled():
    torch.manual_seed(0)
    valid = torch.tensor([True, True, False, True])
    allowed = allowed_negatives(valid, torch.tensor([5, 5, 6, 7]), "ignore")
    assert allowed.nonzero().tolist() == [[0, 3], [1, 3], [3, 0], [3, 1]]
    for _ in range(50):
        sampled = sample(negative_weights(torch.zeros(4, 4), allowed))
        assert sampled[[0, 1]].tolist() == [3, 3]
        assert sampled[2] == 2, "an invalid text must not be replaced by a longer one"
        assert sampled[3] in (0, 1)
