"""Runs ``norton ARGUMENTS`` in this process and judges what it printed."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

from fuzzing.verdict import Wrong
from norton_plugin.cli.app import run

_UNFORESEEN = "(-v shows where)"  # how the command line marks an exception that nobody foresaw


@dataclass(frozen=True)
class Printed:
    """What a command left behind."""

    code: int
    out: str
    err: str


def run_command(arguments: Sequence[str]) -> Printed:
    """Run a command line; whatever it raises goes on."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(arguments))
    return Printed(code, out.getvalue(), err.getvalue())


def judge(printed: Printed, *, as_json: bool, codes: Sequence[int] = (0, 1, 2), verbose: bool = False) -> bool:
    """Tell whether a command did its work; an error must be one line, and JSON where that was asked for.

    Args:
        printed: What it left behind.
        as_json: Whether ``--json`` was given.
        codes: What it may end with.
        verbose: Whether ``-v`` was given, which shows tracebacks.

    Raises:
        Wrong: It told its error in another way.
    """
    told = f"code {printed.code}, stdout {printed.out[:200]!r}, stderr {printed.err[-400:]!r}"
    if "Traceback (most recent call last)" in printed.out + printed.err and not verbose:
        raise Wrong("the command showed a traceback", told)
    if _UNFORESEEN in printed.out + printed.err:
        raise Wrong(f"the command met {_exception(printed)}, which nobody foresaw", told)
    if printed.code not in codes:
        raise Wrong(f"the command ended with exit code {printed.code}", told)
    if printed.code == 0:
        if as_json:
            _parsed(printed.out, told)
        return True
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    if as_json:
        content = _parsed(printed.out, told)
        if "error" not in content:
            raise Wrong("the command failed and its JSON holds no error", told)
    elif len(errors) != 1 or printed.out.strip():
        raise Wrong("the command failed without exactly one line of error", told)
    return False


def _parsed(text: str, told: str) -> dict[str, object]:
    try:
        content = json.loads(text)
    except ValueError:
        raise Wrong("the command printed no JSON although --json was given", told) from None
    if not isinstance(content, dict):
        raise Wrong("the command's JSON is no object", told)
    return content


def _exception(printed: Printed) -> str:
    """Its name, from ``error: NAME: message``."""
    line = next((line for line in printed.err.splitlines() if line.startswith("error: ")), "")
    return line.removeprefix("error: ").partition(":")[0] or "something"
