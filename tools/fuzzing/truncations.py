"""Target: files of an artefact that end too early."""

from __future__ import annotations

import random

from fuzzing.damage import State, damaged_case, prepare
from fuzzing.target import Target
from fuzzing.verdict import Result


def run(state: State, rng: random.Random, number: int) -> Result:
    """Cut one file somewhere; often within its first or last bytes, where its format says what follows."""
    return damaged_case(state, rng, _cut)


def _cut(rng: random.Random, content: bytes) -> bytes:
    near = min(64, len(content))
    place = rng.choice((rng.randrange(len(content)), rng.randrange(near), len(content) - 1 - rng.randrange(near)))
    return content[:place]


TARGET = Target(
    name="truncations",
    about="norton.json or model.safetensors cut at any byte",
    cases=1000,
    prepare=prepare,
    run=run,
    seconds=30.0,
)
