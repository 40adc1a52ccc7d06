"""Types of flag values."""

from __future__ import annotations

import pytest

from tests.messages import naming
from utils.flags import WrongValueError, non_blank, number_within, one_of, override, positive, whole_number


def test_a_misspelled_name_is_reported_with_the_nearest():
    name = one_of(["caption", "answer"])
    assert name("caption") == "caption"
    with pytest.raises(WrongValueError, match=naming("'captoin'", "caption")):
        name("captoin")
    with pytest.raises(WrongValueError, match="choose from caption, answer"):
        name("zzz")


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (positive, "3", 3),
        (whole_number(0, 10), "10", 10),
        (number_within(-1, 1), "-1e0", -1.0),
        (number_within(0, 1, above=True), "1", 1.0),
        (non_blank, "a dog", "a dog"),
        (override, "a.b=c=d", "a.b=c=d"),
    ],
)
def test_a_value_is_parsed(read, text, value):
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (positive, "0"),
        (positive, "-1"),
        (positive, "²"),
        (positive, "1.0"),
        (whole_number(0, 10), "11"),
        (number_within(-1, 1), "nan"),
        (number_within(-1, 1), "1.1"),
        (number_within(0, 100), "1_0"),
        (number_within(0, 100), "\u0661"),
        (number_within(0, float("inf"), above=True), "0"),
        (number_within(0, float("inf"), above=True), "inf"),
        (non_blank, " "),
        (non_blank, "caf\udce9"),
        (override, "a.b"),
    ],
)
def test_a_wrong_value_is_reported(read, text):
    with pytest.raises(WrongValueError, match=naming(repr(text))):
        read(text)
