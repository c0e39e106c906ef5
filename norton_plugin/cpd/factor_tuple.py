"""Tuples of factors whose fields are named, for kernels of one, two or three axes."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from torch import Tensor

# Axes of a kernel, as they follow each other in a weight (N, C, Kt, Kh, Kw); smaller kernels have the last of them.
KERNEL_AXES = ("depth", "vertical", "horizontal")


def axis_names(count: int) -> tuple[str, ...]:
    """Return the names of a kernel's axes: (Kt,) Kh and Kw of a 3-D or a 2-D one, the last alone of a 1-D one."""
    return KERNEL_AXES[-count:] if count else ()


_Own = TypeVar("_Own", bound="FactorTuple")


class FactorTuple(tuple[Tensor, ...]):
    """A head, one factor per axis of the kernel, and what a subclass names behind them.

    It is used as a ``NamedTuple`` is, and differs in its length: ``Factors(head, vertical, horizontal)`` of a 2-D
    kernel, ``Factors(head, depth, vertical, horizontal)`` of a 3-D one, ``Factors(head, horizontal)`` of a 1-D one.
    """

    __slots__ = ()
    last: ClassVar[tuple[str, ...]] = ()

    def __new__(cls: type[_Own], *factors: Tensor) -> _Own:
        """Put factors together, in the order of ``fields``."""
        return super().__new__(cls, factors)

    def __getnewargs__(self) -> tuple[Tensor, ...]:
        """Return what copies and pickles are made from."""
        return tuple(self)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of all factors."""
        return ("head", *axis_names(len(self) - 1 - len(self.last)), *self.last)

    @property
    def head(self) -> Tensor:
        """Factor of the input channels."""
        return self[0]

    @property
    def kernel(self) -> tuple[Tensor, ...]:
        """Factors of the kernel's axes, the last one horizontal."""
        return tuple(self[1 : len(self) - len(self.last)])

    @property
    def depth(self) -> Tensor:
        """Factor of the first axis of a 3-D kernel."""
        return self._asdict()["depth"]

    @property
    def vertical(self) -> Tensor:
        """Factor of the kernel's rows."""
        return self._asdict()["vertical"]

    @property
    def horizontal(self) -> Tensor:
        """Factor of the kernel's columns."""
        return self._asdict()["horizontal"]

    def _asdict(self) -> dict[str, Tensor]:
        """Return the factors by name."""
        return dict(zip(self.fields, self, strict=True))

    def _replace(self: _Own, **changed: Tensor) -> _Own:
        """Return the factors with some of them exchanged."""
        return type(self)(*{**self._asdict(), **changed}.values())
