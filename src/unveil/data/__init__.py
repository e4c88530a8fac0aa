"""From files to augmented batches of images. Independent of the models."""
