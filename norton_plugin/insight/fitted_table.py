"""A table for the terminal that stays readable where the terminal is narrow."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

_GAP = 2  # characters between columns
_LEAST = 16  # characters a column of sentences needs to read well
_LONGEST = 32  # characters of a word that is never broken
_TOGETHER = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        heading: Above it; may hold a line break.
        number: Aligned right and never wrapped.
        optional: Above 0 for one that may be left out; the highest goes first.
    """

    heading: str
    number: bool = False
    optional: int = 0


class FittedTable:
    """Rows under headings, which takes one of three forms by the width it is printed on.

    The whole table; the table without some of its optional columns, and a note which; or where the others do not fit
    either, one paragraph per row with all columns by name. Words are not broken and columns not squeezed.

    Args:
        title: Above the table.
        columns: At least one; the first names the row.
    """

    def __init__(self, title: str, columns: Sequence[Column]) -> None:
        self.title = title
        self.columns = tuple(columns)
        self._rows: list[tuple[list[Text], str]] = []

    def add_row(self, *cells: str | Text, style: str = "") -> None:
        """Add a row.

        Args:
            *cells: One for each column, ``-`` or nothing where there is no value.
            style: Of the whole row.
        """
        self._rows.append(([Text(cell) if isinstance(cell, str) else cell for cell in cells], style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        """Draw it in the form that fits."""
        droppable = sorted((c.optional, i) for i, c in enumerate(self.columns) if c.optional)
        shown = list(range(len(self.columns)))
        while (widths := self._widths(shown, options.max_width)) is None and droppable:
            shown.remove(droppable.pop()[1])
        if widths is None:
            yield from self._paragraphs(options.max_width)
        else:
            yield self._table(shown, widths)
            left_out = [_label(column) for i, column in enumerate(self.columns) if i not in shown]
            if left_out:
                yield Text(_wrapped(f"not shown at this width: {', '.join(left_out)}", options.max_width), style="dim")
        yield Text("")

    def _widths(self, shown: Sequence[int], available: int) -> list[int] | None:
        """Return a width for each column shown, None where they do not fit."""
        least, wished = [], []
        for i in shown:
            cells = [Text(self.columns[i].heading), *(cells[i] for cells, _ in self._rows)]
            lines = [line for cell in cells for line in cell.plain.split("\n")]
            full = max(map(cell_len, lines))
            word = max((cell_len(word) for line in lines for word in line.split()), default=0)
            least.append(full if self.columns[i].number else min(full, max(_LEAST, min(word, _LONGEST))))
            wished.append(full)
        spare = available - sum(least) - _GAP * (len(shown) - 1)
        if spare < 0:
            return None
        widths = []
        for narrow, wide in zip(least, wished, strict=True):
            more = min(spare, wide - narrow)
            widths.append(narrow + more)
            spare -= more
        return widths

    def _table(self, shown: Sequence[int], widths: Sequence[int]) -> Table:
        table = Table(
            title=Text(self.title),
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, _GAP - 1, 0, 0),
        )
        for i, width in zip(shown, widths, strict=True):
            column = self.columns[i]
            justify = "right" if column.number else "left"
            table.add_column(Text(column.heading), width=width, justify=justify, overflow="fold")  # type: ignore[arg-type]
        for cells, style in self._rows:
            table.add_row(*(cells[i] for i in shown), style=style)
        return table

    def _paragraphs(self, width: int) -> Iterator[Text]:
        yield Text(self.title, style="bold")
        for cells, style in self._rows:
            name, *values = (cell.plain for cell in cells)
            pairs = zip(self.columns[1:], values, strict=True)
            told = [f"{_label(column)} {value}" for column, value in pairs if value not in ("", "-")]
            yield Text(_wrapped(name, width, rest="  "), style=style)
            yield Text(_filled(told, width), style=style)


def _label(column: Column) -> str:
    return column.heading.replace("-\n", "-").replace("\n", " ")


def _filled(items: Sequence[str], width: int) -> str:
    """Join items to indented lines; one that fits on a line is not broken."""
    room = width - 5
    whole = [item.replace(" ", _TOGETHER) if cell_len(item) <= room else item for item in items]
    return _wrapped(", ".join(whole), width, first="  ", rest="    ").replace(_TOGETHER, " ")


def _wrapped(text: str, width: int, *, first: str = "", rest: str = "") -> str:
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
