"""A compressed model on disk: a directory with ``norton.json`` and ``model.safetensors``.

``norton.json`` holds the format version, the structure and its hash, the recipe, the report, and the source that
builds the dense original. Nothing in an artefact is executable.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from norton_plugin.errors import ArtifactError
from norton_plugin.surgery.structure import Structure, apply_structure_, structure_hash

FORMAT = "norton-plugin artefact"
VERSION = 1
MANIFEST = "norton.json"
WEIGHTS = "model.safetensors"


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


def save(
    directory: str | Path,
    model: nn.Module,
    structure: Structure,
    *,
    recipe: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Writes an artefact; one that was there before is replaced only once the new one is complete.

    Args:
        directory: Made, or replaced if it holds an artefact (or nothing).
        model: The compressed model.
        structure: ``CompressionReport.structure``.
        recipe: ``Recipe.to_dict()``.
        report: ``CompressionReport.to_dict()``.
        source: ``ModelSource.spec``.
        extra: Further JSON-able facts, such as measured accuracy.

    Returns:
        The directory.

    Raises:
        ArtifactError: The directory holds something else, or cannot be written; what was there is untouched.
    """
    target = Path(directory).resolve()
    work: Path | None = None
    try:
        if not _replaceable(target):
            raise ArtifactError(f"{directory} exists and is not an artefact; choose another directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        (work / "new").mkdir()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "structure": structure,
            "structure_hash": structure_hash(structure),
            "weights_hash": _write_weights(work / "new" / WEIGHTS, model),
            "recipe": recipe,
            "report": report,
            "source": source,
            "extra": dict(extra or {}),
        }
        text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
        (work / "new" / MANIFEST).write_text(text, encoding="utf-8")
        _replace(target, work / "new", work / "previous")
    except (OSError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(
            f"the artefact could not be written to {directory} ({type(error).__name__}: {error}); "
            "what was there before is untouched"
        ) from error
    finally:
        # Nothing is deleted before an artefact stands where one is expected.
        if work is not None and (target.exists() or not (work / "previous").exists()):
            shutil.rmtree(work, ignore_errors=True)
    return Path(directory)


def _replaceable(target: Path) -> bool:
    """Whether nothing is lost by writing an artefact there."""
    if not target.exists():
        return True
    return target.is_dir() and ((target / MANIFEST).exists() or not any(target.iterdir()))


def _write_weights(path: Path, model: nn.Module) -> str:
    """Writes all tensors of the state dict and returns the file's hash."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise ArtifactError(f"{name} is a {type(tensor).__name__}; only tensors can be stored in an artefact")
        # A copy each: safetensors refuses names that share memory.
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    save_file(tensors, path)
    return _file_hash(path)


def _replace(target: Path, new: Path, aside: Path) -> None:
    """Moves a complete artefact into place; the previous one steps aside first and comes back if the move fails."""
    if not target.exists():
        new.rename(target)
        return
    target.rename(aside)
    try:
        new.rename(target)
    except BaseException:
        aside.rename(target)
        raise


def read_manifest(directory: str | Path) -> Manifest:
    """Reads and checks ``norton.json``.

    Raises:
        ArtifactError: Missing or truncated files, an unknown format or version, a hash that does not match.
    """
    path = Path(directory) / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{directory} is not an artefact: {MANIFEST} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}); save the artefact again") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ArtifactError(f"{path} is not the manifest of an artefact; expected a file that norton_plugin.save wrote")
    if data.get("version") != VERSION:
        raise ArtifactError(
            f"{path} has version {data.get('version')!r}, this package reads version {VERSION}; "
            "install the norton-plugin release that wrote it"
        )
    structure = data.get("structure")
    if not isinstance(structure, dict) or structure_hash(structure) != data.get("structure_hash"):
        raise ArtifactError(f"the structure in {path} does not match its hash: it was edited or damaged; save again")
    return Manifest(
        structure=structure,
        weights_hash=str(data.get("weights_hash")),
        recipe=data.get("recipe"),
        report=data.get("report"),
        source=data.get("source"),
        extra=data.get("extra") or {},
    )


def load(directory: str | Path, model: nn.Module) -> nn.Module:
    """Rebuilds a compressed model from its artefact.

    Args:
        directory: As given to ``save``.
        model: The dense original, freshly built with the same constructor; it is not changed.

    Returns:
        The compressed model, with the flags and device of ``model``.

    Raises:
        ArtifactError: A damaged file, or a model that is not the one that was compressed (the first difference is
            named).
    """
    manifest = read_manifest(directory)
    tensors = _read_weights(Path(directory) / WEIGHTS, manifest.weights_hash)
    rebuilt = copy.deepcopy(model)
    apply_structure_(rebuilt, manifest.structure)
    load_weights_(rebuilt, tensors)
    return rebuilt


def load_weights_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies weights into a rebuilt model; every name and shape must fit.

    Raises:
        ArtifactError: A tensor is missing, unexpected or of another shape; nothing is changed then.
    """
    own = model.state_dict()
    unreal = next((name for name, tensor in own.items() if tensor.is_meta), None)
    if unreal is not None:
        raise ArtifactError(f"{unreal} is on the meta device and cannot hold weights; build the model on a real one")
    for name in sorted(set(own) | set(tensors)):
        if name not in tensors:
            raise ArtifactError(f"the weights lack {name}, which the rebuilt model has")
        if name not in own:
            raise ArtifactError(f"the weights hold {name}, which the rebuilt model does not have")
        if own[name].shape != tensors[name].shape:
            raise ArtifactError(
                f"{name} has shape {tuple(tensors[name].shape)} in the weights, {tuple(own[name].shape)} in the model"
            )
    _cast_(model, tensors)
    model.load_state_dict(dict(tensors), strict=True)


def _cast_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives the model the data types of the stored tensors, so that copying them rounds nothing."""
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(kinds) == 1:
        model.to(kinds.pop())  # with the buffers that no state dict holds
        return
    for name, own in model.state_dict(keep_vars=True).items():
        own.data = own.data.to(tensors[name].dtype)


def _read_weights(path: Path, expected: str) -> dict[str, Tensor]:
    try:
        if _file_hash(path) != expected:
            raise ArtifactError(f"{path} does not match the hash in {MANIFEST}: it is truncated or was replaced")
        return load_file(path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); an artefact needs it") from error
    except SafetensorError as error:
        raise ArtifactError(f"{path} is damaged ({error}); save the artefact again") from error


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


__all__ = ["Manifest", "load", "load_weights_", "read_manifest", "save"]
