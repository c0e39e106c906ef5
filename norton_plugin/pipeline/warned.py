"""What a report warns of: sentences that say what happened, and what to do about it."""

from __future__ import annotations

from norton_plugin.surgery.report import DecompositionReport

# Ties that the warning names.
_NAMED = 3


def warning_of_untied(decomposition: DecompositionReport) -> str | None:
    """Return a sentence on tied layers that became blocks with factors of their own; None where there are none."""
    ties = decomposition.untied
    if not ties:
        return None
    told = "; ".join(_tie(tie.blocks, tie.kept) for tie in ties[:_NAMED])
    more = f"; and {len(ties) - _NAMED} more" if len(ties) > _NAMED else ""
    return (
        f"Tied layers are tied no longer: {told}{more}. Each block has factors of its own, which are counted and "
        "trained apart. Exclude these layers (scope.exclude, --exclude) if they are to stay tied; they stay dense then."
    )


def _tie(blocks: tuple[str, ...], kept: tuple[str, ...]) -> str:
    words = f"{' and '.join((*blocks, *kept))} held one parameter"
    if not kept:
        return words
    return f"{words}, which stays in {' and '.join(kept)}"
