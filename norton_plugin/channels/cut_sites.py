"""Where the positions of a tensor are cut out: along one of its dimensions, or along one that lies flat in its last."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class CutSite:
    """A tensor of a module, or what it returns, and the axis along which it loses positions.

    Attributes:
        module: The module.
        tensor: Name of its tensor, or `tensor_axes.RETURNED`.
        axis: Dimension; counted in the tensor as laid out, where there is a layout.
        layout: Name of the attribute of the module that holds the sizes in which the last dimension of the tensor is
            laid out; None where the tensor has all its dimensions itself.
    """

    module: nn.Module
    tensor: str
    axis: int
    layout: str | None = None

    def sizes(self) -> tuple[int, ...]:
        """Return the sizes of the tensor as laid out."""
        shape = tuple(getattr(self.module, self.tensor).shape)
        return shape if self.layout is None else (*shape[:-1], *getattr(self.module, self.layout))

    def laid_out(self, tensor: Tensor) -> Tensor:
        """Return a tensor like the site's own with all its dimensions."""
        return tensor if self.layout is None else tensor.unflatten(-1, getattr(self.module, self.layout))

    def flat(self, tensor: Tensor) -> Tensor:
        """Return a tensor that is laid out as the module holds it."""
        return tensor if self.layout is None else tensor.flatten(getattr(self.module, self.tensor).dim() - 1)

    def note_size_(self, size: int) -> None:
        """Tell the module how many positions the axis has after a cut, where its layout says so."""
        if self.layout is None:
            return
        held = getattr(self.module, self.layout)
        sizes = list(held)
        sizes[self.axis - len(self.sizes())] = size
        setattr(self.module, self.layout, type(held)(sizes))
