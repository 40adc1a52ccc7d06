"""``run.py tokenizer`` learns from all texts of all kinds of records, and reports files that it cannot read."""

from __future__ import annotations

import json

import pytest

from dataset.text.loading import load_tokenizer
from run import main
from tests.messages import OneLine

RECORDS = [
    {"image": "a.png", "caption": ["a crimson kite", "ein roter Drache"]},
    {"image": "a.png", "caption": {"en": "an ochre barn", "cs": ["žlutá stodola"]}},
    {"image": "a.png", "elems": [{"bb": [0, 0, 1, 1], "caption": "a turquoise boat", "attributes": ["wooden"]}]},
    {"image": "a.png", "question": "Which hue?", "answer": ["magenta", "pink"]},
    {"source_text": "hello", "target_text": "bonjour"},
    {"sentence": "both images differ", "label": True},
]
WORDS = "crimson drache ochre stodola turquoise wooden hue magenta pink hello bonjour differ"


def test_words_of_every_kind_of_record_are_known(tmp_path, capsys):
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(record) + "\n" for record in RECORDS) + "{\n")
    array = tmp_path / "b.json"
    array.write_text(json.dumps([{"text": "from an array", "image": "unseen"}, 3]))
    out = tmp_path / "tokenizer"
    assert main(["tokenizer", "--records", str(lines), str(array), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}: ")
    assert OneLine("13 texts", "9 records", "2 records", f"{lines}:7: bad json") in printed.splitlines()
    tokenizer = load_tokenizer(out)
    for word in [*WORDS.split(), "array"]:
        assert tokenizer.unk_token_id not in tokenizer(word).input_ids, word
    assert main(["tokenizer", "--records", str(lines), "--out", str(out)]) == 2
    assert OneLine("tokenizer", "--overwrite") in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("flags", "message"), [(["--keys", "title"], ("title", "6 records", "--keys")), (["--size", "7"], ("--size 7",))]
)
def test_mistakes_are_reported_in_one_line(tmp_path, capsys, flags, message):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    arguments = ["tokenizer", "--records", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "t"), *flags]
    assert main(arguments) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "reading" not in line and line]
    assert len(error) == 1
    assert error[0] == OneLine(*message)
