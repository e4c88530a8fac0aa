"""Floor 9: many runs side by side."""
