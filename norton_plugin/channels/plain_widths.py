"""Widths that the code turned into plain numbers, as ``float(x.shape[1]) ** -0.5`` and ``math.sqrt(width)`` do.

Python's ``float`` and ``math.sqrt`` return numbers that remember nothing. The number is found again where the same
module multiplies or divides a tensor by a usual power of it; one that is never found has entered some other value. Were
it found by chance, the comparison with the masked model would show it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Of attention (square root, shared by queries and keys or not), and of means.
_EXPONENTS = (-0.5, 0.5, -1.0, 1.0, -0.25, 0.25)


@dataclass
class _PlainWidth:
    """A width as a plain number.

    Attributes:
        module: What was running.
        labels: Channels of the width.
        value: The number.
        found: Whether a power of it has multiplied a tensor.
    """

    module: nn.Module | None
    labels: Tensor
    value: float
    found: bool = False


class PlainWidths:
    """All of one pass."""

    def __init__(self) -> None:
        self._made: list[_PlainWidth] = []

    def add(self, module: nn.Module | None, labels: Tensor, value: float) -> None:
        """Note that code of a module has made a plain number of a width.

        Args:
            module: What is running.
            labels: Channels of the width.
            value: The number.
        """
        self._made.append(_PlainWidth(module, labels, value))

    def power(self, module: nn.Module | None, number: float) -> tuple[Tensor, float] | None:
        """Return the width that a factor is a power of, as its labels, and the exponent; None where there is none.

        Args:
            module: What is running: numbers that other modules made do not count.
            number: The factor.
        """
        for entry in reversed(self._made):
            if entry.module is not module or entry.value <= 1:
                continue
            for exponent in _EXPONENTS:
                if math.isclose(number, entry.value**exponent, rel_tol=1e-12):
                    for other in self._made:
                        same = other.module is module and other.value == entry.value
                        other.found |= same and torch.equal(other.labels, entry.labels)
                    return entry.labels, exponent
        return None

    def lost(self) -> Iterator[Tensor]:
        """Yield the labels of all widths whose number was not found again."""
        for entry in self._made:
            if not entry.found:
                yield entry.labels
