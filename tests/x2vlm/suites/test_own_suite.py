"""The suite shown in docs/composition.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.x2vlm.suites.official import picture

PAGE = Path(__file__).parents[3] / "docs/composition.md"


def test_the_suite_on_the_page_measures_a_model(model, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    picture(tmp_path / "images/1.png")
    for kind in ("objects", "relations"):
        entries = {"a": {"image": "1.png", "caption": "a red star", "foil": "a blue star"}}
        (tmp_path / f"{kind}.json").write_text(json.dumps(entries), encoding="utf-8")
    suite = names["SUITE"]
    judged = suite.judge(model("pretrain"), suite.read(tmp_path, ()))
    found = suite.results(judged, draws=10)["sum"]
    assert [(result.name, result.chance) for result in found] == [
        ("objects: accuracy", 0.5),
        ("relations: accuracy", 0.5),
    ]
