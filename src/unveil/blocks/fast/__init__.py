"""Faster implementations with the same results as the plain blocks, one per file. `unveil.blocks.fast.choose` selects them."""
