"""The streams of pre-training, a class each (section 3.3).

A stream says what it encodes (``texts_to_encode``, ``has_images``), what it asks of the fusion and what its losses are
(``losses``), what these are divided by (``counts``), what they cost (``work``), and what they train (``trained``). A loss of
weight 0 is wanted in no step.
"""
