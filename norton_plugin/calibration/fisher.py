"""How much an error in each output channel of a layer changes what the model says (docs/method.md, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.calibration.batches import batch_size, parts_of
from norton_plugin.calibration.comparable import ComparableOutputs, are_logits
from norton_plugin.calibration.lockstep import failures_explained
from norton_plugin.calibration.moments import not_finite
from norton_plugin.errors import SurgeryError
from norton_plugin.modules.running import traceable


def fisher_weights(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    *,
    call: Callable[[nn.Module, Any], Any],
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the Fisher information of the output channels of layers.

    The mean over images of the squared gradient of log p(y) by each output, summed over positions, with y drawn from
    the model's own prediction: half of it times a small squared error of an output is about the divergence it causes.
    Outputs (B, classes) are logits; anything else that can be compared (`comparable.ComparableOutputs`) is the mean of
    a Gaussian of unit variance. Batches run in parts of few images, since the pass holds all activations.

    Args:
        model: Run in evaluation mode; parameters, gradients and flags stay as they are.
        layers: By name; of shared ones all calls are added up. Channels are dimension 1, the last of a Linear layer.
        batches: Unlabelled images.
        call: Runs the model on a batch.
        seed: Of what is drawn.

    Returns:
        (N,) in double precision for every layer that was reached.

    Raises:
        SurgeryError: No image came, the model does not run on one, or an output or a gradient is not finite; the layer
            is named.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    seen: list[tuple[str, Tensor]] = []

    def remember(name: str, module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.numel():
            return output
        if not bool(torch.isfinite(output).all()):
            raise not_finite(name)
        output = output if output.requires_grad else output.detach().requires_grad_()
        seen.append((name, output))
        return output.clone()  # what follows in place must not change what the gradient is taken by

    handles = [layer.register_forward_hook(partial(remember, name)) for name, layer in layers.items()]
    images, compared = 0, None
    try:
        for batch in chain.from_iterable(map(parts_of, batches)):
            if compared is None:
                with traceable(model), failures_explained():
                    compared = ComparableOutputs.of(model, batch, call)
            seen.clear()
            with traceable(model), torch.enable_grad():
                with failures_explained():
                    outputs = compared.read(model, batch, call)
                likelihood = _drawn_likelihood(outputs, generator)
                # A model that stops gradients reaches no layer.
                reached = list(seen) if likelihood.requires_grad else []
                by = [output for _, output in reached]
                gradients = torch.autograd.grad(likelihood, by, allow_unused=True) if by else ()
            for (name, _), gradient in zip(reached, gradients, strict=True):
                if gradient is not None:
                    found = _by_channel(layers[name], gradient)
                    sums[name] = sums[name] + found if name in sums else found
            images += batch_size(batch)
    finally:
        for handle in handles:
            handle.remove()
    if images == 0:
        raise SurgeryError("the calibration data holds no image; give some hundred images")
    return {name: _finite(name, total) / images for name, total in sums.items()}


def _finite(name: str, total: Tensor) -> Tensor:
    if not bool(torch.isfinite(total).all()):
        raise SurgeryError(f"gradients by the outputs of {name} are not finite; check the images and the weights")
    return total


def _drawn_likelihood(outputs: list[Tensor], generator: torch.Generator) -> Tensor:
    """Return the sum over images of log p(y), y drawn from the prediction, up to a constant."""
    if are_logits(outputs):
        logs = outputs[0].log_softmax(1)
        drawn = torch.multinomial(logs.detach().double().exp().cpu(), 1, generator=generator).to(logs.device)
        return logs.gather(1, drawn).sum()
    # -|y - mean|^2 / 2 with y - mean = noise has the gradient noise by the mean.
    noise = [torch.randn(output.shape, generator=generator).to(output) for output in outputs]
    return torch.stack([(output * drawn).sum() for output, drawn in zip(outputs, noise, strict=True)]).sum()


def _by_channel(layer: nn.Module, gradient: Tensor) -> Tensor:
    squares = gradient.double().square()
    last = hasattr(layer, "out_features")
    return (squares.flatten(0, -2) if last else squares.transpose(0, 1).flatten(1).mT).sum(0)
