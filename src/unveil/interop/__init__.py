"""Floor 4: weights in and out, one file a format."""
