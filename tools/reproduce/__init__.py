"""``python run.py reproduce``: runs the paper's cells, compares their numbers with the published ones, and writes receipts."""
