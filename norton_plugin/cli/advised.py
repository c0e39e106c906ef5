"""What ``norton deploy`` and ``norton bench`` advise where few of the MACs that were saved became time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from norton_plugin.cli.output import Output

if TYPE_CHECKING:
    from norton_plugin.artifact import Manifest


def advise(out: Output, manifest: Manifest | None, speed_up: float | None, macs_ratio: float) -> None:
    """Print the advice, where something was timed and time was not the budget already.

    Args:
        out: Where to.
        manifest: Of the artefact; None where there is none.
        speed_up: Of the model in PyTorch over the dense one; None where nothing was timed.
        macs_ratio: How many times fewer MACs.
    """
    from norton_plugin.insight.deployment import advice

    if speed_up is not None and not planned_for_time(manifest):
        out.show(*advice(speed_up, macs_ratio))


def planned_for_time(manifest: Manifest | None) -> bool:
    """Tell whether an artefact was compressed to a budget of milliseconds."""
    report = None if manifest is None else manifest.report
    plan = (report or {}).get("budget") or {}
    return (plan.get("budget") or {}).get("latency") is not None
