"""``python run.py checkpoint``: inspects, converts and compares weight files."""
