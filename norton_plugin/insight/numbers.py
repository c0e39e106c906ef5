"""Numbers as an engineer reads them."""

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(value: float) -> str:
    """Three or four digits and a unit: ``1.82 G``, ``69.1 M``, ``640``.

    Args:
        value: A count, at least 0.
    """
    for size, unit in _UNITS:
        # 999.6 would print as "1000"; it belongs to the next unit
        if value >= 0.9995 * size:
            scaled = value / size
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f} {unit}"
    return f"{value:.0f}"


def percent(share: float) -> str:
    """Return a share in percent with one decimal: 0.125 gives ``12.5 %``."""
    return f"{100 * share:.1f} %"


def change(before: float, after: float) -> str:
    """Return how far a count went down or up: (200, 50) gives ``-75.0 %``; ``-`` where nothing was there before."""
    return f"{100 * (after / before - 1):+.1f} %" if before else "-"
