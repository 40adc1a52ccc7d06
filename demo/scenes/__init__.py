"""Scenes that the project draws itself: images of shapes, exact boxes, and true texts at three grains.

``compose`` decides what a scene holds and ``draw`` draws it. ``describe``, ``referring``, ``questions`` and ``statements`` decide
what is said of it, asked about it, and stated of two images; ``wording`` puts that into words, ``records`` into records, and
``build`` fills a folder. Everything is a pure function of (seed, split, index).
"""
