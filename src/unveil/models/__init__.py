"""Floor 1: whole networks, made of blocks."""
