"""What a compression left as it was, and why: one list for files, grouped by reason for readers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from norton_plugin.pipeline import CompressionReport
from norton_plugin.reasons import Reason
from norton_plugin.surgery.report import Skipped

_SHOWN = 3
_BY_SCOPE = (Reason.OUTSIDE_SCOPE, Reason.MEMBER_OUTSIDE_SCOPE)
_STEPS = {"decomposition": "not decomposed", "pruning": "not pruned"}


def everything_left(report: CompressionReport) -> list[dict[str, str]]:
    """Return all that was left, each with the step that left it: ``{"step", "name", "code", "reason"}``."""
    return [{"step": step, **entry.to_dict()} for step in _STEPS for entry in getattr(report, step).skipped]


def lines_of_left(report: CompressionReport) -> list[str]:
    """Return a line for each step and reason, the most frequent first: how many, why, and the first few names."""
    lines = []
    for step, words in _STEPS.items():
        groups: dict[str, list[Skipped]] = {}
        for entry in getattr(report, step).skipped:
            groups.setdefault(entry.code, []).append(entry)
        lines += [_line(words, group) for group in sorted(groups.values(), key=len, reverse=True)]
    return lines


def _line(words: str, group: Sequence[Skipped]) -> str:
    reasons = list(dict.fromkeys(entry.reason for entry in group))
    alike = "" if len(reasons) == 1 else f" (and {len(reasons) - 1} alike)"
    names = [entry.name for entry in group[:_SHOWN]]
    more = f" and {len(group) - _SHOWN} more" if len(group) > _SHOWN else ""
    return f"{words}, {len(group)}: {reasons[0]}{alike}: {', '.join(names)}{more}"


def with_frozen_named(report: CompressionReport, frozen: Iterable[str]) -> CompressionReport:
    """Return the report with the true reason for frozen layers, which were kept out of the scope.

    Args:
        report: Of ``compress``.
        frozen: Names of the layers that were kept out because they need no gradient.
    """
    names = set(frozen)

    def named(entries: tuple[Skipped, ...]) -> tuple[Skipped, ...]:
        return tuple(_named(entry, names) for entry in entries)

    return replace(
        report,
        decomposition=replace(report.decomposition, skipped=named(report.decomposition.skipped)),
        pruning=replace(report.pruning, skipped=named(report.pruning.skipped)),
    )


def _named(entry: Skipped, frozen: set[str]) -> Skipped:
    layer = str(dict(entry.cause.details).get("layer", entry.name))
    if entry.cause.reason in _BY_SCOPE and layer in frozen:
        return Skipped(entry.name, Reason.FROZEN.because(layer=layer))
    return entry
