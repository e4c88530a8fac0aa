"""Floor 1: from files to augmented batches. Knows no model."""
