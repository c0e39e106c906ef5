"""Integers that remember whose width they are, so that ``reshape(B, N, C)`` says what C was."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from torch import Tensor


class Scale(float):
    """A power of a width, such as 1 / sqrt(head width), on its way to multiply a tensor.

    Attributes:
        labels: (n,) channels of the width.
        exponent: The power.
    """

    labels: Tensor
    exponent: float

    @classmethod
    def of(cls, value: float, labels: Tensor, exponent: float) -> Scale:
        """Make a scale of this value."""
        scale = cls(value)
        scale.labels, scale.exponent = labels, exponent
        return scale


class Width(int):
    """A size read off a labelled dimension of some tensor: ratio * (number of its channels) + offset.

    Attributes:
        labels: (n,) channels along the dimension.
        ratio: Factor applied to it since.
        offset: Number added to it since.
        on_value: Called where the size becomes part of a computed value other than a power.
        on_plain: Called with its channels and the number where it becomes a plain number.
    """

    labels: Tensor
    ratio: Fraction
    offset: int
    on_value: Callable[[Tensor], None]
    on_plain: Callable[[Tensor, float], None]

    @classmethod
    def of(
        cls,
        value: int,
        labels: Tensor,
        on_value: Callable[[Tensor], None],
        ratio: Fraction = Fraction(1),
        offset: int = 0,
        *,
        on_plain: Callable[[Tensor, float], None] | None = None,
    ) -> Width:
        """Make a width of this value; without ``on_plain``, plain numbers made of it are values like any other."""
        width = cls(value)
        width.labels, width.on_value, width.ratio, width.offset = labels, on_value, ratio, offset
        width.on_plain = on_plain or (lambda own, number: on_value(own))
        return width

    def _derived(self, value: int, ratio: Fraction, offset: int) -> Width:
        return Width.of(value, self.labels, self.on_value, ratio, offset, on_plain=self.on_plain)

    def __mul__(self, other: Any) -> Any:
        if not isinstance(other, int):
            return self._scale(int(self) * other, 1.0) if isinstance(other, float) else NotImplemented
        value = int(self) * int(other)
        return self._derived(value, self.ratio * other, self.offset * other) if type(other) is int else value

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        if type(other) is int and other and int(self) % other == 0 and self.offset == 0:
            return self._derived(int(self) // other, self.ratio / other, 0)
        return int(self) // int(other) if isinstance(other, int) else NotImplemented

    def __add__(self, other: Any) -> Any:
        if type(other) is int:
            return self._derived(int(self) + other, self.ratio, self.offset + other)
        return int(self) + int(other) if isinstance(other, int) else NotImplemented

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        if type(other) is int:
            return self._derived(int(self) - other, self.ratio, self.offset - other)
        return int(self) - int(other) if isinstance(other, int) else NotImplemented

    def __truediv__(self, other: Any) -> Any:
        return self._scale(int(self) / other, 1.0) if isinstance(other, int | float) else NotImplemented

    def __rtruediv__(self, other: Any) -> Any:
        return self._scale(other / int(self), -1.0) if isinstance(other, int | float) else NotImplemented

    def _scale(self, value: Any, exponent: float) -> Any:
        if type(value) is not float:
            return value
        if self.offset:
            self.on_value(self.labels)
            return value
        return Scale.of(value, self.labels, exponent)

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        value = pow(int(self), other, modulus)
        if isinstance(other, float) and modulus is None:
            return self._scale(value, other)
        self.on_value(self.labels)
        return value

    def __float__(self) -> float:
        number = float(int(self))
        if self.offset:
            self.on_value(self.labels)
        else:
            self.on_plain(self.labels, number)
        return number

    def __reduce__(self) -> Any:
        return int, (int(self),)

    __hash__ = int.__hash__
