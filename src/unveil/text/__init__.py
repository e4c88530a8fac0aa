"""Floor 1: from text files to batches; knows no model."""
