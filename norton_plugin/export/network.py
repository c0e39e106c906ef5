"""A model as a file holds it: tensors in, a flat tuple of named tensors out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

from norton_plugin.errors import ExportError
from norton_plugin.modules.running import TOLERANCE, ForwardFunction, relative_error, run_model


class ExportedNetwork(nn.Module):
    """Runs a model and flattens what it returns.

    Args:
        model: In evaluation mode, lowered.
        forward_fn: ``(model, inputs) -> output`` where a plain call is not what is exported.
    """

    def __init__(self, model: nn.Module, forward_fn: ForwardFunction | None = None) -> None:
        super().__init__()
        self.model = model
        self._forward_fn = forward_fn

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of the output, in the order of :func:`output_names`."""
        return tuple(tensor for _, tensor in self.named(inputs))

    def named(self, inputs: tuple[Tensor, ...]) -> list[tuple[str, Tensor]]:
        """Run the model, and return the tensors of the output with their names."""
        return _tensors(run_model(self.model, inputs, self._forward_fn))

    def check_repeats(self, inputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
        """Run the model once more.

        Raises:
            ExportError: It returns something else than it did on these inputs: no file can.
        """
        numbers = [index for index, tensor in enumerate(expected) if tensor.is_floating_point()]
        first, again = ([tensors[index] for index in numbers] for tensors in (expected, self(*inputs)))
        finite = all(bool(tensor.isfinite().all()) for tensor in first)
        if finite and relative_error(again, first) > TOLERANCE:
            raise ExportError(
                "the model returns other values each time it runs on one input, since it keeps something of its runs "
                "or draws random numbers; a file would do neither: export a model that does not"
            )

    def output_names(self, inputs: tuple[Tensor, ...]) -> list[str]:
        """Return one name for each output: ``output``, or its place in what the model returns (``boxes``, ``1_0``).

        Raises:
            ExportError: The model returns no tensor, or tensors in an object that cannot be looked into.
        """
        output = run_model(self.model, inputs, self._forward_fn)
        names = [name for name, _ in _tensors(output)]
        if not names:
            raise ExportError(
                f"the model returns a {type(output).__name__} in which no tensor is found, and a file of it would have "
                "no output; return tensors, or tuples, lists, dicts or dataclasses of them"
            )
        return names


def input_names(inputs: tuple[Tensor, ...]) -> list[str]:
    """Return ``input``, or ``input_0``, ``input_1`` and so on for several."""
    return ["input"] if len(inputs) == 1 else [f"input_{index}" for index in range(len(inputs))]


def _tensors(output: Any) -> list[tuple[str, Tensor]]:
    found = []
    for place, leaf in _placed(output):
        if isinstance(leaf, Tensor):
            found.append((f"output_{place}" if place and not place[0].isalpha() else place or "output", leaf))
    return found


def _placed(output: Any) -> Iterator[tuple[str, Any]]:
    """Give every leaf of an output with its place, such as ``boxes`` or ``1_0``."""
    for path, leaf in tree_flatten_with_path(output)[0]:
        place = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
        if is_dataclass(leaf) and not isinstance(leaf, type):
            inner = {field.name: getattr(leaf, field.name) for field in fields(leaf)}
            yield from (("_".join([*place, name]), found) for name, found in _placed(inner))
        else:
            yield "_".join(place), leaf
