"""One file an outside stack: it translates, and nothing else."""
