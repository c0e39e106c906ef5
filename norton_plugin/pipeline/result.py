"""What ``compress`` gives back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from norton_plugin.artifact import save
from norton_plugin.budget import SENSITIVITIES, SensitivityRecord
from norton_plugin.latency import TABLE, LatencyTable
from norton_plugin.pipeline.report import CompressionReport
from norton_plugin.recipe import Recipe
from norton_plugin.zoo import ModelSource, input_facts, spec_of


@dataclass(frozen=True)
class CompressionResult:
    """A compressed model and how it came about; unpacks to ``model, report``.

    Attributes:
        model: The compressed model.
        report: What was done, and what was left with its reason.
        recipe: What was asked for.
        latency: Milliseconds of layers, where a budget named some.
        sensitivities: What errors of layers cost, where a budget was met on images.
    """

    model: nn.Module
    report: CompressionReport
    recipe: Recipe
    latency: LatencyTable | None = None
    sensitivities: SensitivityRecord | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.report))

    def __getitem__(self, position: int) -> Any:
        return (self.model, self.report)[position]

    def save(
        self,
        directory: str | Path,
        *,
        source: ModelSource | Mapping[str, Any] | str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the model with its structure, recipe and report as an artefact.

        Args:
            directory: As of ``artifact.save``.
            source: What built the dense model, from ``load_source``, as ``{"kind", "name", "kwargs"}`` or in words
                (``"python:package.module:function"``). With it ``norton_plugin.load(directory)`` needs no dense model;
                without it ``load(directory, model)`` asks for one. That of ``load_source`` knows the model's images,
                too, which commands such as ``norton deploy`` ask for.
            extra: Further JSON-able facts, such as measured accuracy.

        Returns:
            The directory.

        Raises:
            ArtifactError: The directory holds something else, or cannot be written.
            SourceError: The source is none of this; nothing is written.
        """
        facts = dict(extra or {})
        spec = None if source is None else spec_of(source)
        if isinstance(source, ModelSource):
            facts |= input_facts(source.preprocessing, len(source.example_inputs))
        folder = save(
            directory,
            self.model,
            self.report.structure,
            recipe=self.recipe.to_dict(),
            report=self.report.to_dict(),
            source=spec,
            extra=facts,
        )
        self.save_measured(folder)
        return folder

    def save_measured(self, directory: Path) -> None:
        """Write what was measured on the way beside an artefact, to be given again; what was there before goes.

        Raises:
            ArtifactError: It cannot be written.
        """
        for found, name in ((self.latency, TABLE), (self.sensitivities, SENSITIVITIES)):
            if found is None:
                (directory / name).unlink(missing_ok=True)
            else:
                found.write(directory / name)
