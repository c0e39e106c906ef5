"""The section on hostile and odd input."""

from __future__ import annotations

from report_table import Facts, table


def fuzz(facts: Facts) -> str:
    """Return the section on hostile and odd input."""
    rows = [
        [
            row["target"],
            row["about"],
            *((f"skipped: {row['skipped']}", "-", "-", "-") if row["skipped"] else _counts(row)),
            f"{row['seconds']:.0f}",
        ]
        for row in facts["targets"]
    ]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    seconds = facts["seconds"]
    tried, wrong = (sum(row[key] for row in facts["targets"]) for key in ("tried", "wrong"))
    return (
        f"{tried:,} attempts, {wrong} wrong; seed {facts['seed']}, {seconds} s on a shared machine; {versions}. "
        "*Refused clearly*: an error of this package, one line on the command line. *Wrong*: neither that nor the "
        "right result, but another exception, a crash, a hang, memory beyond a limit, bait opened or run, a model "
        "that is not the saved one, a wrong number.\n\n"
        + table(["target", "what", "tried", "ok", "refused clearly", "wrong", "s"], rows)
    )


def _counts(row: Facts) -> tuple[str, ...]:
    return tuple(f"{row[key]:,}" for key in ("tried", "ok", "refused", "wrong"))
