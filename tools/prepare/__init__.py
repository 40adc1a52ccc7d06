"""``python run.py prepare``: official files of public data sets to records for pre-training."""
