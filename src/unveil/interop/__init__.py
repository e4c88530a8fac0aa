"""Model files, in our own format and in those of other libraries. One module per format."""
