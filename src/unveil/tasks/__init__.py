"""Floor 3: what judges or tunes an encoder with labels: one file each, unaware of each other."""
