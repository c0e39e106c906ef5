"""``norton doctor``."""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.text import Text

from norton_plugin.cli.output import Output

_STYLES = {"ok": "green", "absent": "dim", "wrong": "red"}


def doctor(out: Output) -> None:
    """Check what is installed, name what is wrong and the command that fixes it.

    The exit code is 1 where something is wrong; extras that are merely absent are fine.

    Example: norton doctor
    """
    from norton_plugin.environment import diagnose

    with out.status("importing"):
        findings = diagnose()
    for finding in findings:
        verdict = (f"{finding.verdict:<7} ", _STYLES[finding.verdict])
        out.show(Text.assemble(verdict, f"{finding.name} {finding.found}"))
        if finding.advice:
            out.show_whole(f"        {finding.advice}")
    wrong = [finding.name for finding in findings if finding.verdict == "wrong"]
    out.show(f"wrong: {', '.join(wrong)}" if wrong else "nothing is wrong")
    out.result({"findings": [asdict(finding) for finding in findings], "wrong": wrong})
    if wrong:
        raise typer.Exit(1)
