"""What NortonHook is told in a config: recipe keys, flat or in sections."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from norton_plugin.errors import RecipeError
from norton_plugin.recipe import Recipe, current_names


def recipe_from_options(options: Mapping[str, Any], *, others: Iterable[str] = ()) -> Recipe:
    """Build a recipe from the keys of a config.

    A key is a section of the recipe (``pruning=dict(keep=0.6)``), a single setting of one (``keep=0.6``), or
    ``scope`` with a list of patterns to include. A setting that several sections have (``linear``: Linear layers are
    decomposed, and pruned) counts for all of them.

    Args:
        options: Keys and values; mmengine's config types are fine.
        others: Further keys that the caller takes, to be named in the message.

    Raises:
        RecipeError: An unknown key (the nearest is named), one given twice, or a value out of its range.
    """
    sections = _sections()
    owners: dict[str, list[str]] = {}
    for section, keys in sections.items():
        for key in keys:
            owners.setdefault(key, []).append(section)
    top = {f.name for f in fields(Recipe)} - set(sections)
    plain: dict[str, Any] = {}
    flat: dict[str, Any] = {}
    for key, value in current_names(options, owners).items():
        if key == "scope" and isinstance(value, str | list | tuple):
            flat["include"] = _plain(value)
        elif key in sections or key in top:
            plain[key] = _plain(value)
        elif key in owners:
            flat[key] = _plain(value)
        else:
            raise RecipeError(_unknown(key, {*sections, *top, *owners, *others}))
    for name, value in flat.items():
        for owner in owners[name]:
            table = plain.setdefault(owner, {})
            if not isinstance(table, dict):
                raise RecipeError(f"{owner} is {table!r}; expected a table of settings")
            if name in table:
                raise RecipeError(f"{name!r} is given both alone and in {owner!r}; leave one of them out")
            table[name] = value
    return Recipe.from_dict(plain)


def _sections() -> dict[str, set[str]]:
    """Sections of the recipe and the names of their settings."""
    default = Recipe()
    found = {f.name: getattr(default, f.name) for f in fields(Recipe)}
    return {name: {f.name for f in fields(value)} for name, value in found.items() if is_dataclass(value)}


def _unknown(key: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown setting {key!r} of NortonHook; {hint}known here: {', '.join(names)}"


def _plain(value: Any) -> Any:
    """Config types as the plain containers they are made of; tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
