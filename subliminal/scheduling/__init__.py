"""Sweeps on a cluster: which stage runs there are, what they will cost, and SLURM jobs chained by dependency."""
