"""``norton.json`` from anyone: damaged, deep, large, of wrong types, or edited with all hashes made anew."""

import json
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from artefacts import Net, compressed, in_child, loaded_value, rewrite, save_value

from norton_plugin.artifact import MANIFEST, WEIGHTS, bounded_json, load, read_manifest, save
from norton_plugin.errors import ArtifactError

MEGABYTE = 2**20


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return save_value(tmp_path / "small", 1)


def _refused(target: Path, match: str | None = None) -> None:
    with pytest.raises(ArtifactError, match=match) as caught:
        load(target, Net().eval())
    assert len(str(caught.value)) < 1000
    with pytest.raises(ArtifactError):
        save_value(target, 2)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_truncations(target: Path, name: str) -> None:
    data = (target / name).read_bytes()
    lengths = {0, 1, 7, 8, 9, len(data) - 2} | {int(len(data) * share / 20) for share in range(20)}
    for length in sorted(lengths):
        (target / name).write_bytes(data[:length])
        with pytest.raises(ArtifactError):
            load(target, Net().eval())
    (target / name).write_bytes(data + b"\0" * 8)
    with pytest.raises(ArtifactError):
        load(target, Net().eval())


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_bit_flips(target: Path, name: str) -> None:
    data = (target / name).read_bytes()
    rng = random.Random(0)
    offsets = {*range(0, 400, 7), *(rng.randrange(len(data)) for _ in range(100))}
    for offset in sorted(offsets):
        damaged = bytearray(data)
        damaged[offset] ^= 1 << rng.randrange(8)
        (target / name).write_bytes(damaged)
        with pytest.raises(ArtifactError):
            load(target, Net().eval())
    (target / name).write_bytes(data)
    assert loaded_value(target) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is damaged"),
        (b"\xef\xbb\xbf{}", "is damaged"),
        ("{}".encode("utf-16"), "is damaged"),
        (b"\0" * 100, "is damaged"),
        (b"[" * 100_000, "more than 64 levels"),
        (b'{"a":' * 100_000, "more than 64 levels"),
        (b"[" * 65 + b"]" * 65, "more than 64 levels"),
        (b'{"a": "' + b"[" * 100_000 + b'"}', "is not the manifest"),
        (b'{"a": "\\"' + b"[" * 100 + b'\\\\"}', "is not the manifest"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands there twice"),
        (b'{"a": {"b": NaN}}', "NaN is no JSON"),
        (b'{"a": -Infinity}', "-Infinity is no JSON"),
        (b'{"a": 1e999}', "the number 1e999 is too large"),
        (b'{"a": ' + b"9" * 30 + b"}", "is too large"),
        (b'{"a": ' + b"9" * 1_000_000 + b"}", "is too large"),
        (b"-" + b"9" * 5000, "is too large"),
        (b"null", "is not the manifest"),
        (b'"text"', "is not the manifest"),
        (b"{}", "is not the manifest"),
    ],
)
def test_what_is_no_manifest(target: Path, text: bytes, message: str) -> None:
    (target / MANIFEST).write_bytes(text)
    _refused(target, message)


def test_as_deep_as_allowed() -> None:
    text = b"[" * 64 + b'"[[[\\"[["' + b"]" * 64
    value = bounded_json.parse(text)
    for _ in range(63):
        [value] = value
    assert value == ['[[["[[']


@pytest.mark.parametrize(
    "text",
    [
        b"[" * (60 * MEGABYTE),
        b"[" + b"[]," * (20 * MEGABYTE) + b"[]]",
        b'["' + b'","' * (20 * MEGABYTE) + b'"]',
        b'"' * (60 * MEGABYTE),
        b"[" + b"0," * (20 * MEGABYTE) + b"0]",
        b" " * (65 * MEGABYTE),
    ],
    ids=["deep", "lists", "strings", "quotes", "numbers", "spaces"],
)
def test_large_files_take_no_memory(target: Path, text: bytes) -> None:
    """Read without bounds, each of these takes gigabytes."""
    (target / MANIFEST).write_bytes(text)
    assert in_child(lambda: _refused(target, "is damaged"), memory=300 * MEGABYTE) == 0


def test_deep_json_where_recursion_is_allowed(target: Path) -> None:
    """A recursion limit raised by other code must not turn depth into a crash."""
    (target / MANIFEST).write_bytes(b"[" * 1_000_000)

    def attempt() -> None:
        sys.setrecursionlimit(10**9)
        _refused(target, "more than 64 levels")

    assert in_child(attempt) == 0


VALUES: list[Any] = [None, True, 1, -1, 1.5, "", "text", [], [1], {}, {"a": 1}]


@pytest.mark.parametrize("key", ["format", "version", "structure", "structure_hash", "weights_hash"])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_wrong_types(target: Path, key: str, value: Any) -> None:
    if key == "version" and type(value) is int:
        value += 5
    rewrite(target, lambda data: data.update({key: value}), signed=False)
    rewrite(target, lambda data: data.pop("manifest_hash"), signed=False)
    _refused(target)


@pytest.mark.parametrize("key", ["recipe", "report", "source", "extra"])
@pytest.mark.parametrize("value", [True, 1, 1.5, "text", [], [[1]]], ids=repr)
def test_facts_that_are_no_tables(target: Path, key: str, value: Any) -> None:
    rewrite(target, lambda data: data.update({key: value}))
    _refused(target, f"{key} in .* expected a table")


@pytest.mark.parametrize("key", ["format", "version", "structure", "structure_hash", "weights_hash", "source", "extra"])
def test_missing_and_unknown_keys(target: Path, key: str) -> None:
    rewrite(target, lambda data: data.pop(key), signed=False)
    _refused(target)
    save_value(fresh := target.with_name("other"), 1)
    rewrite(fresh, lambda data: data.update({f"{key}_": 1}))
    _refused(fresh, f"key '{key}_' is missing or unknown")


@pytest.mark.parametrize("value", [1.0, True, "1", 2, 10**18, -1, [1]], ids=repr)
def test_versions(target: Path, value: Any) -> None:
    rewrite(target, lambda data: data.update(version=value))
    _refused(target, "this package reads version 1")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["source"].update(value=2),
        lambda d: d["extra"].update(value=2),
        lambda d: d["extra"].pop("value"),
        lambda d: d.update(recipe={"decomposition": {"rank": 9}}),
        lambda d: d.update(report={"macs_after": 0}),
        lambda d: d.update(structure_hash="0" * 64),
        lambda d: d.update(weights_hash="0" * 64),
        lambda d: d.update(manifest_hash="0" * 64),
        lambda d: d.update(manifest_hash=None),
        lambda d: d["structure"]["modules"].pop(),
        lambda d: d["structure"]["source"].update({"head.weight": [1]}),
    ],
)
def test_edits_without_new_hashes(target: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    rewrite(target, change, signed=False)
    _refused(target, "does not match its hash")


@pytest.mark.parametrize("value", ["0" * 63, "0" * 65, "F" * 64, "../../../../etc/passwd", "0" * 64])
def test_hashes_of_weights(target: Path, value: str) -> None:
    rewrite(target, lambda data: data.update(weights_hash=value))
    _refused(target)


def test_text_of_any_kind_comes_back(tmp_path: Path) -> None:
    odd = {"é": "\u2028 \0 \U0001f600 \udcff", "": ["", "\\", '"', "[" * 200], "n": -(2**62), "x": 5e-324}
    model, structure = compressed()
    save(tmp_path / "a", model, structure, extra=odd, recipe={"a": (1, 2)}, report={})
    manifest = read_manifest(tmp_path / "a")
    assert manifest.extra == odd and manifest.recipe == {"a": [1, 2]} and manifest.report == {}


@pytest.mark.parametrize(
    "extra",
    [
        {"deep": json.loads("[" * 63 + "]" * 63)},
        {"digits": 10**30},
        {"twice": 1, 1: 1, "1": 2},
        {"many": [0] * 2_100_000},
    ],
    ids=["deep", "digits", "twice", "many"],
)
def test_what_could_not_be_read_back_is_not_saved(target: Path, extra: dict[Any, Any]) -> None:
    model, structure = compressed()
    with pytest.raises(ArtifactError, match="could not be written"):
        save(target, model, structure, extra=extra)
    assert loaded_value(target) == 1


def test_an_endless_header_is_not_read(target: Path) -> None:
    data = (target / WEIGHTS).read_bytes()
    for length in (2**24 + 1, 10**8, 2**63, 2**64 - 1):
        (target / WEIGHTS).write_bytes(struct.pack("<Q", length) + data[8:])
        _refused(target, "it begins with a header of")
