"""Writing an artefact: complete, or not at all, whatever happens on the way (the steps: ``norton_plugin.artifact``)."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from norton_plugin.artifact.folder import LOCK, MANIFEST, WEIGHTS, is_temporary, pending_name, shown, temporary_name
from norton_plugin.artifact.folder_lock import sole_writer
from norton_plugin.artifact.loading import check_replaceable
from norton_plugin.artifact.manifest import read_manifest, to_bytes, to_json
from norton_plugin.artifact.weights import check_shapes, state_tensors, write_tensors
from norton_plugin.errors import ArtifactError
from norton_plugin.surgery.structure import Structure
from norton_plugin.surgery.structure_entries import read_entries, tensor_shapes

_FAILURES = (
    OSError,
    TypeError,
    ValueError,
    RuntimeError,
    LookupError,
    OverflowError,
    MemoryError,
    RecursionError,
    SafetensorError,
)


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
    """Write an artefact; one that was there before stands until the new one is complete, and is replaced in one step.

    Other files in the directory stay. A link to a directory is followed. Several processes may save to one directory:
    they wait for each other, and the last one's artefact stays. File modes are those that the umask gives.

    Args:
        directory: Made where it is absent; empty, or that of an artefact, otherwise.
        model: The compressed model.
        structure: ``CompressionReport.structure``.
        recipe: ``Recipe.to_dict()``.
        report: ``CompressionReport.to_dict()``.
        source: ``ModelSource.spec``.
        extra: Further JSON-able facts, such as measured accuracy.

    Returns:
        The directory.

    Raises:
        ArtifactError: The directory holds something else, or cannot be written, or the structure is not that of the
            model; what was there is untouched.
    """
    try:
        data = to_json(
            {"structure": structure, "recipe": recipe, "report": report, "source": source, "extra": dict(extra or {})}
        )
        tensors = state_tensors(model)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        check_shapes(tensor_shapes(read_entries(data["structure"])), shapes)
        target = Path(directory).resolve()
        str(target).encode()  # safetensors opens no file whose name is not text
        check_replaceable(target, thorough=False)  # nothing is touched where somebody else's files are
        _save(target, tensors, data)
        return Path(directory)
    except _FAILURES as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(
            f"the artefact could not be written to {shown(directory)} ({type(error).__name__}: {error}); "
            "what was there before is untouched"
        ) from error


def _save(target: Path, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
    new = [folder for folder in (target, *target.parents) if not folder.exists()]
    try:
        with sole_writer(target) as sole:
            for folder in new:
                _sync(folder.parent)
            check_replaceable(target)
            _finish(target)
            _sweep(target, sole=sole)
            try:
                _replace(target, tensors, data)
            finally:
                _sweep(target, sole=sole)
    finally:
        for folder in new:
            with suppress(OSError):
                folder.rmdir()  # only where it is empty: after a failure


def _replace(target: Path, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
    """Write the new files in full, then let them take over."""
    work = target / temporary_name()
    work.mkdir()
    try:
        weights_hash = write_tensors(work / WEIGHTS, tensors)
        (work / MANIFEST).write_bytes(to_bytes(data, weights_hash=weights_hash))
        (work / WEIGHTS).chmod((work / MANIFEST).stat().st_mode & 0o777)  # safetensors makes it for the user alone
        _sync(work / WEIGHTS)
        _sync(work / MANIFEST)
        os.replace(work / WEIGHTS, target / pending_name(weights_hash))
        _sync(target)
        os.replace(work / MANIFEST, target / MANIFEST)  # from here on the new artefact stands
    finally:
        shutil.rmtree(work, ignore_errors=True)
    with suppress(OSError):  # readers find the weights under either name, and the next save tries again
        _sync(target)
        _finish(target)


def _finish(target: Path) -> None:
    """Give weights that a manifest names already their lasting name."""
    if not (target / MANIFEST).exists():
        return
    pending = target / pending_name(read_manifest(target).weights_hash)
    if pending.exists():
        os.replace(pending, target / WEIGHTS)
        _sync(target)


def _sweep(target: Path, *, sole: bool) -> None:
    """Remove what writers left that were ended on their way.

    Args:
        target: The directory.
        sole: Whether no other writer can be alive; otherwise nothing is removed.
    """
    if not sole:
        return
    with suppress(OSError, ArtifactError):
        used = pending_name(read_manifest(target).weights_hash) if (target / MANIFEST).exists() else ""
        for entry in [entry for entry in target.iterdir() if is_temporary(entry.name)]:
            if entry.name in (used, LOCK):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink()


def _sync(path: Path) -> None:
    """Wait until a file, or what a directory lists, is on the disk."""
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise  # some file systems know no such thing for directories
    finally:
        os.close(number)
