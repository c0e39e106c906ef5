"""Compression inside a training run: the hook and the steps it calls."""
