"""Floor 4: everything that looks at a run. It reads run folders and nothing else."""
