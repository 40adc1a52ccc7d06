"""Clean-up of texts in official files."""

from __future__ import annotations

from dataset.prepare.cleaning import cleaned_text
from dataset.prepare.counts import Counts


def test_html_entities_are_decoded_before_the_text_is_cleaned():
    """YT-Temporal marks a change of speaker by ``&gt;&gt;``. If the semicolon were removed first, "&gt" would remain."""
    counts = Counts()
    assert cleaned_text("&gt;&gt; Fish &amp; chips", counts, "a:1") == ">> fish & chips"
    assert cleaned_text("&nbsp;", counts, "a:2") is None and counts.skipped["empty text"] == 1
