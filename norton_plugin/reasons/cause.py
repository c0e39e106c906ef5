"""One occurrence of a reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from norton_plugin.reasons.reason import Reason


@dataclass(frozen=True)
class Cause:
    """A reason with what its template names; ``Reason.because`` makes it.

    Two causes are equal where reason and details are.

    Attributes:
        reason: The reason.
        details: Name and value of every field of its template, in the template's order.
    """

    reason: Reason
    details: tuple[tuple[str, str | int | float | Cause], ...] = ()

    @property
    def code(self) -> str:
        """The reason's code, as files hold it."""
        return self.reason.code

    @property
    def text(self) -> str:
        """The reason in words, filled in."""
        return self.reason.template.format(**dict(self.details))

    @property
    def blocks(self) -> bool:
        """Whether it keeps a model from the status "full"."""
        return self.reason.blocks

    @property
    def advice(self) -> str:
        """What the user can do about it."""
        return self.reason.advice

    def __str__(self) -> str:
        """Return the text."""
        return self.text
