"""Other pruning frameworks that work with the blocks and the criteria of this package."""
