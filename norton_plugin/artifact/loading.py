"""Reading an artefact while others may be writing it."""

from __future__ import annotations

import copy
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from norton_plugin.artifact import bounded_json
from norton_plugin.artifact.folder import (
    MANIFEST,
    WEIGHTS,
    is_same_file,
    is_temporary,
    open_file,
    pending_name,
    reason,
    shown,
)
from norton_plugin.artifact.manifest import Manifest, absent, from_bytes
from norton_plugin.artifact.weights import (
    StoredWeights,
    check_names,
    check_shapes,
    load_weights_,
    open_weights,
    state_tensors,
)
from norton_plugin.errors import ArtifactError
from norton_plugin.hf import carry_
from norton_plugin.modules.random_state import preserved_random_state
from norton_plugin.surgery.structure import apply_structure_
from norton_plugin.surgery.structure_entries import read_entries, tensor_shapes
from norton_plugin.zoo import rebuild

# Each try that fails means that somebody completed a save within a few milliseconds.
_TRIES = 200
_PAUSE = 0.005


@dataclass(frozen=True)
class StoredArtifact:
    """An open artefact: a manifest and the weights that belong to it, whatever is saved there meanwhile.

    Attributes:
        manifest: What ``norton.json`` says.
        weights: The file of weights, of which the header was read.
    """

    manifest: Manifest
    weights: StoredWeights

    def restore(self, model: nn.Module) -> nn.Module:
        """Rebuild the compressed model.

        Args:
            model: The dense original, freshly built with the same constructor; it is not changed.

        Returns:
            The compressed model, with the flags and device of ``model``.

        Raises:
            ArtifactError: The weights are damaged, or the model is not the one that was compressed (the first
                difference is named).
        """
        rebuilt = copy.deepcopy(model)
        apply_structure_(rebuilt, self.manifest.structure)
        check_names(state_tensors(rebuilt), self.weights.shapes)  # before the file is read
        load_weights_(rebuilt, self.weights.read())
        carry_(rebuilt, self.manifest.structure)
        return rebuilt


def load(directory: str | Path, model: nn.Module | None = None, *, trust_code: bool = False) -> nn.Module:
    """Rebuild a compressed model from its artefact.

    Args:
        directory: As given to ``save``.
        model: The dense original, freshly built with the same constructor; it is not changed. Where it is left out, the
            artefact's own source builds it: artefacts of the ``norton`` command have one, and those of
            ``CompressionResult.save(directory, source=...)``.
        trust_code: Run the Python function that a source of kind ``python`` names; look at it first.

    Returns:
        The compressed model, with the flags and device of ``model`` (in evaluation mode, on the CPU, where the source
        built it).

    Raises:
        ArtifactError: A damaged file, a model that is not the one that was compressed (the first difference is named),
            or no model where the artefact has no source.
        SourceError: The source cannot be built here, or is code that is not trusted.
    """
    # Constructors draw the weights that are replaced at once: the caller's random numbers are not used up for them.
    with preserved_random_state(), open_artifact(directory) as stored:
        if model is None:
            source = stored.manifest.source
            if not source:
                raise ArtifactError(
                    f"{shown(directory)} does not say what built its model; give the dense one: load(directory, model)"
                )
            model = rebuild(source, trust_code=trust_code)
        return stored.restore(model)


@contextmanager
def open_artifact(directory: str | Path) -> Iterator[StoredArtifact]:
    """Open manifest and weights of one and the same artefact.

    The structure is compared with the header of the weights: what it asks for is there, so that no model is built
    and no memory taken for one that is not.

    Args:
        directory: As given to ``save``.

    Raises:
        ArtifactError: A file is missing or damaged, or the two do not belong together.
    """
    folder = Path(directory)
    for _ in range(_TRIES):
        with ExitStack() as stack:
            try:
                manifest_file = stack.enter_context(open_file(folder / MANIFEST))
            except FileNotFoundError as error:
                raise absent(directory, error) from error
            manifest = from_bytes(manifest_file.read(bounded_json.MOST_BYTES + 1), folder / MANIFEST)
            found = _enter_weights(stack, folder, manifest)
            # The weights were looked for while this very file was norton.json, so they are its own.
            if is_same_file(manifest_file, folder / MANIFEST):
                if isinstance(found, ArtifactError):
                    raise found
                check_shapes(tensor_shapes(read_entries(manifest.structure)), found.shapes)
                yield StoredArtifact(manifest, found)
                return
        time.sleep(_PAUSE)
    raise ArtifactError(f"{shown(directory)} is being replaced all the time; load it when that is over")


def _enter_weights(stack: ExitStack, folder: Path, manifest: Manifest) -> StoredWeights | ArtifactError:
    """Open the weights of a manifest, or return why they cannot be had."""
    for name in (pending_name(manifest.weights_hash), WEIGHTS):
        try:
            return stack.enter_context(open_weights(folder / name, manifest.weights_hash))
        except FileNotFoundError:
            continue
        except ArtifactError as error:
            return error
    return ArtifactError(f"{shown(folder / WEIGHTS)} cannot be read (No such file or directory); an artefact needs it")


def check_replaceable(directory: str | Path, *, thorough: bool = True) -> None:
    """Check that nothing is lost when an artefact is saved in a directory.

    It may be absent, be empty, or hold an artefact that is whole, beside which other files stay. Where ``norton.json``
    or the weights are damaged or from elsewhere, only a person can tell what they are worth.

    Args:
        directory: As given to ``save``.
        thorough: Read the weights as well, not their header alone.

    Raises:
        ArtifactError: It holds something else, or cannot be read.
    """
    folder = Path(directory)
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
        names = {entry.name for entry in folder.iterdir() if not is_temporary(entry.name)} if is_folder else {"itself"}
    except FileNotFoundError:
        return
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{shown(directory)} cannot be read ({reason(error)})") from error
    if not names:
        return
    if MANIFEST not in names:
        raise ArtifactError(f"{shown(directory)} exists and is not an artefact; choose another directory")
    try:
        with open_artifact(folder) as stored:
            if thorough:
                stored.weights.check_hash()
    except ArtifactError as error:
        raise ArtifactError(
            f"{shown(directory)} holds no whole artefact, and nothing in it is replaced: {error}. Move its files away, "
            "or choose another directory"
        ) from error
