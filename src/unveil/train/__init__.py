"""Floor 3: the training loop and what it stands on. Knows `Learner`, and no method by name."""
