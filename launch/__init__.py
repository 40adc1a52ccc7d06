"""Starts a run: on this machine, on many nodes whose launcher or scheduler is recognised, or as a job of SLURM."""
