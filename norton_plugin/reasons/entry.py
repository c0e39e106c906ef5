"""What one reason holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What a member of ``Reason`` holds; see its properties."""

    code: str
    template: str
    advice: str
    example: str
    blocks: bool = True


def left(code: str, template: str, *, advice: str, example: str) -> Entry:
    """Make a reason that does not keep a model from "full": asked for, necessary, or out of reach of pruning."""
    return Entry(code, template, advice, example, blocks=False)
