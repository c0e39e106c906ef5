"""What was measured of one model on some images, as JSON: another budget needs no measuring."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from norton_plugin.artifact import write_whole
from norton_plugin.artifact.json_file import inside, read_json
from norton_plugin.budget.solve import Values
from norton_plugin.calibration.batches import batch_size
from norton_plugin.calibration.positions import positions_of
from norton_plugin.errors import RecipeError
from norton_plugin.modules.running import output_tensors
from norton_plugin.recipe import Recipe
from norton_plugin.surgery.layouts import Layout

FORMAT = "norton-plugin sensitivities"
VERSION = 1
SENSITIVITIES = "sensitivities.json"  # beside the manifest of an artefact

Cuts = dict[str, list[tuple[tuple[int, ...], float]]]


@dataclass
class SensitivityRecord:
    """What errors of layers and cuts of groups cost.

    Attributes:
        weights: SHA-256 of the model's class and state.
        images: SHA-256 of the images.
        options: Settings that decide what is measured, as JSON has them.
        reached: Whether images and gradients reach all layers.
        lost: Share of its output that each layer, or layer with fewer channels, loses: by level, by rank.
        divergences: Of the model's outputs, that a unit of each layer's error makes.
        cuts: Of each group that may be pruned, its roots that go and the divergence; None where nothing was measured.
        scores: Of the channels of each group, by which they are removed.
    """

    weights: str
    images: str
    options: dict[str, Any]
    reached: bool = True
    lost: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    divergences: dict[str, float] = field(default_factory=dict)
    cuts: Cuts | None = None
    scores: dict[str, list[float]] = field(default_factory=dict)

    def lost_shares(self, key: str, layouts: Sequence[Layout], measure: Callable[[], Values]) -> Values:
        """Return the share of its output that a layer loses in each layout.

        Args:
            key: Of the layer.
            layouts: Its sizes.
            measure: Returns them, where one is not known.
        """
        known = self.lost.setdefault(key, {})
        if any(str(layout.rank) not in known.get(layout.kind, {}) for layout in layouts):
            for layout, value in zip(layouts, measure(), strict=True):
                known.setdefault(layout.kind, {})[str(layout.rank)] = float(value)
        return np.array([known[layout.kind][str(layout.rank)] for layout in layouts])

    def difference(self, other: SensitivityRecord) -> str | None:
        """Say in words in what another record's model, images or options differ; None where they do not."""
        if other.weights != self.weights:
            return "the model or its weights differ"
        if other.images != self.images:
            return "the images differ"
        names = [name for name in self.options | other.options if other.options.get(name) != self.options.get(name)]
        return f"{names[0]} differs" if names else None

    def write(self, path: Path) -> None:
        """Write it as a file: whole, or not at all.

        Raises:
            ArtifactError: It cannot be written; what was there before is untouched.
        """
        content = {"format": FORMAT, "version": VERSION, **vars(self)}
        write_whole(path, (json.dumps(content) + "\n").encode())


def new_record(
    model: nn.Module, batches: Iterable[Any], recipe: Recipe, ignored: Collection[str] = ()
) -> SensitivityRecord:
    """Return an empty record of what is to be measured.

    Args:
        model: The dense model.
        batches: Unlabelled images; all that are measured on.
        recipe: Its scope, levels, pruning and calibration count.
        ignored: Names of modules whose outputs must keep their width.
    """
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    state = [(name, tensor) for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)]
    images = [("", tensor) for batch in batches for tensor in output_tensors(batch)]
    asked, calibration = recipe.decomposition, recipe.calibration
    positions = positions_of(calibration.positions, images=sum(map(batch_size, batches)))
    options = {
        "scope": recipe.scope.to_dict(),
        "decomposition.level": asked.level,
        "decomposition.layers": {pattern: dict(settings) for pattern, settings in asked.layers.items()},
        "decomposition.linear": asked.linear,
        "budget.prune": recipe.budget.prune,
        "pruning": recipe.pruning.to_dict() if recipe.budget.prune else None,
        "calibration.seed": calibration.seed,
        "calibration.positions": positions if recipe.budget.prune else None,
        "ignored": sorted(ignored),
    }
    plain = json.loads(json.dumps(options))
    return SensitivityRecord(_digest(kind, state), _digest("", images), plain)


def _digest(start: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    found = hashlib.sha256(start.encode())
    for name, tensor in tensors:
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        found.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return found.hexdigest()


def read_record(path: str | Path) -> SensitivityRecord:
    """Read the record of an artefact.

    Args:
        path: Of the file, or of the artefact's directory.

    Raises:
        RecipeError: It cannot be read, or is no such record.
    """
    file = inside(path, SENSITIVITIES)
    where = f"the sensitivities {str(file)!r}"
    data = read_json(file, where)
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT or data.pop("version", None) != VERSION:
        raise RecipeError(
            f"{where} are none of version {VERSION}; expected the {SENSITIVITIES} that 'norton compress' wrote"
        )
    try:
        record = SensitivityRecord(**data)
        _check(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecipeError(
            f"{where} are damaged ({type(error).__name__}: {error}); leave them out, or delete the file"
        ) from error
    return record


def _check(record: SensitivityRecord) -> None:
    """Refuse values of other kinds; lists of roots become tuples, as they were."""
    if not isinstance(record.options, Mapping) or not isinstance(record.reached, bool):
        raise ValueError("options or reached")
    for levels in record.lost.values():
        for curve in levels.values():
            _check_numbers([float(int(rank)) for rank in curve], curve.values())
    _check_numbers(record.divergences.values(), *record.scores.values())
    if record.cuts is not None:
        record.cuts = {
            str(root): [(tuple(int(place) for place in roots), float(divergence)) for roots, divergence in cuts]
            for root, cuts in record.cuts.items()
        }


def _check_numbers(*lists: Iterable[Any]) -> None:
    for value in (value for values in lists for value in values):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{value!r} is no number")
