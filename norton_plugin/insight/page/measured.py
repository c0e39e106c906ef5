"""What else lies in an artefact's folder: measurements as tables, and pictures. Any of it may come from anyone."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from norton_plugin.artifact import bounded_json

# Files that commands write, or that their --json output is kept in, with the heading of their tables.
MEASUREMENTS = {
    "evaluation.json": "Accuracy",
    "deploy.json": "Deployment",
    "forms.json": "Form of each block",
    "bench.json": "Speed",
}
_KINDS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp")
_MOST_BYTES, _MOST_PICTURES = 4 * 2**20, 12
_MOST_FILE = 8 * 2**20
_MOST_ROWS, _MOST_COLUMNS, _MOST_TABLES, _LONGEST = 400, 16, 12, 100


@dataclass(frozen=True)
class Table:
    """Figures under headings.

    Attributes:
        title: Above it.
        headings: Of the columns; the first names the row.
        rows: Cells as text.
        left_out: Rows that were too many.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int = 0


@dataclass(frozen=True)
class Picture:
    """An image inside the page.

    Attributes:
        name: Of its file.
        uri: ``data:image/...;base64,...``.
    """

    name: str
    uri: str


def measurements(directory: Path) -> tuple[list[Table], list[str]]:
    """Return the tables of the measurements in a folder, and a sentence on each file that could not be read."""
    tables, problems = [], []
    for name, title in MEASUREMENTS.items():
        try:
            with (directory / name).open("rb") as file:
                data = bounded_json.parse(file.read(_MOST_FILE))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            problems.append(f"{name} is not shown: {error}.")
            continue
        tables += tables_of(title, data)
    return tables, problems


def tables_of(title: str, data: Any) -> list[Table]:
    """Return whatever of some JSON is a table: rows of values, and values by name.

    Args:
        title: Of the tables; the key of a part is added.
        data: As ``json`` reads it.
    """
    if isinstance(data, list):
        data = {"": data}
    if not isinstance(data, Mapping):
        return []
    tables = []
    single = {key: value for key, value in data.items() if not isinstance(value, list | dict) and value is not None}
    if single:
        rows = tuple((_words(key), _cell(value)) for key, value in single.items())
        tables.append(Table(title, ("what", "value"), rows[:_MOST_ROWS], max(0, len(rows) - _MOST_ROWS)))
    for key, value in data.items():
        name = f"{title}: {_words(key)}" if key else title
        if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            tables.append(_of_rows(name, [_flat(each) for whole in value for each in _spread(whole)]))
        elif isinstance(value, Mapping) and value and all(isinstance(each, Mapping) for each in value.values()):
            tables.append(_of_rows(name, [{"": own, **_flat(each)} for own, each in value.items()]))
        elif isinstance(value, Mapping) and value:
            tables.append(Table(name, ("what", "value"), tuple((_words(k), _cell(v)) for k, v in _flat(value).items())))
    return tables[:_MOST_TABLES]


def _spread(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a row that holds rows as these, each with the rest of it, such as the timings of one batch size."""
    inner = [key for key, value in row.items() if isinstance(value, list) and value and isinstance(value[0], Mapping)]
    if len(inner) != 1 or not all(isinstance(each, Mapping) for each in row[inner[0]]):
        return [row]
    rest = {key: value for key, value in row.items() if key != inner[0]}
    return [{**rest, **each} for each in row[inner[0]]]


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with the values of its tables as columns of their own."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{key} {own}": each for own, each in value.items()}
        else:
            flat[key] = value
    return flat


def _of_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row))[:_MOST_COLUMNS]
    cells = tuple(tuple(_cell(row.get(column)) for column in columns) for row in rows[:_MOST_ROWS])
    return Table(title, tuple(map(_words, columns)), cells, max(0, len(rows) - _MOST_ROWS))


def _words(key: Any) -> str:
    return str(key).replace("_", " ")[:_LONGEST]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    if isinstance(value, list):
        value = ", ".join(_cell(each) for each in value[:_MOST_COLUMNS])
    text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def pictures(paths: Sequence[Path]) -> tuple[list[Picture], list[str]]:
    """Return images for the page, and a sentence on each that is not shown.

    Args:
        paths: Files; what they hold decides, not their names.
    """
    found: list[Picture] = []
    problems: list[str] = []
    for path in paths:
        try:
            with path.open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
        except OSError as error:
            problems.append(f"{path.name} is not shown: {error.strerror}.")
            continue
        kind = next((kind for start, kind in _KINDS.items() if data.startswith(start)), None)
        if kind is None:
            problems.append(f"{path.name} is not shown: it holds no PNG, JPEG, GIF or WebP image.")
        elif len(data) > _MOST_BYTES or len(found) == _MOST_PICTURES:
            problems.append(f"{path.name} is not shown: pictures take at most {_MOST_PICTURES} times 4 MiB of a page.")
        else:
            found.append(Picture(path.name, f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"))
    return found, problems


def pictures_in(directory: Path) -> list[Path]:
    """Return the files of a folder that are named like images, in the order of their names."""
    return sorted(path for path in directory.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
