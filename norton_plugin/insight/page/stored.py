"""The report of an artefact as the page needs it; it may come from anyone, so every value is checked."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from norton_plugin.blocks.clusters import BlockLevel
from norton_plugin.errors import ArtifactError
from norton_plugin.pabs import MOST_FILTERS
from norton_plugin.reasons import Reason

_ADVICE = {reason.code: reason.advice for reason in Reason}
_LEVELS = get_args(BlockLevel)


@dataclass(frozen=True)
class StoredLayer:
    """One layer of the report; fields as of ``pipeline.LayerReport``."""

    name: str
    kind: str
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    nmse: float | None
    kept: float
    level: str | None
    rank: int | None
    clusters: int | None
    components: int | None

    @property
    def size(self) -> int | None:
        """R of filters with components of their own, M where they share them."""
        return self.rank if self.components is None else self.components


@dataclass(frozen=True)
class StoredMap:
    """The distances that the report keeps of one group of channels.

    Attributes:
        root: Name of the layer that stands for the group.
        before: Channels before.
        after: Channels after.
        filters: Numbers of the filters shown.
        removed: Those of them that were removed.
        average: Mean distance over all pairs of the layer, as a share of the largest.
        rows: A square of distances, as shares of the largest.
    """

    root: str
    before: int
    after: int
    filters: tuple[int, ...]
    removed: frozenset[int]
    average: float
    rows: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Left:
    """What was left as it was for one reason.

    Attributes:
        phase: "decomposition" or "pruning".
        code: Of the reason.
        reason: In words.
        advice: What to do about it, empty for a code of another release.
        names: The layers.
    """

    phase: str
    code: str
    reason: str
    advice: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class StoredReport:
    """All that the page tells of the compression itself.

    Attributes:
        status: How far pruning came, empty where it was not tried.
        on_images: Sentences on what followed on images.
        warnings: What a user should know before using the model, as sentences.
    """

    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    status: str
    layers: tuple[StoredLayer, ...]
    decomposed: int
    groups: int
    maps: tuple[StoredMap, ...]
    left: tuple[Left, ...]
    on_images: tuple[str, ...]
    warnings: tuple[str, ...]


def stored_report(report: Mapping[str, Any] | None, directory: object) -> StoredReport:
    """Read the report of a manifest.

    Args:
        report: ``Manifest.report``.
        directory: Of the artefact, for messages.

    Raises:
        ArtifactError: There is none, or a value is absent or of the wrong type.
    """
    if report is None:
        raise ArtifactError(
            f"{directory} holds no report of a compression; expected an artefact that 'norton compress' or "
            "CompressionResult.save wrote"
        )
    try:
        return _read(report)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ArtifactError(
            f"the report in {directory} was edited or damaged ({what}); save the artefact again"
        ) from error


def _read(report: Mapping[str, Any]) -> StoredReport:
    decomposition, pruning = report["decomposition"], report["pruning"]
    maps = [_map(group) for group in pruning["groups"] if group.get("distances") is not None]
    return StoredReport(
        macs_before=_count(report["macs_before"]),
        macs_after=_count(report["macs_after"]),
        parameters_before=_count(report["parameters_before"]),
        parameters_after=_count(report["parameters_after"]),
        status=_text(report.get("status", "unknown")) if pruning["groups"] or pruning["skipped"] else "",
        layers=tuple(_layer(entry) for entry in report["layers"]),
        decomposed=len(decomposition["layers"]),
        groups=len(pruning["groups"]),
        maps=tuple(each for each in maps if len(each.filters) > 1),
        left=(*_left("decomposition", decomposition["skipped"]), *_left("pruning", pruning["skipped"])),
        on_images=tuple(_on_images(report)),
        warnings=_texts(report.get("warnings", [])),
    )


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{type(value).__name__} in place of a list of texts")
    return tuple(map(_text, value))


def _layer(entry: Mapping[str, Any]) -> StoredLayer:
    level = entry.get("level")
    if level is not None and level not in _LEVELS:
        raise ValueError(f"a level is {_text(level)[:40]!r}")
    return StoredLayer(
        name=_text(entry["name"]),
        kind=_text(entry["kind"]),
        macs_before=_count(entry["macs_before"]),
        macs_after=_count(entry["macs_after"]),
        parameters_before=_count(entry["parameters_before"]),
        parameters_after=_count(entry["parameters_after"]),
        nmse=None if entry["nmse"] is None else _number(entry["nmse"]),
        kept=_number(entry["kept"]),
        level=level,
        **{key: None if entry.get(key) is None else _count(entry[key]) for key in ("rank", "clusters", "components")},
    )


def _map(group: Mapping[str, Any]) -> StoredMap:
    found = group["distances"]
    filters = tuple(_count(each) for each in found["filters"])
    size = len(filters)
    if size > MOST_FILTERS:
        raise ValueError(f"distances of {size} filters")
    try:
        values = base64.b64decode(_text(found["pairs"]), validate=True)
    except binascii.Error as error:
        raise ValueError("distances that are no base64") from error
    if len(values) != size * (size - 1) // 2:
        raise ValueError(f"{len(values)} distances of {size} filters")
    rows = [[0.0] * size for _ in range(size)]
    pairs = ((i, j) for i in range(size) for j in range(i + 1, size))
    for (i, j), value in zip(pairs, values, strict=True):
        rows[i][j] = rows[j][i] = value / 255
    largest = _number(found["largest"])
    return StoredMap(
        root=_text(group["root"]),
        before=_count(group["before"]),
        after=_count(group["after"]),
        filters=filters,
        removed=frozenset(_count(each) for each in found["removed"]),
        average=_number(found["average"]) / largest if largest > 0 else 0.0,
        rows=tuple(tuple(row) for row in rows),
    )


def _left(phase: str, entries: Any) -> list[Left]:
    """Gather what was left by reason, the most frequent first."""
    names: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        names.setdefault((_text(entry["code"]), _text(entry["reason"])), []).append(_text(entry["name"]))
    ordered = sorted(names.items(), key=lambda item: -len(item[1]))
    return [Left(phase, code, reason, _ADVICE.get(code, ""), tuple(own)) for (code, reason), own in ordered]


def _on_images(report: Mapping[str, Any]) -> Iterator[str]:
    """Say what images did to the model: how near they brought its outputs to the dense model's, and what was kept."""
    for key, words, kept in (
        ("calibration", "Fitted to images", "chosen"),
        ("distillation", "Learned from the dense model on images", "kept"),
    ):
        found = report.get(key)
        if found is not None:
            stages = ", ".join(f"{_text(stage)} {_number(value):.4g}" for stage, value in found["divergence"].items())
            held_back = _count(found["held_back"])
            where = f"{held_back} others" if held_back else "the same images"
            yield f"{words}: {_count(found['images'])}; divergence on {where}: {stages}; kept: {_text(found[kept])}."


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} stands where a text is expected")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise TypeError(f"{str(value)[:40]!r} stands where a number from 0 is expected")
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{str(value)[:40]!r} stands where a whole number from 0 is expected")
    return value
