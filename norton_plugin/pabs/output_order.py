"""The order in which channels are removed that costs the outputs of their consumers least (docs/method.md, section 2).

Group optimal brain surgery: with S the second moments of what a layer reads and w a row of its weight, removing the
inputs c and letting the others take over costs ``w_c' [(S^-1)_cc]^-1 w_c``. The cheapest channel goes, its inputs are
taken out of S^-1 and of the weights, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from norton_plugin.errors import DecompositionError

# Share of the largest cost by which each position in the order raises a score, so that equal costs stay apart.
_POSITION_SHARE = 1e-9


class OutputSystem(NamedTuple):
    """What one layer, or one group of a grouped convolution, computes from some channels.

    Attributes:
        second: Second moments of its D inputs, (D, D), positive definite.
        weight: (M, D); each row multiplied by the root of what a squared error of its output costs.
        places: Which inputs belong to each channel, (C, b) int64; inputs that belong to none stay.
    """

    second: Tensor
    weight: Tensor
    places: Tensor


class _State:
    """One system, channels removed so far; the weights of the others are those of least squares."""

    def __init__(self, system: OutputSystem) -> None:
        weight = system.weight.double()
        if len(weight) > weight.shape[1]:
            weight = torch.linalg.qr(weight, mode="r")[1]  # the same sums of squares
        self._weight = weight.clone()
        self._places = system.places
        second = system.second.double()
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(second))

    def costs(self, channels: Tensor) -> Tensor:
        """Return what the removal of each of these channels would cost."""
        places = self._places[channels]
        blocks = self._inverse[places[:, :, None], places[:, None, :]]  # (c, b, b)
        columns = self._weight[:, places].permute(1, 2, 0)  # (c, b, M)
        if blocks.shape[1] == 1:
            return columns.square().sum((1, 2)) / blocks[:, 0, 0]
        return (columns * torch.linalg.solve(blocks, columns)).sum((1, 2))

    def remove(self, channel: int) -> None:
        """Take out the inputs of a channel."""
        own = self._places[channel]
        rows = self._inverse[own]
        gain = torch.linalg.solve(rows[:, own], rows)  # (b, D)
        self._weight.addmm_(self._weight[:, own], gain, alpha=-1)
        self._inverse.addmm_(rows.mT, gain, alpha=-1)


def output_order(systems: Sequence[OutputSystem]) -> tuple[Tensor, Tensor]:
    """Return the order in which channels are removed, and what each removal adds to the error.

    Args:
        systems: Of all layers that read the channels; costs are added up. The number of channels is that of all of
            them.

    Returns:
        Int64 (C,), a permutation, and float64 (C,) in that order, at least 0. Of equal costs the lowest index goes
        first.

    Raises:
        DecompositionError: No system, or systems of different numbers of channels.
    """
    counts = sorted({len(system.places) for system in systems})
    if len(counts) != 1:
        raise DecompositionError(f"output_order got systems of {counts} channels; expected one or more, of the same")
    states = [_State(system) for system in systems]
    alive, order, costs = torch.arange(counts[0]), [], []
    while len(alive):
        cost = torch.stack([state.costs(alive) for state in states]).sum(0)
        place = int(cost.argmin())
        order.append(int(alive[place]))
        costs.append(float(cost[place]))
        alive = torch.cat([alive[:place], alive[place + 1 :]])
        if len(alive):
            for state in states:
                state.remove(order[-1])
    return torch.tensor(order), torch.tensor(costs, dtype=torch.float64).clamp_min(0)


def output_scores(systems: Sequence[OutputSystem]) -> Tensor:
    """Return the importance of each channel; sorting it ascending gives the removal order.

    Args:
        systems: See `output_order`.

    Returns:
        Float64 (C,), all different: the cost of the removal, or of a dearer one before it.
    """
    order, costs = output_order(systems)
    largest = float(costs.max())
    steps = torch.arange(len(order), dtype=torch.float64) * _POSITION_SHARE * (largest if largest > 0 else 1.0)
    return torch.empty_like(costs).index_copy_(0, order, costs.cummax(0).values + steps)
