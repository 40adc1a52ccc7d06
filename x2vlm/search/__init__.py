"""Images found by a sentence, and where in each of them the sentence is true."""

CACHE_GB = 2.0
"""Of the disk, at most, for what the vision encoder says of images that were re-ranked, unless a user says otherwise."""
