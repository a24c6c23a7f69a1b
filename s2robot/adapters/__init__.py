"""One file an outside stack, or several of one name: they translate, and nothing else."""
