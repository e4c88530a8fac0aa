"""Floor 7: choosing what to train, and predicting what it takes."""
