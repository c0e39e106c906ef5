"""What was chosen for a model's deployment, as JSON that another machine can take over without measuring."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from norton_plugin.artifact import write_whole
from norton_plugin.artifact.json_file import read_json
from norton_plugin.blocks import FORMS, Form
from norton_plugin.deploy.memory_format import FORMATS as _LAYOUTS
from norton_plugin.errors import RecipeError

FORMAT = "norton-plugin forms"
VERSION = 1
LINEAR: Literal["linear"] = "linear"  # the one form of a CPDLinear
MEMORY_FORMATS = tuple(_LAYOUTS)


@dataclass(frozen=True)
class BlockChoice:
    """The form that one block was lowered in.

    Attributes:
        name: Dotted name of the block.
        form: The form; ``"linear"`` for a CPDLinear, which has one only.
        milliseconds: Median time of the form where it was measured, else None.
        reason: Why this one, in words.
        candidates: Median milliseconds of every form that was measured.
    """

    name: str
    form: Form | Literal["linear"]
    milliseconds: float | None
    reason: str
    candidates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DeploymentTable:
    """All choices for one model.

    Attributes:
        blocks: One entry per block.
        memory_format: ``"contiguous"`` or ``"channels_last"``.
        compiled: Whether torch.compile was chosen.
        folded: Whether norms are folded.
        machine: Where it was made: device, dtype, batch, threads, version of torch; for people.
    """

    blocks: tuple[BlockChoice, ...]
    memory_format: str = "contiguous"
    compiled: bool = False
    folded: bool = True
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def forms(self) -> dict[str, str]:
        """The form of every block by its name."""
        return {choice.name: choice.form for choice in self.blocks}

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        plain = asdict(self)
        return {"format": FORMAT, "version": VERSION, **plain, "blocks": [asdict(choice) for choice in self.blocks]}

    def write(self, path: Path) -> None:
        """Write it as a file: whole, or not at all.

        Raises:
            ArtifactError: It cannot be written; what was there before is untouched.
        """
        write_whole(path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())


def read_table(path: str | Path) -> DeploymentTable:
    """Read the table that ``norton deploy`` wrote beside a model.

    Raises:
        RecipeError: The file cannot be read, or is no such table.
    """
    return table_from(read_json(path, f"the table {str(path)!r}"), str(path))


def table_from(data: Any, where: str) -> DeploymentTable:
    """Check a table that came as JSON from anyone.

    Args:
        data: As ``DeploymentTable.to_dict`` made it.
        where: For messages.

    Raises:
        RecipeError: It is no such table.
    """
    if not isinstance(data, Mapping) or data.get("format") != FORMAT or data.get("version") != VERSION:
        raise RecipeError(f"{where} is no table of forms of version {VERSION}; expected one that 'norton deploy' wrote")
    blocks, machine = data.get("blocks"), data.get("machine")
    if not isinstance(blocks, list) or not isinstance(machine, Mapping):
        raise RecipeError(f"{where} is damaged: it lists no blocks or no machine")
    if data.get("memory_format") not in MEMORY_FORMATS:
        raise RecipeError(f"{where} has an unknown memory_format; expected one of {MEMORY_FORMATS}")
    flags = {name: data.get(name) for name in ("compiled", "folded")}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise RecipeError(f"{where} is damaged: compiled and folded have to be true or false")
    choices = tuple(_choice(entry, where) for entry in blocks)
    return DeploymentTable(choices, data["memory_format"], machine=dict(machine), **flags)  # type: ignore[arg-type]


def _choice(entry: Any, where: str) -> BlockChoice:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise RecipeError(f"{where} is damaged: a block has no name")
    name, form, milliseconds = entry["name"], entry.get("form"), entry.get("milliseconds")
    if form not in (*FORMS, LINEAR):
        raise RecipeError(f"{where}: the form of {name!r} is unknown; expected one of {(*FORMS, LINEAR)}")
    candidates = entry.get("candidates")
    numbers = list(candidates.values()) if isinstance(candidates, Mapping) else []
    numbers += [] if milliseconds is None else [milliseconds]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers):
        raise RecipeError(f"{where}: milliseconds of {name!r} are no numbers")
    return BlockChoice(name, form, milliseconds, str(entry.get("reason", "")), dict(candidates or {}))
