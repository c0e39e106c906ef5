"""``norton.json``: what it says, how it is written, and how it is read from anyone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from norton_plugin.artifact import bounded_json
from norton_plugin.artifact.folder import MANIFEST, open_file, shown
from norton_plugin.errors import ArtifactError
from norton_plugin.surgery.structure import Structure, structure_hash
from norton_plugin.surgery.structure_entries import read_entries, shortened

FORMAT = "norton-plugin artefact"
VERSION = 1
_KEYS = {
    "format",
    "version",
    "structure",
    "structure_hash",
    "weights_hash",
    "recipe",
    "report",
    "source",
    "extra",
}
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """What ``norton.json`` says.

    Attributes:
        structure: How the model differs from the dense original.
        weights_hash: SHA-256 of the file of weights.
        recipe: The recipe as a dict, or None.
        report: The compression report as a dict, or None.
        source: How to build the dense original (``zoo.rebuild`` reads it), or None.
        extra: Whatever else was stored.
    """

    structure: Structure
    weights_hash: str
    recipe: dict[str, Any] | None
    report: dict[str, Any] | None
    source: dict[str, Any] | None
    extra: dict[str, Any]


def manifest_hash(data: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all that a manifest says but this hash.

    It tells damage, not who wrote the file: whoever edits a manifest can hash it anew, or leave the hash out, as
    manifests of earlier releases do. Nothing is trusted because a hash matches, and every bound holds without one.

    Args:
        data: The manifest as JSON has it: dicts with strings as keys, lists, no tuples.
    """
    rest = {key: value for key, value in data.items() if key != "manifest_hash"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def to_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts as they will be read back, with format, version and the hash of the structure.

    Args:
        facts: Fields of a manifest, ``structure`` among them.

    Raises:
        TypeError: A value that JSON does not know.
        ValueError: NaN, infinity, or more than is read back.
        ArtifactError: A structure that could not be read back.
    """
    text = json.dumps({"format": FORMAT, "version": VERSION, **facts}, allow_nan=False)
    data: dict[str, Any] = bounded_json.parse(text.encode())
    read_entries(data["structure"])
    return {**data, "structure_hash": structure_hash(data["structure"])}


def to_bytes(data: Mapping[str, Any], *, weights_hash: str) -> bytes:
    """Return the text of ``norton.json``.

    Args:
        data: As ``to_json`` made it.
        weights_hash: SHA-256 of the file of weights.

    Raises:
        ValueError: More than is read back.
    """
    complete = {**data, "weights_hash": weights_hash}
    complete["manifest_hash"] = manifest_hash(complete)
    text = (json.dumps(complete, indent=1, allow_nan=False) + "\n").encode()
    if len(text) > bounded_json.MOST_BYTES:
        raise ValueError(f"{MANIFEST} would have {len(text)} bytes, at most {bounded_json.MOST_BYTES} are read back")
    return text


def read_manifest(directory: str | Path) -> Manifest:
    """Read and check ``norton.json``.

    Raises:
        ArtifactError: A file that is missing or damaged, an unknown format or version, a hash that does not match, a
            value of the wrong type or out of its bounds.
    """
    path = Path(directory) / MANIFEST
    try:
        with open_file(path) as file:
            return from_bytes(file.read(bounded_json.MOST_BYTES + 1), path)
    except FileNotFoundError as error:
        raise absent(directory, error) from error
    except OSError as error:
        raise ArtifactError(f"{shown(path)} cannot be read ({error.strerror})") from error


def absent(directory: str | Path, error: FileNotFoundError) -> ArtifactError:
    """Describe a directory without a manifest."""
    return ArtifactError(f"{shown(directory)} is not an artefact: {MANIFEST} cannot be read ({error.strerror})")


def from_bytes(text: bytes, path: Path) -> Manifest:
    """Read and check the text of a manifest.

    Args:
        text: All of it, or the first bytes of one that is too long.
        path: Where it is from, for messages.

    Raises:
        ArtifactError: See ``read_manifest``.
    """
    try:
        data = bounded_json.parse(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{shown(path)} is damaged ({error}); save the artefact again") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ArtifactError(
            f"{shown(path)} is not the manifest of an artefact; expected a file that norton_plugin.save wrote"
        )
    version = data.get("version")
    if type(version) is not int or version != VERSION:
        raise ArtifactError(
            f"{shown(path)} has version {shortened(version)}, this package reads version {VERSION}; "
            "install the norton-plugin release that wrote it"
        )
    unlike = _KEYS.symmetric_difference(data) - {"manifest_hash"}
    if unlike:
        raise ArtifactError(
            f"{shown(path)} is damaged (key {min(unlike)!r} is missing or unknown); save the artefact again"
        )
    if "manifest_hash" in data and data["manifest_hash"] != manifest_hash(data):
        raise ArtifactError(f"{shown(path)} does not match its hash: it was edited or damaged; save the artefact again")
    structure = _table(data, "structure", path)
    if structure is None or structure_hash(structure) != data.get("structure_hash"):
        raise ArtifactError(
            f"the structure in {shown(path)} does not match its hash: it was edited or damaged; save again"
        )
    read_entries(structure)
    weights_hash = data.get("weights_hash")
    if not isinstance(weights_hash, str) or not _HASH.fullmatch(weights_hash):
        raise _wrong(path, "weights_hash", weights_hash, "a SHA-256 in hexadecimal digits")
    return Manifest(
        structure=structure,
        weights_hash=weights_hash,
        recipe=_table(data, "recipe", path),
        report=_table(data, "report", path),
        source=_table(data, "source", path),
        extra=_table(data, "extra", path) or {},
    )


def _table(data: dict[str, Any], key: str, path: Path) -> dict[str, Any] | None:
    value = data.get(key)
    if value is not None and not isinstance(value, dict):
        raise _wrong(path, key, value, "a table of values, or null")
    return value


def _wrong(path: Path, key: str, value: Any, expected: str) -> ArtifactError:
    return ArtifactError(
        f"{key} in {shown(path)} is {shortened(value)}, expected {expected}: it was edited or damaged; save the "
        "artefact again"
    )
