"""Mechanics on any module: run it, remember its state, put another in its place."""
