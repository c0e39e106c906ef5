"""Edits of a manifest: random ones anywhere, and attacks that somebody who knows the format would try."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fuzzing.attacks import attacks_on
from fuzzing.sealing import DEEP, DIGITS
from fuzzing.watch import Bait

Path = tuple[Any, ...]
_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 2**31, 2**63, -(2**63), 10**30, 1e308, -1.5, float("nan"), float("inf"),
    "", "\0", "a\0b", "../../etc/passwd", "/dev/zero", "\ud800", "x" * 5000, "__class__", "conv1",
    [], {}, [[]], [None], {"tuple": 5}, {"tuple": [1]}, {"__tuple__": 3}, {"type": "Conv2d"}, DEEP, DIGITS,
)  # fmt: skip
# Groups of attacks that are all made, one after the other; those on numbers are left to chance.
_LISTED = ("source", "arguments", "config")
# Sections that decide something, each as likely as all others.
_SECTIONS: tuple[Path, ...] = (("structure",), ("structure", "modules"), ("source",), ("extra",), ())


class Doubled(dict[str, Any]):
    """A JSON object in which one key stands twice, the second time with another value."""

    def __init__(self, content: dict[str, Any], key: str, value: Any) -> None:
        super().__init__(content)
        self._second = (key, value)

    def items(self) -> Any:
        """Return what the encoder writes."""
        return [*super().items(), self._second]


@dataclass(frozen=True)
class Edit:
    """A manifest after an edit.

    Attributes:
        data: What is to be written, placeholders of ``sealing`` included.
        label: What was done, for people.
    """

    data: dict[str, Any]
    label: str


def edited(rng: random.Random, data: dict[str, Any], others: list[dict[str, Any]], bait: Bait) -> Edit:
    """Make one to three edits.

    Args:
        rng: Decides.
        data: A sound manifest; not changed.
        others: Manifests of other artefacts, whose parts may be put in.
        bait: What attacks name.
    """
    result = copy.deepcopy(data)
    labels = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if rng.random() < 0.4:
            attacks = attacks_on(result, bait)
            label, change = rng.choice(attacks[rng.choice(list(attacks))])
            change(rng)
            labels.append(f"attack: {label}")
        else:
            labels.append(_random_edit(rng, result, others))
    return Edit(result, "; ".join(labels))


def attacked(rng: random.Random, data: dict[str, Any], bait: Bait, which: tuple[str, int]) -> Edit:
    """Make one attack.

    Args:
        rng: Decides where.
        data: A sound manifest; not changed.
        bait: What attacks name.
        which: Its group and place, as of ``all_attacks``.
    """
    result = copy.deepcopy(data)
    label, change = attacks_on(result, bait)[which[0]][which[1]]
    change(rng)
    return Edit(result, f"attack: {label}")


def all_attacks(data: dict[str, Any], bait: Bait) -> list[tuple[str, int]]:
    """Group and place of every attack on what is built from a manifest."""
    groups = attacks_on(copy.deepcopy(data), bait)
    return [(group, place) for group in _LISTED if group in groups for place in range(len(groups[group]))]


def _random_edit(rng: random.Random, data: dict[str, Any], others: list[dict[str, Any]]) -> str:
    section = rng.choice(_SECTIONS)
    paths = [path for path in _paths(data) if path and path[: len(section)] == section]
    path = rng.choice(paths or [("structure",)])
    holder = _holder(data, path)
    if holder is None or (isinstance(holder, dict) and path[-1] not in holder):
        data["structure"] = None  # an earlier edit took it away
        return "structure = None"
    key = path[-1]
    kind = rng.choice(("value", "value", "number", "delete", "double", "insert", "swap", "splice", "rename"))
    value = rng.choice(_VALUES)
    if kind == "delete":
        del holder[key]
    elif kind == "double" and isinstance(holder, dict) and len(path) > 1:
        outer = _holder(data, path[:-1])
        outer[path[-2]] = Doubled(holder, str(key), value)
    elif kind == "insert" and isinstance(holder, dict):
        holder[rng.choice(("type", "_scope_", "init_cfg", "__class__", "weight", "forward", "\0", "x"))] = value
    elif kind == "rename" and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif kind == "number" and isinstance(holder[key], int | float):
        old = holder[key]
        holder[key] = rng.choice((old + 1, old - 1, -old, old * 1000, float(old)))
    elif kind == "swap":
        other = rng.choice(paths)
        source = _holder(data, other)
        holder[key] = copy.deepcopy(source[other[-1]]) if _has(source, other[-1]) else value
    elif kind == "splice":
        donor = rng.choice(others)
        source = _holder(donor, path)
        holder[key] = copy.deepcopy(source[key]) if _has(source, key) else value
    else:
        holder[key] = value
    return f"{kind} {'.'.join(map(str, path))[:80]} {value!r:.40}"


def _paths(value: Any, path: Path = ()) -> Iterator[Path]:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _paths(inner, (*path, index))


def _has(holder: Any, key: Any) -> bool:
    if isinstance(holder, dict):
        return key in holder
    return isinstance(holder, list) and isinstance(key, int) and key < len(holder)


def _holder(data: Any, path: Path) -> Any:
    """Return what holds the last key of a path; None where that is not there."""
    for key in path[:-1]:
        if not _has(data, key):
            return None
        data = data[key]
    return data if isinstance(data, dict | list) else None
