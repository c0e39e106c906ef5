"""The page that explains every reason, made from the enum."""

from __future__ import annotations

from norton_plugin.reasons.reason import Reason

_INTRODUCTION = """\
# Why something was left as it was

Made by `python tools/reasons_page.py` from `norton_plugin/reasons/reason.py`; edit it there.

Every convolution that does not become a block, and every group of channels that is not pruned, is listed with a reason.
Reports, `norton.json`, `norton_report.json`, the output of `--json` and the rows of the
[coverage](coverage.md) hold its code beside the text. Codes never change; texts may be reworded.

A model has the status **full** where no reason that counts against it is left, **partial** where one is, and
**decompose-only** where no channel was removed. What keeps a convolution from becoming a block does not count.
In the texts below, `{...}` is filled in for the layer at hand.
"""


def markdown() -> str:
    """Return the page: the codes that keep a model from "full", then the others, each with text, example and advice."""
    parts = [_INTRODUCTION]
    for blocks, heading in ((True, "Keeps a model from full"), (False, "Does not keep a model from full")):
        parts.append(f"## {heading}\n")
        parts += [_section(reason) for reason in Reason if reason.blocks == blocks]
    return "\n".join(parts)


def _section(reason: Reason) -> str:
    return f"### {reason.code}\n\n> {reason.template}\n\n- Example: {reason.example}\n- What to do: {reason.advice}\n"
