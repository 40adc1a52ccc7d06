"""Data sets that the project draws itself, or makes of images that can be installed as packages: they show that it learns.

``python -m demo.scenes``, ``demo.clips``, ``demo.stamps`` and ``demo.emoji`` fill a folder each. They use :mod:`dataset`, which
does not know them.
"""
