"""Milliseconds of layers on one device, as JSON that may be given again in place of measuring."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from norton_plugin.artifact import write_whole
from norton_plugin.artifact.json_file import inside, read_json
from norton_plugin.deploy.table import MEMORY_FORMATS
from norton_plugin.errors import RecipeError

FORMAT = "norton-plugin milliseconds"
VERSION = 1
TABLE = "latency.json"  # beside the manifest of an artefact


@dataclass
class LayerTimes:
    """Milliseconds of one call of a layer.

    Attributes:
        dense: As it is.
        factored: Of each level (with its clusters, ``"layer 1"``) the fastest form, by rank.
    """

    dense: float
    factored: dict[str, dict[int, float]] = field(default_factory=dict)


@dataclass
class LatencyTable:
    """What was measured of one model on one device.

    Attributes:
        milliseconds: Of the whole dense model as it is delivered.
        correction: How many times longer a compressed model took, as a share of the dense one's time, than the layers
            foretold; 1 where none was measured.
        memory_format: ``"contiguous"`` or ``"channels_last"``.
        layers: By ``TimedLayer.key``.
        machine: Device, threads, dtype, input shapes, version of torch; for people.
    """

    milliseconds: float
    correction: float = 1.0
    memory_format: str = "contiguous"
    layers: dict[str, LayerTimes] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    def write(self, path: Path) -> None:
        """Write it as a file: whole, or not at all.

        Raises:
            ArtifactError: It cannot be written; what was there before is untouched.
        """
        write_whole(path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())


def read_table(path: str | Path) -> LatencyTable:
    """Read a table that ``norton compress --budget latency=F`` wrote beside a model.

    Args:
        path: Of the file, or of the artefact's directory.

    Raises:
        RecipeError: It cannot be read, or is no such table.
    """
    file = inside(path, TABLE)
    where = f"the table of milliseconds {str(file)!r}"
    data = read_json(file, where)
    if not isinstance(data, Mapping) or data.get("format") != FORMAT or data.get("version") != VERSION:
        raise RecipeError(
            f"{where} is no table of milliseconds of version {VERSION}; expected the {TABLE} that 'norton compress "
            "--budget latency=F' wrote"
        )
    try:
        layers = {str(key): _layer(entry) for key, entry in data["layers"].items()}
        whole, correction = (_positive(data[name]) for name in ("milliseconds", "correction"))
        if data["memory_format"] not in MEMORY_FORMATS:
            raise ValueError(f"memory_format is {data['memory_format']!r}")
        return LatencyTable(whole, correction, data["memory_format"], layers, dict(data["machine"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecipeError(f"{where} is damaged ({type(error).__name__}: {error}); measure again") from error


def _layer(entry: Any) -> LayerTimes:
    factored = {
        str(level): {int(rank): _positive(ms) for rank, ms in sorted(curve.items(), key=lambda item: int(item[0]))}
        for level, curve in entry["factored"].items()
    }
    return LayerTimes(_positive(entry["dense"]), factored)


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{value!r} is no number of milliseconds")
    return float(value)
