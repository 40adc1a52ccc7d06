"""Tests of the checks for messages."""

import re

import pytest

from tests.messages import OneLine, naming

MESSAGE = "data.train: a.json:3: n is 14, not 2.5; set train.steps=40 or pass --resume"


@pytest.mark.parametrize(
    "facts",
    [
        (),
        ("data.train",),
        ("a.json:3", "data.train"),
        ("14", "2.5"),
        ("n is 14",),
        ("train.steps=40", "--resume"),
        (14,),
    ],
)
def test_facts_are_found_in_any_order(facts):
    assert OneLine(*facts) == MESSAGE
    assert re.search(naming(*facts), MESSAGE + "\n")


@pytest.mark.parametrize(
    "fact",
    ["4", "2", "5", "data", "train", "steps", "train.step", "train.steps=4", "ata.train", "a.json:31", "resum", "15"],
)
def test_a_part_of_a_value_or_another_value_is_not_a_fact(fact):
    assert OneLine("data.train", fact) != MESSAGE


def test_facts_on_two_lines_are_not_a_message():
    assert MESSAGE.replace("; ", "\n") != OneLine("data.train")
    assert OneLine("a.json:3") in [MESSAGE, "another"]
