"""Clean-up of texts from official files."""

from __future__ import annotations

from dataset.prepare.cleaning import cleaned_text
from dataset.prepare.counts import Counts


def test_html_entities_of_texts_are_resolved_before_the_text_is_cleaned():
    """YT-Temporal marks a change of speaker by ``&gt;&gt;``; without the semicolon, "&gt" would be left of it."""
    counts = Counts()
    assert cleaned_text("&gt;&gt; Fish &amp; chips", counts, "a:1") == ">> fish & chips"
    assert cleaned_text("&nbsp;", counts, "a:2") is None and counts.left_out["empty text"] == 1
