"""What ``tools/fuzz.py`` is made of: one file per target, and what all of them share.

A target builds what it needs once (``prepare``) and then runs numbered cases; a case is decided by the seed, the
target's name and its number alone. Cases run in a worker process that may crash, hang or run out of memory.
"""
