"""Starts a run on this machine, on several nodes whose launcher or scheduler is recognised, or as a SLURM job."""
