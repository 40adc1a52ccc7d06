"""A web page for trying out models: ``python run.py serve``."""
