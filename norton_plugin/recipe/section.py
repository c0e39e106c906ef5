"""What all sections of a recipe share: reading from plain dicts, writing to them, and checks of single settings."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, ClassVar, TypeVar

from norton_plugin.errors import RecipeError

# Settings by the names they had before, which recipes and artefacts may still hold.
RENAMED = {"allow_dearer": "allow_more_macs"}


S = TypeVar("S", bound="Section")


def current_names(data: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Replace former names of settings by those of today, with a warning.

    Args:
        data: Settings by name.
        known: Names of today.

    Raises:
        RecipeError: A setting is given under both of its names.
    """
    found: dict[str, Any] = {}
    for key, value in data.items():
        name = RENAMED.get(key, key)
        if name != key and name in known:
            if name in data:
                raise RecipeError(f"{key!r} is the former name of {name!r}, which is given too; leave {key!r} out")
            warnings.warn(f"the setting {key!r} is now called {name!r}; please rename it", FutureWarning, stacklevel=3)
            key = name
        found[key] = value
    return found


def check_number(name: str, value: object, *, low: float, high: float, open_low: bool = False) -> None:
    """Raise RecipeError for what is not a finite number from low to high; ``open_low`` excludes low itself."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value > high or value < low or (open_low and value == low):  # type: ignore[operator]
        bracket = "(" if open_low else "["
        raise RecipeError(f"{name} is {value!r}; expected a number in {bracket}{low:g}, {high:g}]")


def check_integer(name: str, value: object, *, low: int, high: int, words: Collection[str] = ()) -> None:
    """Raise RecipeError for what is neither a whole number from low to high nor one of the words."""
    if isinstance(value, str) and value in words:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        others = "".join(f", or {word!r}" for word in words)
        raise RecipeError(f"{name} is {value!r}; expected a whole number from {low} to {high}{others}")


def check_bool(name: str, value: object) -> None:
    """Raise RecipeError for what is neither True nor False."""
    if not isinstance(value, bool):
        raise RecipeError(f"{name} is {value!r}; expected true or false")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise RecipeError for what is not one of the choices."""
    if value not in choices:
        raise RecipeError(f"{name} is {value!r}; expected one of {', '.join(choices)}")


def check_table(name: str, value: object) -> None:
    """Raise RecipeError for what is not a table from layer patterns to values."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise RecipeError(f"{name} is {value!r}; expected a table from layer patterns to values")


class Section:
    """A part of the recipe: builds itself from a plain dict and names the nearest key when one is unknown.

    Attributes:
        sections: Settings that are sections themselves, by name.
    """

    sections: ClassVar[dict[str, type[Section]]] = {}

    @classmethod
    def from_dict(cls: type[S], data: Mapping[str, Any], *, where: str = "") -> S:
        """Build the section, its own sections included.

        Args:
            data: Settings by name; former names are replaced.
            where: Put before the names of settings in messages.

        Raises:
            RecipeError: An unknown setting (the nearest is named), or a value that does not fit.
        """
        if not isinstance(data, Mapping):
            raise RecipeError(f"{where or 'recipe'} is {data!r}; expected a table of settings")
        known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
        data = current_names(data, known)
        for key in data:
            if key in known:
                continue
            close = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise RecipeError(f"unknown setting {where}{key!r}; {hint}known here: {', '.join(sorted(known))}")
        values: dict[str, Any] = {}
        for key, value in data.items():
            section = cls.sections.get(key)
            if section is not None:
                values[key] = section.from_dict(value, where=f"{key}.")
            else:
                if isinstance(value, str) and known[key].type.startswith("tuple"):
                    value = (value,)
                values[key] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, strings and numbers: what JSON, YAML and mmengine configs can hold."""
        plain: dict[str, Any] = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, Section):
                plain[f.name] = value.to_dict()
            elif isinstance(value, Mapping):
                plain[f.name] = dict(value)
            else:
                plain[f.name] = list(value) if isinstance(value, tuple) else value
        return plain
