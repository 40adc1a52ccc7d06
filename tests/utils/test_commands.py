"""A command is a function. These tests cover its flags, its help, its errors, and the conversion of arguments to words."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from tests.messages import OneLine
from utils.commands import FLAGS, STANDARD_INPUT, argv_of, call
from utils.flags import SEVERAL, Fraction, Override, Positive, alone_or, non_blank, positive, read_by

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
    text: list[Annotated[str, read_by(non_blank)]] | None = None,
    share: Fraction = 1.0,
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
    """The arguments of :func:`paint` for a command line."""
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
def test_arguments_survive_the_round_trip_through_words(seed):
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
    ("words", "message"),
    [
        ([], ("--image", "missing", "paint.py --help")),
        (["--image", "a", "--layer"], ("--layer", "needs a value")),
        (["--image", "a", "--layer", "x"], ("--layer", "'x'", "whole number")),
        (["--image", "a", "--gpus", "0"], ("--gpus", "'0'")),
        (["--image", "a", "--share", "1.5"], ("--share", "'1.5'", "at most 1")),
        (["--image", "a", "--text", " "], ("--text", "' '", "blank")),
        (["--image", "a", "--precision", "fp23"], ("'fp23'", "--precision", "fp32")),
        (["--image", "a", "--as-json=3"], ("--as-json", "no value", "'3'")),
        (["--image", "a", "--as-json=no"], ("--as-json", "no value", "'no'")),
        (["--image", "a", "--as-json=true"], ("--as-json", "no value", "'true'")),
        (["--imgae", "a"], ("--imgae", "did you mean --image?")),
        (["--image", "a", "--optim.lr", "3"], ("--optim.lr", "did you mean optim.lr=VALUE?")),
        (["--image", "a", "--optim.lr=3"], ("--optim.lr", "did you mean optim.lr=VALUE?")),
        (["--image", "a", "--out", "b", "--out", "c"], ("--out", "twice")),
        (["--image", "a", "--gpsu", "1"], ("--gpsu", "--gpus", "key=value")),
        (["--image", "a", "--lr", "1"], ("--lr", "optim.lr=VALUE")),
        (["lr", "--image", "a"], ("'lr'", "key=value", "optim.lr=VALUE")),
        (["b.yaml", "--image", "a"], ("'b.yaml'", "--config b.yaml")),
    ],
)
def test_a_mistake_is_reported_in_one_line_with_the_nearest_name(words, message, capsys):
    assert call(paint, words, "paint.py", lambda: ["optim.lr", "train.steps"]) == 2
    assert capsys.readouterr().err == OneLine("error:", *message)


def find(
    index: Path,
    texts: list[Annotated[str, read_by(non_blank)]],
    /,
    *,
    locate: Annotated[str | bool, alone_or(non_blank, "PHRASE")] = False,
    seeds: Annotated[tuple[int, ...], read_by(lambda text: tuple(map(int, text.split(","))), n_tokens=1)] = (),
    text: tuple[str, ...] = (),
    top: Positive = 1,
) -> int:
    """Find texts."""
    CALLS.append(dict(locals()))
    return 3


def found_by(*words: str) -> dict[str, object]:
    """The arguments of :func:`find` for a command line that differ from their defaults."""
    CALLS.clear()
    assert call(find, words, "find.py") == 3
    defaults = {"locate": False, "seeds": (), "text": (), "top": 1}
    return {name: value for name, value in CALLS[0].items() if name not in defaults or value != defaults[name]}


@pytest.mark.parametrize(
    ("words", "locate", "texts"),
    [
        (["I", "--locate", "blue circle", "red square"], "blue circle", ["red square"]),
        (["--locate", "blue circle", "I", "red square"], "blue circle", ["red square"]),
        (["I", "red", "--locate", "--top", "1"], True, ["red"]),
        (["I", "red", "--locate"], True, ["red"]),
        (["I", "red", "--locate=blue"], "blue", ["red"]),
        (["I", "red", "green", "--locate", "-1 degree"], "-1 degree", ["red", "green"]),
    ],
)
def test_a_flag_with_an_optional_value_takes_at_most_one_argument(words, locate, texts):
    assert found_by(*words) == {"index": Path("I"), "texts": texts, "locate": locate}


def test_the_argument_after_an_optional_value_is_reported(capsys):
    def count(*overrides: Override, draws: Annotated[int | bool, alone_or(positive, "DRAWS")] = False) -> int:
        return 0

    assert call(count, ["--draws", "10", "20"], "count.py") == 2
    assert capsys.readouterr().err == OneLine("'20'", "key=value")


def test_a_value_may_begin_with_a_dash_and_contain_a_space(capsys):
    assert found_by("I", "-1 red", "--text", "-5 red", "--text", "--not a flag") == {
        "index": Path("I"),
        "texts": ["-1 red"],
        "text": ("-5 red", "--not a flag"),
    }
    assert call(find, ["I", "red", "--txet=a red car"], "find.py") == 2
    assert capsys.readouterr().err == OneLine("--txet", "--text")


def test_a_positional_argument_that_is_given_as_a_flag_is_reported(capsys):
    assert call(find, ["--index", "I", "red"], "find.py") == 2
    assert capsys.readouterr().err == OneLine("--index", "INDEX", "without a flag")


def test_positional_arguments_are_first_in_a_call():
    assert argv_of(find, index="i", texts=["a"], locate=True) == ["i", "a", "--locate"]
    assert argv_of(find, "i", "a", seeds=(0, 1)) == ["i", "a", "--seeds", "0,1"]
    assert argv_of(find, "i", "-a", text=("-x",)) == ["--text=-x", "--", "i", "-a"]
    with pytest.raises(TypeError, match="find has no parameter txt"):
        argv_of(find, "i", "a", txt=["b"])


ODD = [
    "-",
    "-x",
    "--top",
    "-1 red",
    "--",
    "-1",
    "a=b",
    "-a=b c",
    "[1]",
    '{"a": 1}',
    "null",
    "none",
    "é ²",
    "x",
    "a b",
    ",",
]


@pytest.mark.parametrize("seed", range(40))
def test_unusual_values_survive_the_round_trip_through_words(seed):
    rng = random.Random(seed)
    values = {
        "index": Path(rng.choice(ODD[1:])),  # a lone dash means standard input
        "texts": rng.sample(ODD[1:], rng.randint(1, 3)),
        "locate": rng.choice([True, *ODD]),
        "text": tuple(rng.sample(ODD, rng.randint(1, 3))),
        "seeds": rng.choice([(3,), (0, 1)]),
        "top": 7,
    }
    assert found_by(*argv_of(find, **values)) == values


def test_the_help_shows_names_of_values(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert call(find, ["--help"], "find.py") == 0
    shown = capsys.readouterr().out
    assert "Usage: find.py INDEX [OPTIONS] TEXTS...\n" in shown
    assert "--locate [PHRASE]" in shown and "TEXTS... " in shown
    assert call(paint, ["--help"], "paint.py") == 0
    shown = capsys.readouterr().out
    assert "Usage: paint.py --image STR... [OPTIONS] [KEY=VALUE...]\n" in shown


def test_the_usage_line_begins_with_all_words_of_a_module_s_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert call(find, ["--help"], "python -m tools.find") == 0
    assert "Usage: python -m tools.find INDEX [OPTIONS] TEXTS...\n" in capsys.readouterr().out
    assert call(paint, ["--help"], "python -m tools.paint") == 0
    assert "Usage: python -m tools.paint --image STR... [OPTIONS] [KEY=VALUE...]\n" in capsys.readouterr().out


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
    # Examples can be copied, because none of their lines is broken.
    assert (
        "\n  python paint.py --image a.png b.png --out a/long/path/to/a/file/that/does/not/fit/into/a/line/of/a/screen.png\n"
        in shown
    )
    assert shown.endswith("exit status: 0: painted; 1: not.\n")
