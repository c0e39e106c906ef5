"""Help pages: as typer draws them, and as plain paragraphs where the terminal is too narrow for that."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

_NARROW = 80  # columns below which typer cuts the names of options


class _AnyWidth:
    """A command of typer whose help page can be read at any width."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page into the formatter where it is narrow, else let typer print it."""
        width = shutil.get_terminal_size().columns
        if width < _NARROW:
            formatter.write(narrow_page(self, ctx, width))
        else:
            super().format_help(ctx, formatter)  # type: ignore[misc]


class Command(_AnyWidth, TyperCommand):
    """One command."""


class Group(_AnyWidth, TyperGroup):
    """All commands."""


def narrow_page(command: Any, context: Any, width: int) -> str:
    """Return a help page of at most so many columns, unless a word is longer.

    Args:
        command: Of typer.
        context: Of typer.
        width: Columns.
    """
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    paragraphs = [f"Usage: {usage}", *inspect.cleandoc(command.help or "").split("\n\n")]
    lines = [_indented(text, width, "") for text in paragraphs]
    for heading, entries in _sections(command, context):
        lines.append("\n".join([f"{heading}:", *(_entry(name, text, width) for name, text in entries)]))
    return "\n\n".join(lines) + "\n"


def _sections(command: Any, context: Any) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield headings, with names and texts, in the order in which they were declared."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            is_argument = parameter.param_type_name == "argument"
            panel = getattr(parameter, "rich_help_panel", None)  # older typers add --help without one
            heading = panel or ("Arguments" if is_argument else "Options")
            name = parameter.metavar if is_argument else record[0]
            sections.setdefault(heading, []).append((name, record[1]))
    yield from sections.items()
    if isinstance(command, TyperGroup):
        yield "Commands", [(name, _first_sentence(each)) for name, each in command.commands.items()]


def _first_sentence(command: Any) -> str:
    return inspect.cleandoc(command.help or "").split("\n\n")[0]


def _entry(name: str, text: str, width: int) -> str:
    return f"{_indented(name, width, '  ')}\n{_indented(text, width, '      ')}"


def _indented(text: str, width: int, indent: str) -> str:
    return textwrap.fill(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
