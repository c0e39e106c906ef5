"""An artefact opened without anything else: its model, inputs that it takes, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from norton_plugin.artifact.loading import open_artifact
from norton_plugin.artifact.manifest import Manifest
from norton_plugin.artifact.stored_inputs import stored_inputs
from norton_plugin.errors import ArtifactError
from norton_plugin.modules.running import ForwardFunction
from norton_plugin.zoo import Preprocessing, forward_of, rebuild


@dataclass(frozen=True)
class OpenedArtifact:
    """A compressed model ready to run.

    Attributes:
        model: In evaluation mode, on the CPU.
        example_inputs: Random tensors of batch 1.
        preprocessing: Size and normalisation of its images.
        manifest: All else that was stored.
        forward_fn: ``(model, example_inputs) -> output`` where a plain call does not run the model.
    """

    model: nn.Module
    example_inputs: tuple[Tensor, ...]
    preprocessing: Preprocessing
    manifest: Manifest
    forward_fn: ForwardFunction | None


def open_model_of(directory: str | Path, *, trust_code: bool = False) -> OpenedArtifact:
    """Open an artefact that says what built its model and what its images look like.

    Args:
        directory: As given to ``save``.
        trust_code: Run the Python function that a source of kind ``python`` names; look at it first.

    Raises:
        ArtifactError: It is damaged, or does not say one of the two.
        SourceError: The source cannot be built here, or is code that is not trusted.
    """
    with open_artifact(directory) as stored:
        manifest = stored.manifest
        if not manifest.source:
            raise ArtifactError(
                f"{directory} does not say what built its model; load it in Python with norton_plugin.load"
            )
        preprocessing, inputs = stored_inputs(manifest, Path(directory))
        model = stored.restore(rebuild(manifest.source, trust_code=trust_code))
    generator = torch.Generator().manual_seed(0)
    example = tuple(torch.randn((1, *preprocessing.input_size), generator=generator) for _ in range(inputs))
    return OpenedArtifact(model, example, preprocessing, manifest, forward_of(manifest.source, model, example))
