"""Mechanics of mmengine's Runner: optimizer state, seeds, launching, silence."""
