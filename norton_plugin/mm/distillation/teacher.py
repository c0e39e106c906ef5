"""The dense model of a compressed run: what distillation learns from, kept beside the checkpoints for a resumed run."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast
from torch import nn

from norton_plugin.errors import ArtifactError, RecipeError
from norton_plugin.mm.classification.classifier import TimmClassifier
from norton_plugin.mm.distillation.losses import FeatureDistillation
from norton_plugin.mm.runner.migration import plain_instances

FILE = "norton_teacher.pth"


@dataclass(frozen=True)
class DistillSettings:
    """What NortonHook's ``distill`` says.

    Attributes:
        weight: Of the distillation loss, above 0. For classifiers (``TimmClassifier`` without ``layers``) its share,
            at most 1: (1 - weight) * cross entropy + weight * distillation of the logits.
        layers: Dotted names of the layers whose outputs are compared; ``None`` for the logits of a ``TimmClassifier``,
            and the neck, or else the backbone, of anything else. These outputs keep their width.
        temperature: Of the softmax over logits, above 0.
        block_weight: For classifiers without ``layers``, of the outputs of all blocks beside the logits
            (``TimmClassifier.set_teacher``), at least 0. Those whose width changes are left out.
    """

    weight: float = 0.5
    layers: tuple[str, ...] | None = None
    temperature: float = 4.0
    block_weight: float = 0.0

    @classmethod
    def from_option(cls, option: bool | Mapping[str, Any] | None) -> DistillSettings | None:
        """Read the option: ``None`` or ``False``, ``True``, or a table of settings.

        Raises:
            RecipeError: An unknown setting, or a value out of its range.
        """
        if option is None or option is False:
            return None
        if option is True:
            return cls()
        known = [field.name for field in fields(cls)]
        if not isinstance(option, Mapping) or (unknown := set(option) - set(known)):
            wrong = f"unknown setting {min(unknown)!r}" if isinstance(option, Mapping) else f"{option!r}"
            raise RecipeError(f"distill: {wrong}; expected True, or a table of {', '.join(known)}")
        given = dict(option)
        layers = given.get("layers")
        if isinstance(layers, str):
            layers = [layers]
        if layers is not None and (not layers or not all(isinstance(name, str) for name in layers)):
            raise RecipeError(f"distill.layers is {layers!r}; expected dotted names of layers, or None")
        for name, bound in (("weight", "above 0"), ("temperature", "above 0"), ("block_weight", "of at least 0")):
            value = given.get(name, 1.0)
            number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
            if not number or (value == 0 and bound == "above 0"):
                raise RecipeError(f"distill.{name} is {value!r}; expected a number {bound}")
        return cls(**{**given, "layers": None if layers is None else tuple(layers)})

    def layers_of(self, model: nn.Module) -> tuple[str, ...]:
        """Return the layers whose outputs are compared; none where it is a classifier's logits.

        Raises:
            RecipeError: A layer that is not there, or none to take by itself; or ``block_weight`` beside layers.
        """
        if self.block_weight and (self.layers is not None or not isinstance(model, TimmClassifier)):
            raise RecipeError(
                f"distill.block_weight is {self.block_weight}, which goes with the logits of a TimmClassifier; here "
                "the outputs of layers are compared: leave it out, and name the blocks in distill.layers"
            )
        if self.layers is not None:
            known = dict(model.named_modules(remove_duplicate=False))
            for name in self.layers:
                if name not in known or not name:
                    raise RecipeError(f"distill.layers names {name!r}, which the {type(model).__name__} does not have")
            return self.layers
        if isinstance(model, TimmClassifier):
            if self.weight > 1:
                raise RecipeError(f"distill.weight is {self.weight}; as a share of a classifier's loss it is at most 1")
            return ()
        for name in ("neck", "backbone"):
            if isinstance(getattr(model, name, None), nn.Module):
                return (name,)
        raise RecipeError(f"the {type(model).__name__} has neither neck nor backbone; name distill.layers")


class DenseTeacher:
    """A frozen copy of the dense model.

    Args:
        model: The dense model, unwrapped; not changed. Every rank's copy gets the first rank's values.
    """

    def __init__(self, model: nn.Module) -> None:
        with plain_instances(model):
            self.model = copy.deepcopy(model).eval().requires_grad_(False)
        for tensor in self.model.state_dict().values():
            broadcast(tensor)

    def write(self, folder: Path) -> dict[str, str]:
        """Write its weights into a folder; what a checkpoint says of them (file name and SHA-256)."""
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{FILE}.part"
        torch.save({"state_dict": self.model.state_dict()}, part)
        part.replace(folder / FILE)
        return {"file": FILE, "sha256": _digest(folder / FILE)}

    def read(self, folders: Iterable[Path], note: Mapping[str, str] | None, *, keep_in: Path | None = None) -> None:
        """Take the weights that a checkpoint speaks of.

        Args:
            folders: Where they may be.
            note: As :meth:`write` returned it; ``None`` where the run wrote none.
            keep_in: Folder that gets a copy of the file where it has none, for the next resume; ``None`` for none.

        Raises:
            ArtifactError: They are not there, or are others.
        """
        if note is None:
            raise ArtifactError(
                "distill needs the dense weights, and the checkpoint is of a run without distillation; leave distill "
                "out, or start again from the dense weights"
            )
        searched = list(dict.fromkeys(folders))
        found = [folder / note["file"] for folder in searched if (folder / note["file"]).is_file()]
        if not found:
            raise ArtifactError(
                f"distill needs the dense weights in {note['file']}, which the run wrote beside its checkpoints; it is "
                f"not in {' or '.join(str(folder) for folder in searched)}: copy it there"
            )
        for path in found:
            if _digest(path) == note["sha256"]:
                state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
                self.model.load_state_dict(state)
                if keep_in is not None:
                    _keep(path, keep_in / FILE, note["sha256"])
                return
        raise ArtifactError(
            f"{found[0]} is not the file that the run wrote (another SHA-256); copy the right one there"
        )

    def attach(self, model: nn.Module, settings: DistillSettings) -> FeatureDistillation | None:
        """Let the compressed model learn from it.

        Args:
            model: Unwrapped.
            settings: How.

        Returns:
            What listens to the model; ``None`` for a classifier's logits.
        """
        layers = settings.layers_of(model)
        if layers:
            return FeatureDistillation(model, self.model, layers, weight=settings.weight)
        assert isinstance(model, TimmClassifier)  # noqa: S101
        assert isinstance(self.model, TimmClassifier)  # noqa: S101
        weights = {"weight": settings.weight, "block_weight": settings.block_weight}
        model.set_teacher(self.model.model, **weights, temperature=settings.temperature)
        return None


def _keep(source: Path, target: Path, digest: str) -> None:
    if target.is_file() and _digest(target) == digest:
        return
    part = target.with_name(f"{target.name}.part")
    part.write_bytes(source.read_bytes())
    part.replace(target)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
