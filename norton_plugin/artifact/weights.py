"""The tensors of an artefact: how they are written, what their file says before any is read, and how they are read."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from norton_plugin.artifact.folder import is_same_file, open_file, shown
from norton_plugin.blocks import CPDBlock
from norton_plugin.errors import ArtifactError
from norton_plugin.zoo.versions import with_versions

# That of 150,000 tensors; the library itself would read 100 MB.
_MOST_HEADER_BYTES = 16 * 2**20
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the state dict, by name.

    Raises:
        ArtifactError: An entry is no tensor.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise ArtifactError(f"{name} is a {type(tensor).__name__}; only tensors can be stored in an artefact")
        tensors[name] = tensor.detach()
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors to a file.

    Args:
        path: Not there yet.
        tensors: By name.

    Returns:
        The file's SHA-256.
    """
    # A copy each: safetensors refuses names that share memory.
    save_file({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        return _sha256(file)


def check_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Check that tensors which a structure asks for are those that are stored.

    Args:
        expected: Shapes by the structure.
        found: Shapes of all stored tensors.

    Raises:
        ArtifactError: One is absent or of another shape.
    """
    for name, shape in expected.items():
        if found.get(name) != shape:
            stored = f"has shape {found[name]}" if name in found else "is absent"
            raise ArtifactError(
                f"{name} {stored} in the weights, and the structure asks for {shape}: they do not belong together"
            )


@dataclass(frozen=True)
class StoredWeights:
    """An open file of weights, of which no more than the header was read.

    Attributes:
        path: Where it was opened; another file may stand there by now.
        shapes: Of all tensors, by name.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    _expected_hash: str
    _file: BinaryIO
    _reader: Any

    def check_hash(self) -> None:
        """Check that the whole file is as it was written.

        Raises:
            ArtifactError: It is not.
        """
        self._file.seek(0)
        try:
            found = _sha256(self._file)
        except OSError as error:
            raise ArtifactError(f"{shown(self.path)} cannot be read ({error.strerror})") from error
        if found != self._expected_hash:
            raise ArtifactError(
                f"{shown(self.path)} does not match the hash in norton.json: it is truncated or was replaced"
            )

    def read(self) -> dict[str, Tensor]:
        """Return the tensors, once the hash of the file is checked; pages of the file become memory as they are used.

        Raises:
            ArtifactError: The file is not as it was written.
        """
        self.check_hash()
        try:
            return {name: self._reader.get_tensor(name) for name in self.shapes}
        except (SafetensorError, RuntimeError, MemoryError) as error:
            raise ArtifactError(f"{shown(self.path)} cannot be read ({type(error).__name__}: {error})") from error


@contextmanager
def open_weights(path: Path, expected_hash: str) -> Iterator[StoredWeights]:
    """Open a file of weights and read its header.

    Args:
        path: The file.
        expected_hash: What the manifest says; see ``StoredWeights.check_hash``.

    Raises:
        ArtifactError: It is no whole file of safetensors.
        FileNotFoundError: It is not there, or was renamed while it was opened.
    """
    with open_file(path) as file, ExitStack() as stack:
        length = file.read(8)
        if len(length) == 8 and int.from_bytes(length, "little") > _MOST_HEADER_BYTES:
            raise ArtifactError(
                f"{shown(path)} is no whole file of safetensors (it begins with a header of "
                f"{int.from_bytes(length, 'little')} bytes, at most {_MOST_HEADER_BYTES} are read): it is truncated or "
                "was replaced"
            )
        try:
            # The library compares shapes, types and offsets of all tensors with each other and with the file's length.
            reader = stack.enter_context(safe_open(path, framework="pt"))
            shapes = {name: tuple(reader.get_slice(name).get_shape()) for name in reader.keys()}  # noqa: SIM118
            problem = None
        except (SafetensorError, OSError, RuntimeError, ValueError, MemoryError) as error:
            problem = error
        # It opened the file by its name: what it saw counts only where that is still the one opened here.
        if not is_same_file(file, path):
            raise FileNotFoundError(errno.ENOENT, "It was replaced", str(path)) from problem
        if isinstance(problem, SafetensorError):
            raise ArtifactError(
                f"{shown(path)} is no whole file of safetensors ({problem}): it is truncated or was replaced"
            ) from problem
        if problem is not None:
            raise ArtifactError(f"{shown(path)} cannot be read ({problem}); an artefact needs it") from problem
        yield StoredWeights(path, shapes, expected_hash, file, reader)


def load_weights_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy weights into a rebuilt model; every name, shape and kind of number must fit.

    Args:
        model: Takes the data types of the weights where both are floating-point.
        tensors: By the names of its state dict.

    Raises:
        ArtifactError: A tensor is missing, unexpected, of another shape or of another kind, or gives filters places
            that no block has; nothing is changed then.
    """
    own = state_tensors(model)
    unreal = next((name for name, tensor in own.items() if tensor.is_meta), None)
    if unreal is not None:
        raise ArtifactError(f"{unreal} is on the meta device and cannot hold weights; build the model on a real one")
    check_names(own, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        same = tensor.dtype == own[name].dtype or (tensor.dtype in _FLOATS and own[name].dtype in _FLOATS)
        if not same:
            raise ArtifactError(f"{name} is {tensor.dtype} in the weights, {own[name].dtype} in the model")
    for name, module in model.named_modules():
        slot = f"{name}.slot" if name else "slot"
        if isinstance(module, CPDBlock) and slot in tensors and (problem := module.wrong_places(tensors[slot])):
            raise ArtifactError(f"{slot} {problem}; the weights were edited or damaged: save the artefact again")
    _cast_(model, tensors)
    model.load_state_dict(with_versions(tensors, model), strict=True)


def check_names(own: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that stored tensors are those of a model.

    Args:
        own: Of the model's state dict.
        shapes: Of the stored ones.

    Raises:
        ArtifactError: The first difference.
    """
    for name in sorted(set(own) | set(shapes)):
        if name not in shapes:
            raise ArtifactError(f"the weights lack {name}, which the rebuilt model has")
        if name not in own:
            raise ArtifactError(f"the weights hold {name}, which the rebuilt model does not have")
        if tuple(own[name].shape) != shapes[name]:
            raise ArtifactError(
                f"{name} has shape {shapes[name]} in the weights, {tuple(own[name].shape)} in the model"
            )


def _cast_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the model the floating-point types of the stored tensors, so that copying them rounds nothing."""
    kinds = {tensor.dtype for tensor in tensors.values()}.intersection(_FLOATS)
    if len(kinds) == 1:
        [kind] = kinds
        for own in (*model.parameters(), *model.buffers()):  # with those that no state dict holds
            if own.dtype in _FLOATS:
                own.data = own.data.to(kind)
        return
    for name, own in model.state_dict(keep_vars=True).items():
        own.data = own.data.to(tensors[name].dtype)


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
