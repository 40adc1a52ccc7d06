"""Self-critical training raises the reward, and its loss is the estimate that it should be."""

from __future__ import annotations

import torch

from batches.captioning import CaptioningBatch, LeftToRightText
from models.tasks.captioning import CaptioningModel
from models.tasks.self_critical import SelfCriticalConfig, SelfCriticalModel
from tests.models.test_generation import TOKENS, tiny


def critic(reward, samples: int = 4) -> SelfCriticalModel:
    model = SelfCriticalModel(tiny().config)
    model.load_state_dict(tiny().state_dict())
    model.set_reward(reward, TOKENS, SelfCriticalConfig(samples=samples, max_length=6))
    return model.train()


def batch(images: int = 3) -> CaptioningBatch:
    torch.manual_seed(1)
    text = LeftToRightText.of([[*TOKENS.prompt, 5, 3]] * images, [[3, 4]] * images, TOKENS.mask, TOKENS.pad)
    references = tuple((f"image {number}",) for number in range(images))
    return CaptioningBatch(torch.randn(images, 3, 16, 16), text, references, torch.arange(images) < images - 1)


def test_reward_rises():
    """A word that is rewarded is said more and more often."""

    def sevens(said, references):
        return [float(words.count(7)) for words in said]

    model, given, rewards = critic(sevens), batch(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(40):
        torch.manual_seed(step)
        terms = model(given)
        rewards.append(float(terms["reward"].total / model.counts(given)["reward"]))
        optimizer.zero_grad()
        terms["policy"].total.backward()
        optimizer.step()
    assert sum(rewards[-5:]) > 3 * max(0.2, sum(rewards[:5]))


def test_captions_meet_the_references_of_their_own_image():
    seen = []

    def remember(said, references):
        seen.extend(references)
        assert all(TOKENS.end not in words[:-1] for words in said)
        return [0.0] * len(said)

    critic(remember, samples=2)(batch())
    assert seen == [(f"image {number}",) for number in (0, 0, 1, 1, 2, 2)]


def test_where_all_captions_are_as_good_nothing_is_learned():
    model, given = critic(lambda said, references: [3.0] * len(said)), batch()
    terms = model(given)
    terms["policy"].total.backward()
    assert all(p.grad is None or not p.grad.abs().max() for p in model.parameters())
    assert terms["reward"].weight == 0
    assert float(terms["reward"].total / model.counts(given)["reward"]) == 3.0


def test_the_loss_is_each_likelihood_times_how_much_better_than_the_others_it_is():
    worth = torch.tensor([[1.0, 0.0, 2.0], [0.0, 4.0, 2.0], [9.0, 9.0, 0.0]])
    model, given = critic(lambda said, references: worth.flatten().tolist(), samples=3).eval(), batch()
    torch.manual_seed(0)
    policy = model(given)["policy"].total
    torch.manual_seed(0)
    memory = model.project_images(given.pixels)
    likelihood = model._sample(memory).score.view(3, 3)
    expected = 0.0
    for image in range(2):  # the third does not count
        for sample in range(3):
            others = (worth[image].sum() - worth[image, sample]) / 2
            expected -= (worth[image, sample] - others) * likelihood[image, sample] / 3
    torch.testing.assert_close(policy, expected, rtol=1e-4, atol=1e-4)


def test_its_weights_are_those_of_captioning():
    ours = SelfCriticalModel(tiny().config).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in CaptioningModel(tiny().config).state_dict().items()
    }


def test_likelihoods_are_those_at_the_temperature_of_the_draw():
    model = critic(lambda said, references: [0.0] * len(said)).eval()
    model.critic = SelfCriticalConfig(samples=2, max_length=6, temperature=0.5)
    with torch.no_grad():
        memory = model.project_images(batch(1).pixels)
        torch.manual_seed(0)
        said = model._captions(model._sample(memory))
        found = model._likelihood(said, memory)
        for words, likelihood in zip(said, found, strict=True):
            expected = 0.0
            for place, word in enumerate(words):
                before = [*TOKENS.prompt, *words[: place + 1]]
                text = LeftToRightText.of([before], [[len(before) - 1]], TOKENS.mask, TOKENS.pad)
                chances = (2 * model.logits(text, memory)[0, 0]).log_softmax(dim=0)
                expected += float(chances[word])
            assert abs(float(likelihood) - expected) < 1e-4
