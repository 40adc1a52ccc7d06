"""A page in the browser on which models are tried: ``python run.py serve``."""
