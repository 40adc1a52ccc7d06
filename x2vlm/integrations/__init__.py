"""X²-VLM inside other libraries: mteb, sentence-transformers and transformers. Their extras are in docs/using.md."""

MODELLING_FILE = "modeling_x2vlm.py"
"""Code of a model that is saved for transformers."""
