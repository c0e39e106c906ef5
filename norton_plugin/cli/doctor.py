"""``norton doctor``."""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.table import Table
from rich.text import Text

from norton_plugin.cli.output import Output

_STYLES = {"ok": "green", "absent": "dim", "wrong": "red"}


def doctor(out: Output) -> None:
    """Check what is installed, name what is wrong and the command that mends it.

    The exit code is 1 where something is wrong; extras that are merely absent are fine.

    Example: norton doctor
    """
    from norton_plugin.environment import diagnose

    with out.status("importing"):
        findings = diagnose()
    table = Table("what", "found", "verdict", "what to do")
    for finding in findings:
        verdict = Text(finding.verdict, style=_STYLES[finding.verdict])
        table.add_row(finding.name, Text(finding.found), verdict, Text(finding.advice))
    wrong = [finding.name for finding in findings if finding.verdict == "wrong"]
    out.show(table, f"wrong: {', '.join(wrong)}" if wrong else "nothing is wrong")
    out.result({"findings": [asdict(finding) for finding in findings], "wrong": wrong})
    if wrong:
        raise typer.Exit(1)
