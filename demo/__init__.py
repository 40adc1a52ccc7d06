"""Demo data sets that the project draws, or builds from images in installable packages. They show that the models learn.

``python -m demo.scenes``, ``demo.clips``, ``demo.stamps``, ``demo.emoji`` and ``demo.real`` each fill a folder with a data set,
and ``demo.weights`` fills a folder with real weights. They import :mod:`dataset` and :mod:`models`, which do not import them.
"""
