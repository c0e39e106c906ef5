"""The widths that models of timm list in ``feature_info``: a list of dicts, or an object that holds one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

# The name under which a structure holds the widths, as if they were one attribute: a list of integers.
LISTED_WIDTHS = "feature_info.num_chs"
_OWN, _WIDTH = "feature_info", "num_chs"


def entries_of(module: nn.Module) -> list[dict[str, Any]]:
    """Return the entries of a module's ``feature_info``; none where it has no such list of widths."""
    held = vars(module).get(_OWN)
    entries = getattr(held, "info", held)
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        return []
    return entries if all(type(each.get(_WIDTH)) is int for each in entries) else []


def listed_widths(module: nn.Module) -> list[int]:
    """Return the widths in a module's ``feature_info``."""
    return [entry[_WIDTH] for entry in entries_of(module)]


def list_widths_(module: nn.Module, widths: Sequence[int]) -> None:
    """Give a module a new ``feature_info`` with these widths; the old one may belong to other models too.

    Args:
        module: Has one with as many entries.
        widths: In the order of the entries.
    """
    entries = [{**entry, _WIDTH: width} for entry, width in zip(entries_of(module), widths, strict=True)]
    held: Any = vars(module)[_OWN]
    if not isinstance(held, list):
        held = copy.copy(held)
        held.info = entries
    setattr(module, _OWN, entries if isinstance(held, list) else held)
