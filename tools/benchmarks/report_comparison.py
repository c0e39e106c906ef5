"""The section on a change of the code that changes no figure."""

from __future__ import annotations

from collections import Counter

from report_table import Facts, table


def comparison(facts: Facts) -> str:
    """Return the section on reports before and after a change of the code."""
    kinds: dict[str, list[Facts]] = {}
    for model, outcome in facts["models"].items():
        kinds.setdefault(model.partition(":")[0], []).append(outcome)
    rows = []
    for kind, outcomes in sorted(kinds.items()):
        counts = Counter(outcome.get("status", "not compressed") for outcome in outcomes)
        rows.append([kind, len(outcomes), ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))])
    before, after = facts["commits"] or ("-", "-")
    return (
        f"{len(facts['models'])} models of the three lists, compressed by the code of commit {before} and by that of "
        f"{after}, where the rooms of the package were laid out anew: {len(facts['differ'])} differ in status, MACs, "
        "parameters, any layer, decomposed layer or pruned group, what was left, or the structure. Errors of the "
        f"verification agree to a factor of ten; times and the wording of reasons are not compared. {facts['note']}\n\n"
        + table(["ecosystem", "models", "status"], rows)
    )
