"""unveil."""
