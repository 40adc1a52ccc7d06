"""X²-VLM as a model for transformers: :meth:`x2vlm.Model.save` with ``format="transformers"``."""
