"""Which layers of a compressed model are fitted to what they see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from norton_plugin.blocks import ConvBlock, CPDLinear
from norton_plugin.calibration.patches import PatchGeometry
from norton_plugin.modules.swap import names_by_identity
from norton_plugin.reasons import Cause
from norton_plugin.surgery.contract import ConvContract, LinearContract, read_contract, read_linear
from norton_plugin.surgery.removed import RemovedChannels


@dataclass(frozen=True)
class FittedLayer:
    """A layer of a compressed model and the one of the dense model that it stands for.

    Attributes:
        name: First dotted name, the same in both.
        dense: The dense layer.
        own: The layer of the compressed model: a block, or a dense layer too.
        weight: Of the dense layer, as far as pruning left it, (N, D), float64.
        geometry: How the layer reads its input.
        outputs: Channels of the dense layer's output that stayed, (N,); None for all.
        inputs: Channels of its input that stayed; None for all.
        factors: What pruning multiplied its filters by, (N,); None for ones.
    """

    name: str
    dense: nn.Module
    own: nn.Module
    weight: Tensor
    geometry: PatchGeometry
    outputs: Tensor | None = None
    inputs: Tensor | None = None
    factors: Tensor | None = None

    @property
    def axis(self) -> int:
        """Axis of the channels, in inputs and outputs."""
        return self.geometry.channel_axis

    def kept_outputs(self, output: Tensor) -> Tensor:
        """Return of an output of the dense layer the channels that stayed."""
        return _selected(output, self.axis, self.outputs)

    def target(self, output: Tensor) -> Tensor:
        """Return what the layer should give where the dense layer gives this."""
        kept = self.kept_outputs(output)
        if self.factors is None:
            return kept
        return kept * self.factors.to(kept).view(-1, *(1,) * (-1 - self.axis))

    def kept_inputs(self, x: Tensor) -> Tensor:
        """Return of an input of the dense layer the channels that stayed."""
        return _selected(x, self.axis, self.inputs)

    @property
    def decomposed(self) -> bool:
        """Whether it is a block of factors."""
        return isinstance(self.own, ConvBlock | CPDLinear)


def layers_to_fit(
    dense: nn.Module,
    compressed: nn.Module,
    admits: Callable[[str], bool],
    removed: Mapping[str, RemovedChannels] | None = None,
) -> tuple[list[FittedLayer], dict[str, str]]:
    """Pair the layers of two models.

    Args:
        dense: The dense model.
        compressed: What became of it; its layers have their old names.
        admits: Tells of a dotted name whether the layer may be changed. Blocks, and layers that lost inputs, are fitted
            in any case.
        removed: What pruning took from which layer.

    Returns:
        Blocks of factors, and convolutions and Linear layers that stayed dense; and the reasons why layers are left
        out, by name.
    """
    originals = dict(dense.named_modules())
    found, left = [], {}
    for own, names in names_by_identity(compressed).items():
        block = isinstance(own, ConvBlock | CPDLinear)
        lost = (removed or {}).get(names[0], RemovedChannels())
        if not block and not (
            isinstance(own, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) and (lost.inputs or all(map(admits, names)))
        ):
            continue
        old = originals.get(names[0])
        contract = None if old is None else contract_of(old)
        if isinstance(contract, ConvContract | LinearContract) and old is not None:
            weight, factors = _kept_weight(contract.weight, lost), _kept_factors(contract.weight, lost)
            weight = weight if factors is None else weight * factors.to(weight).view(-1, *(1,) * (weight.dim() - 1))
            if _shape(own) != (weight.shape[0], weight.shape[1]):
                left[names[0]] = "its channels were pruned, and it is not known which"
                continue
            if not block and (reason := _not_settable(own, weight, compressed)):
                left[names[0]] = reason
                continue
            geometry = replace(patch_geometry(contract), groups=getattr(own, "groups", 1))
            outputs, inputs = _kept_channels(contract, lost)
            found.append(
                FittedLayer(names[0], old, own, weight.double().flatten(1), geometry, outputs, inputs, factors)
            )
        else:
            left[names[0]] = contract.text if isinstance(contract, Cause) else "the dense model has no such layer"
    return found, left


def contract_of(module: nn.Module) -> ConvContract | LinearContract | Cause:
    """Return what a convolution or a Linear layer computes, or why that cannot be told."""
    if isinstance(module, nn.Linear):
        return read_linear(module)
    return read_contract(module)


def _selected(tensor: Tensor, axis: int, kept: Tensor | None) -> Tensor:
    return tensor if kept is None else tensor.index_select(axis, kept.to(tensor.device))


def _kept_weight(weight: Tensor, lost: RemovedChannels) -> Tensor:
    """Return what is left of a weight (N, C, Kh, Kw)."""
    if lost.outputs:
        weight = weight[lost.kept_outputs(weight.shape[0])]
    return weight[:, lost.kept_inputs(weight.shape[1])] if lost.inputs else weight


def _kept_factors(weight: Tensor, lost: RemovedChannels) -> Tensor | None:
    """Return what the filters that stayed were multiplied by, (N,); None for ones."""
    if not lost.factors:
        return None
    factors = torch.ones(len(weight), dtype=torch.float64)
    for filter_, factor in lost.factors:
        factors[filter_] *= factor
    return factors[lost.kept_outputs(len(weight))]


def _kept_channels(contract: ConvContract | LinearContract, lost: RemovedChannels) -> tuple[Tensor | None, ...]:
    """Return the channels of a layer's output and input that stayed; None where all did."""
    filters, width = contract.weight.shape[:2]
    groups = contract.groups if isinstance(contract, ConvContract) else 1
    outputs = lost.kept_outputs(filters)
    # Of a grouped convolution, groups without filters are gone, and the others lost the same inputs.
    alive = sorted({n * groups // filters for n in outputs})
    inputs = [group * width + i for group in alive for i in lost.kept_inputs(width)]
    return (
        torch.tensor(outputs) if len(outputs) < filters else None,
        torch.tensor(inputs) if len(inputs) < groups * width else None,
    )


def _not_settable(own: nn.Module, weight: Tensor, model: nn.Module) -> str:
    """Return why the weight of a dense layer cannot be set; an empty text where it can."""
    parameter = own._parameters.get("weight")
    if (
        parameter is None
        or parameter.shape[:2] != weight.shape[:2]
        or not torch.allclose(parameter.flatten(), weight.flatten(), rtol=1e-6, atol=0)
    ):
        return "its weight is computed from its parameters"
    owners = sum(p is parameter for module in model.modules() for p in module._parameters.values())
    return "another layer has the same weight" if owners > 1 else ""


def _shape(module: nn.Module) -> tuple[int, int]:
    """Return N and C of a layer."""
    sizes: Mapping[str, int] = vars(module)
    if "out_features" in sizes:
        return sizes["out_features"], sizes["in_features"]
    return sizes["out_channels"], sizes["in_channels"] // sizes["groups"]


def patch_geometry(contract: ConvContract | LinearContract) -> PatchGeometry:
    """Return how a layer reads its input."""
    if isinstance(contract, LinearContract):
        return PatchGeometry(channels_last=True)
    padding = (0,) * len(contract.kernel_size) if contract.padding == "valid" else contract.padding
    return PatchGeometry(
        contract.kernel_size,
        contract.stride,
        padding,  # type: ignore[arg-type]
        contract.dilation,
        contract.groups,
        contract.padding_mode,
    )
