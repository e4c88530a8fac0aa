"""Floor 4: what features and models are worth."""
