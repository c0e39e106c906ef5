"""A model as a file holds it: tensors in, a flat tuple of named tensors out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

from norton_plugin.errors import ExportError
from norton_plugin.modules.running import ForwardFunction, run_model


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

    def output_names(self, inputs: tuple[Tensor, ...]) -> list[str]:
        """Return one name for each output: ``output``, or its place in what the model returns (``boxes``, ``1_0``).

        Raises:
            ExportError: The model returns no tensor.
        """
        names = [name for name, _ in self.named(inputs)]
        if not names:
            raise ExportError("the model returns no tensor, and a file of it would have no output")
        return names


def input_names(inputs: tuple[Tensor, ...]) -> list[str]:
    """Return ``input``, or ``input_0``, ``input_1`` and so on for several."""
    return ["input"] if len(inputs) == 1 else [f"input_{index}" for index in range(len(inputs))]


def _tensors(output: Any) -> list[tuple[str, Tensor]]:
    found = []
    for path, leaf in tree_flatten_with_path(output)[0]:
        if isinstance(leaf, Tensor):
            place = "_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
            found.append((f"output_{place}" if place and not place[0].isalpha() else place or "output", leaf))
    return found
