"""Scenes that the project draws itself: images of shapes, exact boxes, and true texts at three grains.

``compose`` decides what a scene holds and ``draw`` draws it. ``describe``, ``captions`` and ``questions`` decide what is said of
it and asked about it, ``statements`` what is stated of two images. ``records`` makes records of that, ``build`` fills a folder.
Everything is a pure function of (seed, split, index).
"""
