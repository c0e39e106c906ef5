"""Writing ``norton.json`` as an attacker would: the hashes are made to fit whatever was put in.

Hashes are against damage, not proof of origin, so a hostile manifest has sound ones. Which part of the manifest a hash
covers is found out from a sound one; a hash that cannot be explained stops the fuzzer, which would be blind otherwise.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

# Text that stands for what json.dumps cannot write; read as plain strings until the very end.
DEEP, DIGITS = "@deep@", "@digits@"
_DEPTH, _LENGTH = 100_000, 5_000
_HASH = re.compile(r"[0-9a-f]{64}")
Covered = dict[str, tuple[str, ...]]


def render(data: Mapping[str, Any]) -> str:
    """Return the text of a manifest, with nesting and digits beyond what ``json`` writes where they are asked for."""
    return _expanded(json.dumps(data, indent=1)) + "\n"


def _expanded(text: str) -> str:
    deep = "[" * _DEPTH + "]" * _DEPTH
    return text.replace(f'"{DEEP}"', deep).replace(f'"{DIGITS}"', "9" * _LENGTH)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON."""
    text = _expanded(json.dumps(value, sort_keys=True, separators=(",", ":")))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def filedigest(content: bytes) -> str:
    """SHA-256 of a file of weights."""
    return hashlib.sha256(content).hexdigest()


def covered_by_hashes(data: Mapping[str, Any], weights: bytes) -> Covered:
    """Which keys each hash of a sound manifest covers; none for that of the weights.

    Raises:
        RuntimeError: A hash covers something that is not known here.
    """
    hashes = {key: value for key, value in data.items() if isinstance(value, str) and _HASH.fullmatch(value)}
    others = [key for key in data if key not in hashes]
    covered: Covered = {}
    for key, value in hashes.items():
        if value == filedigest(weights):
            covered[key] = ()
            continue
        for keys in _subsets([*others, *(each for each in hashes if each != key)]):
            if value in (digest(_part(data, keys)), digest({name: data[name] for name in keys})):
                covered[key] = keys
                break
        else:
            raise RuntimeError(f"{key} of norton.json covers something unknown; tools/fuzzing/sealing.py must learn it")
    return covered


def _subsets(keys: list[str]) -> list[tuple[str, ...]]:
    sizes = dict.fromkeys((1, len(keys), *range(2, len(keys))))  # the likely ones first
    return [chosen for size in sizes for chosen in itertools.combinations(keys, size)]


def _part(data: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return data[keys[0]] if len(keys) == 1 else {name: data[name] for name in keys}


def sealed(data: Mapping[str, Any], covered: Covered, weights: bytes) -> dict[str, Any]:
    """Return the manifest with hashes that fit what it holds now, as far as the keys they cover are still there."""
    result = dict(data)
    read = json.loads(json.dumps(data))  # of a key that stands there twice, the last one counts
    for _ in covered:  # a hash may cover another one
        for key, keys in covered.items():
            if key in read and all(name in read for name in keys):
                result[key] = read[key] = digest(_part(read, keys)) if keys else filedigest(weights)
    return result
