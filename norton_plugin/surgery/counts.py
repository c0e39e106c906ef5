"""How many channels a share comes to, once they are rounded."""

from __future__ import annotations

import math

# A count is rounded to a multiple only if that takes no more than this share of the channels beyond what was asked.
SLACK = 0.1


def channels_to_keep(size: int, keep: float, *, round_to: int = 1, parts: int = 1) -> int:
    """Return how many channels of a group are kept.

    Args:
        size: N, channels of the group.
        keep: Share to keep, in (0, 1].
        round_to: The count becomes a multiple of this where it can: the nearest one, but never more than
            ``SLACK`` of the channels below the share asked for.
        parts: Equal parts of the group that must all keep the same number; divides N.

    Returns:
        A multiple of ``parts``, from ``parts`` to N. With ``round_to=1`` the fraction is cut off, as in the paper.
    """
    unit = math.lcm(round_to, parts)
    wanted = size * keep
    count = math.floor(wanted + 1e-9) if unit == 1 else unit * math.floor(wanted / unit + 0.5)
    if count < size * (keep - SLACK) or count < unit:
        count = unit * math.ceil(wanted / unit - 1e-9)
    return max(parts, min(size, count))
