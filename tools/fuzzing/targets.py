"""All targets, in the order in which they run."""

from __future__ import annotations

from fuzzing import (
    bit_flips,
    blocks,
    command_lines,
    cpd,
    kills,
    levels,
    manifests,
    networks,
    pickles,
    planted,
    savers,
    spatial,
    truncations,
)
from fuzzing.target import Target

_MODULES = (
    manifests,
    truncations,
    bit_flips,
    pickles,
    cpd,
    blocks,
    levels,
    spatial,
    networks,
    command_lines,
    kills,
    savers,
)
PLANTED = planted.TARGET
TARGETS: dict[str, Target] = {module.TARGET.name: module.TARGET for module in _MODULES}
