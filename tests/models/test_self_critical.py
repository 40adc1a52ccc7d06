"""Self-critical training increases the reward, and its loss equals the formula."""

from __future__ import annotations

import torch

from batches.captioning import CaptioningBatch, LeftToRightText
from engine.precision import Precision
from models.config import SelfCriticalConfig
from models.tasks.captioning import CaptioningModel
from models.tasks.self_critical import SelfCriticalModel
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


def test_the_reward_rises():
    """A rewarded word becomes more and more frequent."""

    def sevens(message, references):
        return [float(words.count(7)) for words in message]

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


def with_gradient(precision: str) -> set[str]:
    """Names of the parameters that have a gradient after a step."""
    model = critic(lambda captions, references: [float(caption.count(7)) for caption in captions])
    torch.manual_seed(0)
    with Precision(precision, torch.device("cpu")).autocast():
        policy = model(batch())["policy"].total
    policy.backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_in_bf16_every_parameter_has_a_gradient():
    """Captions are sampled without gradients under the same autocast. Before torch 2.11, autocast reused the bf16 copies of the
    weights from there, which have no gradients."""
    assert with_gradient("bf16") == with_gradient("fp32") != set()


def test_captions_are_scored_with_the_references_of_their_own_image():
    seen = []

    def remember(message, references):
        seen.extend(references)
        assert all(TOKENS.end not in words[:-1] for words in message)
        return [0.0] * len(message)

    critic(remember, samples=2)(batch())
    assert seen == [(f"image {number}",) for number in (0, 0, 1, 1, 2, 2)]


def test_if_all_captions_are_equally_good_the_gradient_is_zero():
    model, given = critic(lambda message, references: [3.0] * len(message)), batch()
    terms = model(given)
    terms["policy"].total.backward()
    assert all(p.grad is None or not p.grad.abs().max() for p in model.parameters())
    assert terms["reward"].weight == 0
    assert float(terms["reward"].total / model.counts(given)["reward"]) == 3.0


def test_the_loss_weights_each_likelihood_by_its_advantage_over_the_others():
    worth = torch.tensor([[1.0, 0.0, 2.0], [0.0, 4.0, 2.0], [9.0, 9.0, 0.0]])
    model, given = critic(lambda message, references: worth.flatten().tolist(), samples=3).eval(), batch()
    torch.manual_seed(0)
    policy = model(given)["policy"].total
    torch.manual_seed(0)
    memory = model.project_images(given.pixels)
    likelihood = model._sample(memory).score.view(3, 3)
    expected = 0.0
    for image in range(2):  # the third one is invalid
        for sample in range(3):
            others = (worth[image].sum() - worth[image, sample]) / 2
            expected -= (worth[image, sample] - others) * likelihood[image, sample] / 3
    torch.testing.assert_close(policy, expected, rtol=1e-4, atol=1e-4)


def test_self_critical_training_uses_the_parameters_of_captioning():
    ours = SelfCriticalModel(tiny().config).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in CaptioningModel(tiny().config).state_dict().items()
    }


def test_likelihoods_use_the_sampling_temperature():
    model = critic(lambda message, references: [0.0] * len(message)).eval()
    model.critic = SelfCriticalConfig(samples=2, max_length=6, temperature=0.5)
    with torch.no_grad():
        memory = model.project_images(batch(1).pixels)
        torch.manual_seed(0)
        message = model._captions(model._sample(memory))
        found = model._likelihood(message, memory)
        for words, likelihood in zip(message, found, strict=True):
            expected = 0.0
            for position, word in enumerate(words):
                before = [*TOKENS.prompt, *words[: position + 1]]
                text = LeftToRightText.of([before], [[len(before) - 1]], TOKENS.mask, TOKENS.pad)
                chances = (2 * model.logits(text, memory)[0, 0]).log_softmax(dim=0)
                expected += float(chances[word])
            assert abs(float(likelihood) - expected) < 1e-4
