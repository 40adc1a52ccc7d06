"""Numbers in files are parsed strictly."""

from __future__ import annotations

import pytest

from utils.numerals import plain_number


@pytest.mark.parametrize(
    ("value", "number"), [("12", 12), (" -1.5 ", -1.5), (".5", 0.5), ("4E1", 40), (3, 3), (2.5, 2.5)]
)
def test_decimal_numbers_are_parsed(value, number):
    assert plain_number(value) == number


@pytest.mark.parametrize(
    "value", ["1_0", "\u0661", "\uff11", "nan", "inf", "1e400", "-1e400", "", "0x1", "1 2", True, None, [1]]
)
def test_everything_else_is_rejected(value):
    with pytest.raises((TypeError, ValueError)):
        plain_number(value)
