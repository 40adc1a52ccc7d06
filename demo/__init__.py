"""Data sets that the project draws itself, or makes of images that can be installed as packages: they show that it learns.

``python -m demo.scenes``, ``demo.clips``, ``demo.stamps``, ``demo.emoji`` and ``demo.real`` fill a folder each, and
``demo.weights`` one with real weights. They use :mod:`dataset` and :mod:`models`, which do not know them.
"""
