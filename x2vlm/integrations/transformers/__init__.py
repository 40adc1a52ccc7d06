"""X²-VLM as a model of transformers: :meth:`x2vlm.Model.save` with ``format="transformers"``."""
