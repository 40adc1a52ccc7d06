"""Calls of a trained model, search and the page give the same results on the pretend device as on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pretend.differences import differences
from tests.pretend.tensor import recorded_waits
from tests.x2vlm.conftest import data, overrides, run, task  # noqa: F401 (fixtures)
from x2vlm import Model, load
from x2vlm.page.abilities import abilities_of

TEXTS = ["a small red star", "a circle"]
BOXES = [(2, 3, 20, 30), (10, 10, 40, 12)]
CALLS: dict[str, tuple[str, Callable[[Model, list[Path]], Any]]] = {
    "caption": ("captioning", lambda ours, images: ours.caption(images)),
    "answer": ("vqa", lambda ours, images: ours.answer(images, "what colour is the star?")),
    "answer with candidates": ("vqa", lambda ours, images: ours.answer(images, "what colour?", ["green", "red"])),
    "locate": ("pretrain", lambda ours, images: ours.locate(images, [TEXTS] * len(images))),
    "score": ("pretrain", lambda ours, images: list(map(vars, ours.score(images, [BOXES] * 4, [TEXTS] * 4)))),
    "match": ("pretrain", lambda ours, images: ours.match(images, TEXTS)),
    "embed": ("retrieval", lambda ours, images: [ours.embed_images(images), ours.embed_texts(TEXTS)]),
    "compare": ("nlvr", lambda ours, images: ours.compare(images[:2], TEXTS[0])),
    "explain": ("pretrain", lambda ours, images: ours.explain(images[0], TEXTS[0])),
}


@pytest.fixture
def on_both(run, pretend) -> Callable[[str], tuple[Model, Model]]:  # noqa: F811
    """The model of a run on the pretend device and on the CPU."""
    return lambda name: (load(run(name)), load(run(name), device="cpu"))


@pytest.mark.parametrize("call", CALLS)
def test_a_call_returns_the_same_as_on_the_cpu(call, on_both, data):  # noqa: F811
    of_task, ask = CALLS[call]
    ours, theirs = on_both(of_task)
    images = [data / f"images/{number}.png" for number in range(4)]
    with recorded_waits() as waits:
        found = ask(ours, images)
    assert waits, "the model must be on the pretend device"
    assert not differences(found, ask(theirs, images))


def test_a_search_finds_the_same_as_on_the_cpu(on_both, data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = [
        ours.index(data / "images", tmp_path / f"index {number}").search(TEXTS[0], top=5, rerank=5)
        for number, ours in enumerate(on_both("pretrain"))
    ]
    assert len(found[0]) == 5
    assert not differences(*found)


def test_the_page_answers_as_on_the_cpu(on_both, data):  # noqa: F811
    ours, theirs = map(abilities_of, on_both("pretrain"))
    files = [str(data / "images/3.png")]
    for ability, expected in zip(ours, theirs, strict=True):
        texts = ["2, 3, 20, 30" if "boxes" in box.label else TEXTS[0] for box in ability.texts]
        found, requested = ability.ask(files, texts), expected.ask(files, texts)
        if ability.name == "explain":
            # Colours are relative to the largest weight, which is hardly above the rounding error in this model. The weights are
            # compared above.
            assert [each.caption for each in found.pictures] == [each.caption for each in requested.pictures]
        else:
            assert not differences(found, requested, ability.name)
