"""What the modules of a model are called with."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from norton_plugin.errors import NortonError, SurgeryError
from norton_plugin.modules.running import ForwardFunction, run_model, traceable


def largest_inputs(
    model: nn.Module, modules: Collection[nn.Module], example_inputs: Any, forward_fn: ForwardFunction | None = None
) -> dict[nn.Module, Tensor]:
    """Run a model once and return the largest first argument of every module that was called.

    Args:
        model: Run in evaluation mode without gradients; flags are restored.
        modules: Parts of the model.
        example_inputs: See ``modules.running.run_model``.
        forward_fn: Likewise.

    Returns:
        The inputs, in the order of first calls; modules that the example does not reach are absent.

    Raises:
        SurgeryError: The model does not run on the example.
    """
    found: dict[nn.Module, Tensor] = {}

    def remember(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if module not in found or arguments[0].numel() > found[module].numel():
            found[module] = arguments[0].detach()

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(remember).remove)
        try:
            with traceable(model):
                run_model(model, example_inputs, forward_fn)
        except NortonError:  # it says itself what is wrong
            raise
        except Exception as error:
            raise SurgeryError(
                f"the model does not run on the example inputs ({type(error).__name__}: {error}); give an example of "
                "the shape, dtype and device it expects"
            ) from error
    return found
