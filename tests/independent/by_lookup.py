"""Check a compression without any of the package's own checks: every number is looked up in the dense model.

    python tests/independent/by_lookup.py lcnet_050 dla46_c --keep 0.6 --rank 2

All parameters of a dense network are made different numbers. After the compression each number of the small network is
looked up among those of the tensor that bears the same name in the dense one: that says which channels stayed, whatever
the package says. Then all that was not found is set to zero by hand, in the dense network, and both networks run on a
size and a batch that the package has not seen. Nothing is taken from a report, a trace, a group or a structure.

It holds for networks whose removed channels are zero once their parameters are: convolutions, BatchNorm, gates and
activations f with f(0) = 0. LayerNorm and the like take statistics over channels, and are no case for it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

from norton_plugin import Recipe, compress

State = dict[str, Tensor]
# What the package is shown, and what the networks are compared on.
SHOWN, COMPARED = (1, 64), (3, 96)


@dataclass(frozen=True)
class Finding:
    """One network.

    Attributes:
        name: Of the network.
        error: Largest difference of the outputs, relative to the largest output.
        kept: Share of the numbers of the (decomposed) network that stayed.
        spread: Standard deviation of the output over the images of a batch, relative to the largest output: an error
            says nothing where it is zero.
    """

    name: str
    error: float
    kept: float
    spread: float


def unequal_(model: nn.Module) -> nn.Module:
    """Make all parameters different numbers, in double precision, and norms anything but identities."""
    generator = torch.Generator().manual_seed(0)
    model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.8, 1.6, generator=generator)
            nn.init.normal_(module.bias, std=0.1, generator=generator)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
        parameter.data += 1e-3 * noise
        if len(parameter.unique()) != parameter.numel():
            raise ValueError("two numbers of a parameter are equal; they could not be told apart")
    return model


def places(small: Tensor, large: Tensor) -> Tensor:
    """Look up where the numbers of one tensor stand in another.

    Args:
        small: Any shape.
        large: Any shape; its numbers are all different.

    Returns:
        Of the shape of ``large``, bool: whether the number is in ``small``.

    Raises:
        LookupError: A number is not there, or is there twice.
    """
    found = torch.isin(large, small)
    if int(found.sum()) != small.numel():
        raise LookupError(f"{small.numel()} numbers, {int(found.sum())} of them found in the dense model")
    return found


def by_hand(dense: nn.Module, decomposed: State, small: State) -> tuple[nn.Module, float]:
    """Return the dense network with zeros in place of what is not in the small one, and the share that stayed.

    Args:
        dense: Unchanged by the package.
        decomposed: State of the network after decomposition alone.
        small: State of the network after both.
    """
    reference = copy.deepcopy(dense)
    kept = total = 0
    parameters = dict(dense.named_parameters())
    for name in decomposed:
        prefix, _, last = name.rpartition(".")
        if name not in parameters and last != "head":
            continue
        where = places(small[name], decomposed[name])
        kept, total = kept + int(where.sum()), total + where.numel()
        if name in parameters:
            reference.get_parameter(name).data = decomposed[name] * where
            continue
        factors = [decomposed[f"{prefix}.{factor}"] for factor in ("head", "vertical", "horizontal")]
        weight = torch.einsum("nrc,nrh,nrw->nchw", *factors)
        reference.get_parameter(f"{prefix}.weight").data = weight * where.any(1)[:, :, None, None]
    return reference, kept / total


def check(
    name: str,
    *,
    keep: float = 0.6,
    rank: int | None = None,
    spoil: Callable[[nn.Module], None] | None = None,
) -> Finding:
    """Compress a network of timm and compare it with the dense one with zeros.

    Args:
        name: Of the network, whose weights are random.
        keep: Share of channels that stays.
        rank: R of the decomposition; None for pruning alone.
        spoil: Changes the compressed network first, to see that it is found.

    Raises:
        LookupError: A number of the compressed network is not one of the dense.
    """
    torch.manual_seed(0)
    dense = unequal_(timm.create_model(name, pretrained=False, num_classes=10))
    example = torch.randn(SHOWN[0], 3, SHOWN[1], SHOWN[1], dtype=torch.double)
    pruning = {"keep": keep, "round_to": 1}
    decomposition = {"rank": rank, "sweeps": 2}
    decomposed = dense
    if rank is not None:
        decomposed = compress(dense, example, Recipe.from_dict({"decomposition": decomposition})).model
    recipe = {"pruning": pruning} | ({"decomposition": decomposition} if rank is not None else {})
    small = compress(dense, example, Recipe.from_dict(recipe)).model
    if spoil is not None:
        spoil(small)
    reference, kept = by_hand(dense, decomposed.state_dict(), small.state_dict())
    images = torch.randn(COMPARED[0], 3, COMPARED[1], COMPARED[1], dtype=torch.double)
    with torch.no_grad():
        expected, found = reference.eval()(images), small.eval()(images)
    largest = float(expected.abs().max())
    return Finding(name, float((found - expected).abs().max()) / largest, kept, float(expected.std(0).max()) / largest)


def main() -> None:
    """Check the networks that are named, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="networks of timm")
    parser.add_argument("--keep", type=float, default=0.6, help="share of channels that stays")
    parser.add_argument("--rank", type=int, help="rank of a decomposition before; none by default")
    arguments = parser.parse_args()
    for name in arguments.names:
        finding = check(name, keep=arguments.keep, rank=arguments.rank)
        print(f"{name:32s} error {finding.error:.1e}  numbers kept {finding.kept:.1%}  spread {finding.spread:.1e}")


if __name__ == "__main__":
    main()
