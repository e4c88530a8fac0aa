"""Building blocks of all models. They need torch, and nothing else from this package."""
