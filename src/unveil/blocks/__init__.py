"""Floor 0: the parts that every model is made of. They need torch and nothing else of this package."""
