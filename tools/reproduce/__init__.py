"""``python run.py reproduce``: runs the cells of the paper's tables, compares their numbers with the published ones, and writes
receipts."""
