"""One run from beginning to end, on images or on text."""
