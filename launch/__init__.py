"""Starts a run on this machine, on several nodes, or as a SLURM job. Common launchers and schedulers are detected."""
