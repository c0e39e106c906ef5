"""Target: files of an artefact in which bits are wrong."""

from __future__ import annotations

import random

from fuzzing.damage import State, damaged_case, prepare
from fuzzing.target import Target
from fuzzing.verdict import Result


def run(state: State, rng: random.Random, number: int) -> Result:
    """Turn one to three bits of one file over."""
    return damaged_case(state, rng, _flip)


def _flip(rng: random.Random, content: bytes) -> bytes:
    broken = bytearray(content)
    for bit in rng.sample(range(8 * len(content)), rng.randint(1, 3)):
        broken[bit // 8] ^= 1 << (bit % 8)
    return bytes(broken)


TARGET = Target(
    name="bit-flips",
    about="one to three bits of norton.json or model.safetensors turned over",
    cases=1000,
    prepare=prepare,
    run=run,
    seconds=30.0,
)
