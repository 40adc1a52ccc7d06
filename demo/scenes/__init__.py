"""Scenes that the project draws: images of shapes with exact boxes and correct texts at three granularities.

``compose`` chooses the content of a scene, and ``draw`` draws it. ``describe``, ``captions`` and ``questions`` generate texts
about a scene, and ``statements`` generates statements about two images. ``records`` makes records, and ``build`` fills a folder.
Everything is a pure function of (seed, split, index).
"""
