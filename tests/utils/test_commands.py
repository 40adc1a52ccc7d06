"""A command is a function: its flags, its help, its errors, and the way back to its words."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from tests.messages import OneLine
from utils.commands import FLAGS, STANDARD_INPUT, argv_of, call
from utils.flags import SEVERAL, Override, Positive, Share, read_by, sentence

CALLS: list[dict[str, object]] = []


@FLAGS
@dataclass(frozen=True, kw_only=True)
class Place:
    """Where.

    Attributes:
        gpus: number of GPUs, which is
            explained in two lines.
    """

    gpus: Positive | None = None


def paint(
    *overrides: Override,
    image: Annotated[list[str], SEVERAL],
    place: Place = Place(),
    out: Path = Path("out.png"),
    text: list[Annotated[str, read_by(sentence)]] | None = None,
    share: Share = 1.0,
    layer: int | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    as_json: bool = False,
) -> int:
    """Paint images.

    Args:
        overrides: values.
        image: files to paint.
        out: file to write.

    Examples:
        python paint.py --image a.png b.png --out a/long/path/to/a/file/that/does/not/fit/into/a/line/of/a/screen.png

    Returns:
        0: painted; 1: not.
    """
    CALLS.append(dict(locals()))
    return 3


def called(*words: str) -> dict[str, object]:
    """The arguments of :func:`paint` with a command line."""
    CALLS.clear()
    assert call(paint, words, "paint.py") == 3
    return CALLS[0]


def test_words_become_arguments():
    found = called(
        "x=1", "--image", "a", "-", "--gpus", "2", "--as-json", "y=2", "--layer", "-1", "--text", "q", "--text", "r"
    )
    assert found == {
        "overrides": ("x=1", "y=2"),
        "image": ["a", STANDARD_INPUT],
        "place": Place(gpus=2),
        "out": Path("out.png"),
        "text": ["q", "r"],
        "share": 1.0,
        "layer": -1,
        "precision": "fp32",
        "as_json": True,
    }


@pytest.mark.parametrize("seed", range(40))
def test_arguments_become_words_that_become_the_same_arguments(seed):
    rng = random.Random(seed)

    def name() -> str:
        return rng.choice("abz.é") + "".join(rng.choice("ab=. /-é") for _ in range(rng.randrange(4)))

    values = {
        "image": [name() for _ in range(rng.randint(1, 3))],
        "place": Place(gpus=rng.choice([None, 1, 8])),
        "text": rng.choice([None, [name() for _ in range(rng.randint(1, 2))]]),
        "layer": rng.choice([None, -2, 0, 5]),
        "precision": rng.choice(["fp32", "bf16"]),
        "as_json": rng.choice([True, False]),
    }
    overrides = tuple(f"k={name()}" for _ in range(rng.randrange(3)))
    found = called(*argv_of(paint, *overrides, **values))
    assert found | values | {"overrides": overrides} == found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ("--image", "missing", "paint.py --help")),
        (["--image", "a", "--layer"], ("--layer", "needs a value")),
        (["--image", "a", "--layer", "x"], ("--layer", "'x'", "whole number")),
        (["--image", "a", "--gpus", "0"], ("--gpus", "'0'")),
        (["--image", "a", "--share", "1.5"], ("--share", "'1.5'", "at most 1")),
        (["--image", "a", "--text", " "], ("--text", "' '", "blank")),
        (["--image", "a", "--precision", "fp23"], ("'fp23'", "--precision", "fp32")),
        (["--image", "a", "--as-json=3"], ("--as-json", "no value", "'3'")),
        (["--image", "a", "--out", "b", "--out", "c"], ("--out", "twice")),
        (["--image", "a", "--gpsu", "1"], ("--gpsu", "--gpus", "key=value")),
        (["--image", "a", "--lr", "1"], ("--lr", "optim.lr=VALUE")),
        (["lr", "--image", "a"], ("'lr'", "key=value", "optim.lr=VALUE")),
        (["b.yaml", "--image", "a"], ("'b.yaml'", "--config b.yaml")),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_name(words, said, capsys):
    assert call(paint, words, "paint.py", lambda: ["optim.lr", "train.steps"]) == 2
    assert capsys.readouterr().err == OneLine("error:", *said)


def test_the_help_is_the_docstring(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert call(paint, ["--help"], "paint.py") == 0
    shown = capsys.readouterr().out
    for part in (
        "Usage: paint.py",
        "Paint images.",
        "number of GPUs, which is explained in two lines.",
        "[default: out.png]",
    ):
        assert part in shown
    assert "[default: False]" not in shown and "[default: None]" not in shown
    # Examples can be copied: no line of them is broken.
    assert (
        "\n  python paint.py --image a.png b.png --out a/long/path/to/a/file/that/does/not/fit/into/a/line/of/a/screen.png\n"
        in shown
    )
    assert shown.endswith("exit status: 0: painted; 1: not.\n")
