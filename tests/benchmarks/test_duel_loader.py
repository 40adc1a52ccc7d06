"""Both loaders of the duel read the same tars."""

from __future__ import annotations

import json

import pytest

from benchmarks import duel_loader
from utils.commands import call

pytest.importorskip("open_clip_train.data", reason="open_clip is not installed")


@pytest.mark.slow
def test_both_loaders_read_every_image_and_are_compared(tmp_path, capsys, monkeypatch):
    loaded = []
    for name in ("our_images", "their_images"):
        load = getattr(duel_loader, name)
        monkeypatch.setattr(duel_loader, name, lambda *given, load=load: (loaded.append(load(*given)), loaded[-1])[1])
    results = tmp_path / "results.json"
    words = ["--images", "32", "--batch", "8", "--rounds", "1", "--json", str(results)]
    assert call(duel_loader.main, words, "duel_loader") == 0
    assert loaded == [32] * 4, "two loaders, each with a warm-up"
    assert capsys.readouterr().out.splitlines()[-1].startswith("ratio: ")
    assert json.loads(results.read_text())["rounds"][0].keys() == {"open_clip", "ours"}
