"""From text files to batches of token ids. Independent of the models."""
