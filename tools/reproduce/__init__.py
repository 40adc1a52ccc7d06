"""``python run.py reproduce``: the runs of the paper's cells, their numbers beside the published ones, and a receipt for each."""
