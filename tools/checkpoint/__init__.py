"""``python run.py checkpoint``: what a weight file is, its other form, and how two differ."""
