"""Floor 5: whole runs, as functions."""
